"""Videos from a tiny random SwiftI2V bundle: what is asked for, in which order it comes, and what survives a stop."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from segue.errors import BudgetError, BundleError, BusyError, Cancelled, UsageError
from segue.runtime.bundle import reader
from segue.runtime.bundle.tokens import PromptTruncated
from segue.runtime.pipeline import open_model
from segue.runtime.planning.hardware import CPU, find_machine
from segue.runtime.planning.videos import WantedVideo, plan_video
from segue.runtime.sampling.tiles import Tiling
from segue.runtime.units import mebibytes
from segue.runtime.videos.request import AnimationRequest, prepare
from segue.runtime.videos.stage_one import Event, scaled
from segue.runtime.videos.stage_two import Ahead

SIZE = (128, 64)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    rows, columns = np.mgrid[:90, :120]
    return np.stack([2 * rows, columns, 255 - rows], -1).astype(np.uint8)


@pytest.fixture(scope="module")
def content(video_bundle):
    return reader.read(video_bundle).manifest


@pytest.fixture
def model(video_bundle):
    with open_model(video_bundle, threads=1) as opened:
        yield opened


def whole(made) -> np.ndarray:
    return np.concatenate(list(made))


@pytest.mark.parametrize(("asked", "made", "windows"), [(1, 1, [1]), (2, 5, [5]), (17, 17, [17]), (20, 21, [17, 5])])
def test_frames_are_rounded_up_and_cut_into_windows(picture, content, asked, made, windows):
    ready = prepare(AnimationRequest(picture, frames=asked), content)
    assert (ready.frames, ready.windows(content.video)) == (made, windows)
    assert sum(windows) - len(windows) + 1 == made


def test_the_image_is_cut_to_the_size_that_is_asked_for(picture, content):
    ready = prepare(AnimationRequest(picture, size=(96, 160)), content)
    assert ready.image.shape == (96, 160, 3)
    assert ready.image.dtype == np.float32
    assert ready.image.min() >= -1
    assert ready.image.max() <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((4, 4), np.uint8)}, r"image must be .*, got uint8 \[4, 4\]"),
        ({"image": np.zeros((4, 4, 3), np.float32)}, "image must be .*, got float32"),
        ({"frames": 0}, "frames must be .*, got 0"),
        ({"frames": True}, "frames must be .*, got True"),
        ({"fps": 0}, "fps must be .*, got 0"),
        ({"size": 100}, "multiples of 32"),
        ({"prompt": None}, "prompt must be a string, got None"),
        ({"seed": -1}, "seed must be .*, got -1"),
        ({"prompt": "\udcff"}, "prompt must be valid Unicode"),
    ],
)
def test_what_cannot_be_made_is_refused(picture, content, change, message):
    with pytest.raises(UsageError, match=message):
        prepare(AnimationRequest(**{"image": picture} | change), content)


def test_frames_come_as_soon_as_their_segment_is_decoded(picture, model):
    events: list[Event] = []
    made = model.frames(AnimationRequest(picture, "waving hand", frames=21), on_event=events.append)
    first = next(made)
    assert first.shape == (13, *SIZE, 3)  # the image's frame and three latent frames of four
    assert first.dtype == np.uint8
    assert [(e.window, e.done) for e in events if e.stage == "detail"] == [(0, 1)]
    rest = list(made)
    assert [len(frames) for frames in rest] == [4, 4]  # the window's short last segment; the next window
    assert {event.stage for event in events} == {"text", "motion", "reference", "detail"}
    assert all(0 <= event.done <= event.total for event in events)


def test_the_same_request_gives_the_same_frames_and_another_seed_others(picture, model):
    one, again, other = (whole(model.frames(AnimationRequest(picture, frames=5, seed=seed))) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_one_frame_is_the_picture_as_the_autoencoder_gives_it_back(picture, model):
    (one,) = whole(model.frames(AnimationRequest(picture, frames=1)))
    assert np.array_equal(one, whole(model.frames(AnimationRequest(picture, frames=5)))[0])


def test_both_stages_are_never_in_memory_together(picture, model):
    together = []

    def look(event: Event) -> None:
        loaded = set(model._components._engines)
        together.append(bool({"transformer"} & loaded) and bool({"detail_transformer", "text_encoder"} & loaded))

    whole(model.frames(AnimationRequest(picture, frames=21), on_event=look))
    assert together
    assert not any(together)


def stop_after(count: int):
    asked = iter(range(10_000))
    return lambda: next(asked) >= count


@pytest.mark.parametrize(
    "calls",
    [
        1,
        *(pytest.param(n, marks=pytest.mark.slow) for n in (12, 20)),
        27,
        *(pytest.param(n, marks=pytest.mark.slow) for n in (34, 42)),
    ],
)
def test_a_stopped_video_goes_on_and_gives_the_same_frames(picture, model, tmp_path, calls):
    request = AnimationRequest(picture, "dog", frames=21)
    expected = whole(model.frames(request))
    with pytest.raises(Cancelled):
        whole(model.frames(request, journal=tmp_path / "journal", cancel=stop_after(calls)))
    events: list[Event] = []
    found = whole(model.frames(request, journal=tmp_path / "journal", resume=True, on_event=events.append))
    assert np.array_equal(found, expected)
    assert not (calls >= 20 and any(event.stage == "motion" and event.window == 0 for event in events))


def test_a_journal_of_another_video_is_refused(picture, model, tmp_path):
    whole(model.frames(AnimationRequest(picture, frames=1), journal=tmp_path / "journal"))
    with pytest.raises(UsageError, match="journal of another job: its prompt is '', yours is 'dog'"):
        model.frames(AnimationRequest(picture, "dog", frames=1), journal=tmp_path / "journal", resume=True)


def test_tiles_that_hold_a_whole_frame_change_nothing_and_smaller_ones_little(picture, model):
    plain, large, small = (
        whole(model.frames(AnimationRequest(picture, frames=9, tiling=tiling))).astype(float)
        for tiling in (None, Tiling(8, 2), Tiling(6, 4))
    )
    assert np.array_equal(plain, large)
    assert 0 < np.abs(plain - small).mean() < 0.25 * np.abs(plain - plain.mean()).mean()


def test_a_journal_that_is_in_use_stays_as_it_is(picture, model, video_bundle, tmp_path):
    place = tmp_path / "journal"
    first = model.frames(AnimationRequest(picture, frames=5), journal=place)
    next(first)
    kept = (place / "job.json").read_bytes()
    with pytest.raises(BusyError, match="busy with another call"):
        next(model.frames(AnimationRequest(picture, "dog", frames=5), journal=place))
    with open_model(video_bundle) as other, pytest.raises(UsageError, match="is in use"):
        next(other.frames(AnimationRequest(picture, "dog", frames=5), journal=place))
    assert (place / "job.json").read_bytes() == kept
    first.close()
    whole(model.frames(AnimationRequest(picture, "dog", frames=5), journal=place))


def test_a_prompt_that_is_cut_is_told(picture, model):
    with pytest.warns(PromptTruncated, match="longer than 12 tokens"):
        model.frames(AnimationRequest(picture, "dog " * 40))


def test_a_bundle_of_videos_draws_no_pictures_and_the_other_way_round(picture, model, exported):
    with pytest.raises(UsageError, match="draws videos, not pictures"):
        model.generate("dog")
    with open_model(exported) as pictures, pytest.raises(UsageError, match="draws pictures, not videos"):
        pictures.frames(AnimationRequest(picture))


def no_second_stage(table):
    del table["components"]["detail_transformer"]


def another_sampler(table):
    table["video"]["motion"]["sampler"]["kind"] = "dpm"


def pictures_with_video(table):
    table["family"] = "sd3"


def half_a_latent_frame(table):
    table["video"]["frames"] = 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_second_stage, "lacks detail_transformer"),
        (another_sampler, "sampler 'dpm'"),
        (pictures_with_video, "has a table for videos"),
        (half_a_latent_frame, "video.frames modulo 4 = 2"),
    ],
)
def test_a_video_bundle_that_cannot_be_rendered_is_refused(video_bundle, tmp_path, change, message):
    copy = tmp_path / "bundle"
    shutil.copytree(video_bundle, copy)
    table = json.loads((copy / "bundle.json").read_text())
    change(table)
    (copy / "bundle.json").write_text(json.dumps(table))
    with pytest.raises(BundleError, match=message):
        open_model(copy)


def test_latent_frames_that_are_behind_are_let_go():
    ahead = Ahead(np.full((1, 1, 1, 1), i, np.float32) for i in range(9))
    assert ahead(range(1)).ravel().tolist() == [0]
    assert ahead(range(2, 4)).ravel().tolist() == [2, 3]
    assert ahead(range(3, 6)).ravel().tolist() == [3, 4, 5]
    assert ahead(range(8, 9)).ravel().tolist() == [8]


def test_a_small_image_is_the_mean_of_each_area():
    image = np.arange(48, dtype=np.float32).reshape(4, 4, 3)
    assert np.array_equal(scaled(image, 2)[0, 0], image[:2, :2].mean((0, 1)))


def test_within_a_budget_one_component_at_a_time_makes_the_same_frames(picture, video_bundle, model, content):
    request = AnimationRequest(picture, "dog", frames=21, seed=3)
    expected = whole(model.frames(request))
    with pytest.raises(BudgetError) as refused, open_model(video_bundle, threads=1, budget="2MiB") as small:
        small.plan(request)
    with pytest.raises(BudgetError), open_model(video_bundle, threads=1, budget="2MiB") as small:
        small.frames(request)
    least = mebibytes(refused.value.needed)
    tiles = plan_video(content, WantedVideo(64, 64, 21), find_machine(CPU), least * 2**20).tiling
    with open_model(video_bundle, threads=1, budget="1GiB") as roomy:
        loaded = []
        opening = roomy._components._open

        def watched(name, shapes):
            loaded.append(len(roomy._components._engines))
            return opening(name, shapes)

        roomy._components._open = watched
        assert np.array_equal(whole(roomy.frames(request)), expected)
    assert set(loaded) == {0}
    with open_model(video_bundle, threads=1, budget=f"{least}MiB") as tight:
        assert tight.plan(request).peak <= least * 2**20
        found = whole(tight.frames(request))
    assert found.shape == expected.shape
    assert tiles is not None or np.array_equal(found, expected)


def test_a_longer_video_takes_no_more_once_it_has_two_windows(content):
    machine = find_machine(CPU)
    peaks = {
        frames: plan_video(content, WantedVideo(64, 64, frames), machine, None).peak for frames in (17, 33, 65, 321)
    }
    assert peaks[33] == peaks[65] == peaks[321]
    assert peaks[17] <= peaks[33]
    larger = plan_video(content, WantedVideo(96, 96, 33), machine, None).peak
    assert larger > peaks[33]


def test_a_budget_that_is_too_small_for_a_video_is_refused(content):
    with pytest.raises(BudgetError, match=r"takes \d+ MiB for 64x64 px"):
        plan_video(content, WantedVideo(64, 64, 17), find_machine(CPU), 2**20)


@pytest.mark.slow
def test_a_video_goes_on_with_the_tiles_it_was_begun_with_whatever_the_budget(
    picture, video_bundle, model, tmp_path, monkeypatch
):
    from segue.runtime import plan_prepared as prepared

    plain = AnimationRequest(picture, "dog", frames=21)
    tiled = replace(plain, tiling=Tiling(6, 4))
    asked, make = [], prepared.plan_video
    monkeypatch.setattr(prepared, "plan_video", lambda *given: asked.append(given[1]) or make(*given))
    for begun in (plain, tiled):
        journal = tmp_path / ("plain" if begun is plain else "tiled")
        with pytest.raises(Cancelled):
            whole(model.frames(begun, journal=journal, cancel=stop_after(30)))
        with open_model(video_bundle, threads=1, budget="1GiB") as other:
            found = whole(other.frames(plain, journal=journal, resume=True))
        assert (asked[-1].tiling, asked[-1].settled) == (begun.tiling, True)
        assert np.array_equal(found, whole(model.frames(begun)))


def test_what_is_settled_is_not_cut_into_tiles_and_refused_where_it_does_not_fit():
    content = reader.read_manifest("emoji-motion")
    free, settled = WantedVideo(256, 256, 17), WantedVideo(256, 256, 17, settled=True)
    least = []
    for wanted in (free, settled):
        with pytest.raises(BudgetError) as refused:
            plan_video(content, wanted, find_machine(CPU), 1)
        least.append(mebibytes(refused.value.needed))
    assert least[0] < least[1]
    assert plan_video(content, free, find_machine(CPU), least[0] * 2**20).tiling is not None
    assert plan_video(content, settled, find_machine(CPU), least[1] * 2**20).tiling is None

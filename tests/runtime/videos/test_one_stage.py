"""Videos of one stage, from tiny random Wan bundles: requests, the order of frames, stops, tiles and budgets."""

import json
import shutil

import numpy as np
import pytest

from segue.errors import BudgetError, BundleError, Cancelled, UsageError
from segue.runtime.bundle import reader
from segue.runtime.pipeline import open_model
from segue.runtime.planning.hardware import CPU, find_machine
from segue.runtime.planning.videos import WantedVideo, plan_video
from segue.runtime.sampling.tiles import Tiling
from segue.runtime.units import mebibytes
from segue.runtime.videos.request import AnimationRequest, prepare
from segue.runtime.videos.stage_one import Event

SIZE = (96, 64)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    rows, columns = np.mgrid[:90, :120]
    return np.stack([2 * rows, columns, 255 - rows], -1).astype(np.uint8)


@pytest.fixture
def i2v(wan_i2v_bundle):
    with open_model(wan_i2v_bundle, threads=1) as opened:
        yield opened


@pytest.fixture
def ti2v(wan_ti2v_bundle):
    with open_model(wan_ti2v_bundle, threads=1) as opened:
        yield opened


def whole(made) -> np.ndarray:
    return np.concatenate(list(made))


def stop_after(count: int):
    asked = iter(range(10_000))
    return lambda: next(asked) >= count


def test_frames_come_as_soon_as_their_latent_frame_is_decoded(picture, i2v):
    events: list[Event] = []
    made = i2v.frames(AnimationRequest(picture, "waving hand", frames=13), on_event=events.append)
    first = next(made)
    assert first.shape == (1, *SIZE, 3)
    assert first.dtype == np.uint8
    assert [(e.window, e.done) for e in events if e.stage == "frames"] == [(0, 0)]
    assert [len(frames) for frames in made] == [4, 4, 4]  # the second window begins with a frame that was shown
    assert {event.stage for event in events} == {"text", "motion", "frames"}
    assert all(0 <= event.done <= event.total for event in events)


def test_the_same_request_gives_the_same_frames_and_another_seed_others(picture, ti2v):
    one, again, other = (whole(ti2v.frames(AnimationRequest(picture, frames=5, seed=seed))) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert np.array_equal(one[0], other[0])  # the picture, as the autoencoder gives it back


def test_a_last_picture_changes_the_last_window_only(picture, i2v):
    plain = whole(i2v.frames(AnimationRequest(picture, frames=13)))
    turned = whole(i2v.frames(AnimationRequest(picture, frames=13, last=picture[::-1].copy())))
    assert np.array_equal(plain[:9], turned[:9])
    assert not np.array_equal(plain[9:], turned[9:])


def test_a_text_alone_makes_a_video_if_the_picture_is_a_latent_frame(ti2v):
    made = whole(ti2v.animate(prompt="a red heart", frames=9))
    assert made.shape == (9, *SIZE, 3)
    assert made.std() > 1


def test_one_frame_of_a_text_is_a_picture(ti2v):
    assert whole(ti2v.animate(prompt="dog", frames=1)).shape == (1, *SIZE, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("wan_i2v_bundle", {"image": None}, "animates a picture, and none was given"),
        ("wan_ti2v_bundle", {"last": np.zeros((8, 8, 3), np.uint8)}, "of family wan-ti2v takes no last picture"),
        ("emoji-motion", {"last": np.zeros((8, 8, 3), np.uint8)}, "of family swifti2v takes no last picture"),
        ("emoji-motion", {"image": None}, "animates a picture, and none was given"),
        ("wan_i2v_bundle", {"last": np.zeros((8, 8), np.uint8)}, r"last must be uint8 .*, got uint8 \[8, 8\]"),
        ("wan_i2v_bundle", {"last": np.zeros((8, 8, 3), np.uint8), "frames": 1}, "a video of 1 frame has no last"),
        ("wan_i2v_bundle", {"size": 72}, "multiples of 16"),
        ("wan_ti2v_bundle", {"size": 80}, "multiples of 32"),
    ],
)
def test_what_cannot_be_made_is_refused(request, picture, family, change, message):
    content = reader.read_manifest(family if family in reader.shipped() else request.getfixturevalue(family))
    with pytest.raises(UsageError, match=message):
        prepare(AnimationRequest(**{"image": picture} | change), content)


@pytest.mark.parametrize("calls", [1, 4, 9, 12, 16, 20])
def test_a_stopped_video_goes_on_and_gives_the_same_frames(picture, i2v, tmp_path, calls):
    request = AnimationRequest(picture, "dog", frames=17, last=picture)
    expected = whole(i2v.frames(request))
    with pytest.raises(Cancelled):
        whole(i2v.frames(request, journal=tmp_path / "journal", cancel=stop_after(calls)))
    events: list[Event] = []
    found = whole(i2v.frames(request, journal=tmp_path / "journal", resume=True, on_event=events.append))
    assert np.array_equal(found, expected)
    assert any(event.stage == "motion" and event.window == 0 for event in events) == (calls < 9)


def test_a_journal_of_another_last_picture_is_refused(picture, i2v, tmp_path):
    whole(i2v.frames(AnimationRequest(picture, frames=5, last=picture), journal=tmp_path / "journal"))
    with pytest.raises(UsageError, match="its last_sha256 is"):
        i2v.frames(AnimationRequest(picture, frames=5), journal=tmp_path / "journal", resume=True)


def test_tiles_that_hold_a_whole_frame_change_nothing_and_larger_ones_change_less(picture, i2v):
    tilings = (None, Tiling(12, 2), Tiling(8, 2), Tiling(8, 6), Tiling(10, 8))
    plain, large, *others = (
        whole(i2v.frames(AnimationRequest(picture, frames=5, tiling=tiling))).astype(float) for tiling in tilings
    )
    assert np.array_equal(plain, large)
    differences = [np.abs(plain - other).mean() for other in others]
    assert differences == sorted(differences, reverse=True)
    assert 0 < differences[-1] < 0.25 * np.abs(plain - plain.mean()).mean()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["wan_i2v_bundle", "wan_ti2v_bundle"])
def test_within_a_budget_one_component_at_a_time_makes_the_same_frames(request, picture, family):
    bundle = request.getfixturevalue(family)
    wanted = AnimationRequest(picture, "dog", frames=13, seed=3)
    with open_model(bundle, threads=1) as model:
        expected = whole(model.frames(wanted))
    with pytest.raises(BudgetError) as refused, open_model(bundle, threads=1, budget="2MiB") as small:
        small.frames(wanted)
    with open_model(bundle, threads=1, budget="1GiB") as roomy:
        loaded = []
        opening = roomy._components._open

        def watched(name, shapes):
            loaded.append(len(roomy._components._engines))
            return opening(name, shapes)

        roomy._components._open = watched
        assert np.array_equal(whole(roomy.frames(wanted)), expected)
    assert set(loaded) == {0}
    with open_model(bundle, threads=1, budget=f"{mebibytes(refused.value.needed)}MiB") as tight:
        assert tight.plan(wanted).peak <= mebibytes(refused.value.needed) * 2**20
        assert whole(tight.frames(wanted)).shape == expected.shape


@pytest.mark.slow
@pytest.mark.parametrize("family", ["wan_i2v_bundle", "wan_ti2v_bundle"])
def test_a_longer_video_takes_no_more_once_it_has_two_windows(request, family):
    content, machine = reader.read_manifest(request.getfixturevalue(family)), find_machine(CPU)
    plans = {frames: plan_video(content, WantedVideo(64, 64, frames), machine, None) for frames in (5, 9, 17, 33, 145)}
    peaks = {frames: plan.peak for frames, plan in plans.items()}
    assert peaks[17] == peaks[33] == peaks[145]
    assert peaks[5] <= peaks[9] <= peaks[17]
    calls = {phase.component: phase.calls for phase in plans[17].phases}
    assert calls["vae_decoder_next"] == 4  # two windows of three latent frames
    assert calls["transformer"] + calls.get("transformer_2", 0) == 8


def another_given(table):
    table["video"]["given"] = "first"


def unknown_given(table):
    table["video"]["given"] = "second"


def segments_of_nobody(table):
    table["video"] |= {"targets": 3, "before": 1, "after": 0, "mean": [0.0] * 4, "std": [1.0] * 4}


def half_a_second_stage(table):
    table["video"]["targets"] = 3


def nested(table):
    table["video"]["detail"] = None


def another_sampler(table):
    table["sampler"]["steps"] = 5


def unknown_grid(table):
    for sampler in (table["sampler"], table["video"]["motion"]["sampler"]):
        sampler["grid"] = "karras"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (another_given, "has a denoiser without the input timesteps"),
        (unknown_given, "video.given = 'second', which must be one of 'mask', 'first'"),
        (segments_of_nobody, "has segments of a Stage II"),
        (half_a_second_stage, "should be Detail"),
        (nested, "unknown key 'detail'"),
        (another_sampler, "not those of video.motion"),
        (unknown_grid, "sampler.grid = 'karras'"),
    ],
)
def test_a_bundle_of_one_stage_that_contradicts_itself_is_refused(wan_i2v_bundle, tmp_path, change, message):
    copy = tmp_path / "bundle"
    shutil.copytree(wan_i2v_bundle, copy)
    table = json.loads((copy / "bundle.json").read_text())
    change(table)
    (copy / "bundle.json").write_text(json.dumps(table))
    with pytest.raises(BundleError, match=message):
        open_model(copy)

"""Previews: by a linear map, a small decoder or the decoder, with and without a budget."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import segue
from segue.errors import BudgetError, UsageError
from segue.runtime.bundle.families import PREVIEW
from segue.runtime.bundle.manifest import LinearMap
from segue.runtime.bundle.reader import read
from segue.runtime.diagnostics.difference import psnr
from segue.runtime.pictures.preview import enlarged, mapped
from segue.runtime.pipeline import Model
from segue.runtime.planning.hardware import CPU, find_machine
from segue.runtime.planning.pictures import Wanted, plan
from segue.runtime.planning.previews import with_previews
from segue.runtime.sampling.latents import to_bytes
from support.bundles import CHANNELS, write_tiny_bundle

pytestmark = pytest.mark.filterwarnings("ignore::segue.runtime.notices.Notice")
PROMPTS = ["red heart", "pizza", "rocket", "house with garden"]
WANTED = Wanted(32, 32, 4, True)
MAP = LinearMap(tuple((0.1 * i, -0.05, 0.02 * i) for i in range(CHANNELS)), (0.1, 0.0, -0.2))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A bundle with a small decoder and without a linear map."""
    return write_tiny_bundle(tmp_path_factory.mktemp("preview") / "tiny", small=True)


def drawn(model, act, **values):
    """Draw a picture, and return what `act` gave after each step, and the picture."""
    found = []
    picture = model.generate("a red heart", on_step=lambda *step: found.append(act(*step)), **values)
    return found, picture


def with_map(bundle, budget=None):
    """Return a model of the bundle with a linear map, without its small decoder."""
    opened = read(bundle)
    parts = {name: part for name, part in opened.manifest.components.items() if name != PREVIEW}
    content = dataclasses.replace(opened.manifest, preview=MAP, components=parts)
    return Model(dataclasses.replace(opened, manifest=content), budget=budget)


def squares(images):
    """Return pictures averaged over the pixels of each latent."""
    count, height, width, _ = images.shape
    return images.reshape(count, height // 8, 8, width // 8, 8, 3).mean((2, 4))


@pytest.mark.parametrize(
    ("name", "steps", "early", "half", "last"), [("emoji", 4, 22, 26, 27), ("emoji-teacher", 6, 13, 21, 26)]
)
def test_previews_of_the_shipped_bundles_show_the_picture_long_before_it_is_done(name, steps, early, half, last):
    shown, noisy = [], []
    with segue.open(name) as model:

        def on_step(done, total, latents):
            shown.append(model.preview()[0])
            noisy.append(to_bytes(mapped(model.bundle.manifest.preview, latents))[0])

        images = model.render(segue.Request(PROMPTS, steps=steps), on_step=on_step).images
    wanted = squares(images)
    shown, noisy = (np.array(one).reshape(len(PROMPTS), steps, 16, 16, 3) for one in (shown, noisy))
    found = [psnr(shown[:, step], wanted) for step in range(steps)]
    assert (found[0] >= early, found[steps // 2] >= half, found[-1] >= last) == (True, True, True), found
    assert found[steps // 2] >= psnr(noisy[:, steps // 2], wanted) + 4  # the latents themselves are still noisy


def test_a_map_gives_its_linear_combination_of_the_channels():
    latents = np.random.default_rng(0).standard_normal((2, CHANNELS, 3, 5)).astype(np.float32)
    found = mapped(MAP, latents)
    expected = sum(latents[1, i, 2, 4] * np.array(MAP.factors[i]) for i in range(CHANNELS)) + MAP.bias
    assert found.shape == (2, 3, 3, 5)
    assert found[1, :, 2, 4] == pytest.approx(expected, abs=1e-6)


def test_an_enlarged_picture_is_that_of_bilinear_interpolation():
    small = np.random.default_rng(0).integers(0, 256, (2, 9, 7, 3), np.uint8)
    planes = torch.from_numpy(small).permute(0, 3, 1, 2).double()
    expected = torch.nn.functional.interpolate(planes, scale_factor=8, mode="bilinear").permute(0, 2, 3, 1).numpy()
    assert abs(enlarged(small, 8) - expected).max() <= 0.51  # rounded


def test_the_small_decoder_decodes_the_estimate_in_full_size(tiny):
    with segue.open(tiny) as model:
        found, _ = drawn(model, lambda *_: (model.preview(), model.estimate()), steps=3)
        for preview, estimate in found:
            pixels = model.call(PREVIEW, {"latents": estimate})["pixels"]
            assert preview.shape == (1, 32, 32, 3)
            assert np.array_equal(preview, to_bytes(pixels))


def test_without_a_map_and_without_a_budget_the_decoder_makes_the_preview(tmp_path):
    with segue.open(write_tiny_bundle(tmp_path / "tiny")) as model:
        found, picture = drawn(model, lambda *_: (model.preview(), model.decode(model.estimate())))
        assert all(np.array_equal(*pair) for pair in found)
        assert np.array_equal(found[-1][0][0], picture)


def test_with_a_budget_the_map_shows_what_it_shows_without(tiny):
    seen = []
    for budget in (None, 2**30):
        with with_map(tiny, budget) as model:
            assert model.shows_steps
            seen.append(drawn(model, lambda *_, model=model: (model.preview(), model.preview(full_size=True)))[0])
    for (small, large), (again, _) in zip(*seen, strict=True):
        assert (small.shape, large.shape) == ((1, 4, 4, 3), (1, 32, 32, 3))
        assert np.array_equal(small, again)
        assert np.array_equal(large, enlarged(small, 8))


def test_with_a_budget_and_without_a_map_there_is_none(tmp_path):
    with segue.open(write_tiny_bundle(tmp_path / "tiny"), budget="1GiB") as model:
        assert not model.shows_steps
        assert drawn(model, lambda *_: model.preview())[0] == [None] * 4


def test_latents_that_are_given_are_shown_at_any_time_and_the_estimate_only_in_a_step(tiny):
    with with_map(tiny) as model:
        latents = model.render(segue.Request("a red heart")).latents
        assert np.array_equal(model.preview(latents), to_bytes(mapped(MAP, latents)))
        for call in (model.preview, model.estimate):
            with pytest.raises(UsageError, match="inside on_step"):
                call()


def test_a_bundle_of_videos_has_no_previews():
    with segue.open("emoji-motion") as model, pytest.raises(UsageError, match="draws videos"):
        model.preview(np.zeros((1, 48, 8, 8), np.float32))


def test_a_small_decoder_is_used_within_a_budget_only_if_the_plan_counts_it(tiny):
    request = segue.Request("a red heart")
    with segue.open(tiny, budget=1) as model, pytest.raises(BudgetError) as refused:
        model.plan(request)
    for budget, counted in ((2**30, True), (refused.value.needed, False)):
        with segue.open(tiny, budget=budget) as model:
            plain = model.plan(request)
            assert not plain.previews  # only `on_step` can show any
            found, _ = drawn(model, lambda *_, model=model: (model.preview(), model.ledger.planned))
            assert [shown is not None for shown, _ in found] == [counted] * 4
            assert {planned > plain.peak for _, planned in found} <= {counted, False}
            assert model._components._engines.keys() & {PREVIEW} == set()  # freed before the decoder loads
    content, here = read(tiny).manifest, find_machine(CPU, 1)
    with pytest.raises(BudgetError) as refused:
        plan(content, WANTED, here, 1)
    small, roomy = (plan(content, WANTED, here, budget) for budget in (refused.value.needed, 2**30))
    assert with_previews(content, small, WANTED, here) == small
    more = with_previews(content, roomy, WANTED, here)
    extra = {p.component: p.peak - q.peak for p, q in zip(more.phases, roomy.phases, strict=True) if p != q}
    spec = content.components[PREVIEW]
    assert more.previews
    assert extra.keys() == {"transformer"}
    assert extra["transformer"] > 4 * spec.parameters + 4 * 3 * 32 * 32  # its weights and its picture, at least


CHILD = """
import json, sys
from pathlib import Path
import segue
from segue.runtime.media.formats import encode_picture
def resident(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))
budget, size = json.loads(sys.argv[1])
idle, shown = resident("VmRSS"), []
with segue.open("emoji", budget=budget) as model:
    planned = model.plan(segue.Request("pizza", size=size)).peak
    def on_step(done, total, latents):
        encode_picture(model.preview()[0], "webp", None, quality=90)
        shown.append(model.preview(full_size=True).shape)
    model.generate("pizza", size=size, on_step=on_step)
print(json.dumps([resident("VmHWM") - idle, planned, shown]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's high-water mark is read")
@pytest.mark.parametrize("size", [64, 192])
def test_a_run_with_previews_stays_within_the_smallest_budget(size):
    with segue.open("emoji", budget=1) as model, pytest.raises(BudgetError) as refused:
        model.plan(segue.Request("pizza", size=size))
    asked = json.dumps([refused.value.needed, size])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, asked], check=True, capture_output=True, text=True
    )
    taken, planned, shown = json.loads(done.stdout)
    assert shown == [[1, size, size, 3]] * 4
    assert taken <= planned <= refused.value.needed

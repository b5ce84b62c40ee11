"""Wan in one stage: the bundle makes what diffusers' own pipelines make, from the same noise."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from segue.runtime.diagnostics.difference import psnr, relative_l2
from segue.runtime.pipeline import open_model
from segue.runtime.videos.request import AnimationRequest
from support.wan import Asked, by_diffusers

SIZE = (96, 64)


def picture(turned: int) -> np.ndarray:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    stacked = np.stack([255 - 2 * rows, 3 * columns, rows + columns], -1).astype(np.uint8)
    return np.ascontiguousarray(np.roll(stacked, turned, -1))


FIRST, LAST = picture(0), picture(1)


def with_sampler(bundle, folder, **changes):
    """Return a copy of a bundle in `folder` whose sampler has other values."""
    shutil.copytree(bundle, folder)
    table = json.loads((folder / "bundle.json").read_text())
    for sampler in (table["sampler"], table["video"]["motion"]["sampler"]):
        sampler |= changes
    (folder / "bundle.json").write_text(json.dumps(table))
    return folder


def compare(bundle, checkpoint, asked: Asked, folder):
    """Compare the latents of each window and all frames with those of diffusers."""
    kind = "flow-match-renoised" if asked.renoised else "flow-match-euler"
    changed = with_sampler(bundle, folder / "bundle", guidance=asked.guidance, kind=kind, steps=asked.steps)
    latents, expected = by_diffusers(checkpoint, asked)
    request = AnimationRequest(
        asked.image, asked.prompt, asked.negative, frames=len(expected), seed=asked.seed, last=asked.last
    )
    with open_model(changed, threads=1) as model:
        found = np.concatenate(list(model.frames(request, journal=folder / "journal")))
    kept = [np.load(folder / "journal" / f"motion-{window}.npy") for window in range(len(latents))]
    far = [relative_l2(ours, theirs) for ours, theirs in zip(kept, latents, strict=True)]
    near = psnr(found, np.rint(expected * 255).astype(np.uint8))
    print(f"latents {max(far):.1e}, pixels {near:.1f} dB")
    assert found.shape == expected.shape
    assert expected.std() > 0.02
    assert max(far) <= 1e-4, far
    assert near >= 60
    return found


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("last", [None, LAST], ids=["first", "first and last"])
def test_two_experts_make_what_diffusers_makes(wan_i2v_bundle, wan_i2v_checkpoint, tmp_path, guidance, last):
    asked = Asked(FIRST, (9,), "waving hand", "dog", last, guidance)
    compare(wan_i2v_bundle, wan_i2v_checkpoint, asked, tmp_path)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("image", [None, FIRST], ids=["text", "picture"])
def test_a_latent_frame_that_is_given_makes_what_diffusers_makes(
    wan_ti2v_bundle, wan_ti2v_checkpoint, tmp_path, guidance, image
):
    asked = Asked(image, (9,), "waving hand", "dog", None, guidance)
    compare(wan_ti2v_bundle, wan_ti2v_checkpoint, asked, tmp_path)


@pytest.mark.parametrize("image", [None, FIRST], ids=["text", "picture"])
def test_steps_that_add_noise_anew_make_what_diffusers_makes(wan_ti2v_bundle, wan_ti2v_checkpoint, tmp_path, image):
    asked = Asked(image, (9,), "a red heart", renoised=True, steps=3)
    compare(wan_ti2v_bundle, wan_ti2v_checkpoint, asked, tmp_path)


def test_two_experts_add_noise_anew_as_diffusers_does(wan_i2v_bundle, wan_i2v_checkpoint, tmp_path):
    compare(wan_i2v_bundle, wan_i2v_checkpoint, Asked(FIRST, (9,), "dog", renoised=True), tmp_path)


def test_three_windows_are_three_calls_of_diffusers(wan_i2v_bundle, wan_i2v_checkpoint, tmp_path):
    asked = Asked(FIRST, (9, 9, 5), "waving hand", "dog", LAST, 2.0)
    found = compare(wan_i2v_bundle, wan_i2v_checkpoint, asked, tmp_path)
    assert len(found) == 21
    (tmp_path / "one").mkdir()
    one = compare(wan_i2v_bundle, wan_i2v_checkpoint, replace(asked, frames=(9,), last=None), tmp_path / "one")
    assert np.array_equal(found[:9], one)  # the last picture belongs to the last window


@pytest.mark.parametrize("renoised", [False, True])
def test_a_video_from_text_goes_on_from_its_own_last_frame(wan_ti2v_bundle, wan_ti2v_checkpoint, tmp_path, renoised):
    asked = Asked(None, (9, 9, 9), "waving hand", guidance=1.0 if renoised else 2.0, renoised=renoised, steps=2)
    compare(wan_ti2v_bundle, wan_ti2v_checkpoint, asked, tmp_path)


def test_a_video_shorter_than_a_window_is_a_shorter_call_of_diffusers(wan_i2v_bundle, wan_i2v_checkpoint, tmp_path):
    compare(wan_i2v_bundle, wan_i2v_checkpoint, Asked(FIRST, (5,), "dog", last=LAST), tmp_path)

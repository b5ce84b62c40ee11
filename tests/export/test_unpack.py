"""The checkpoint inside a bundle, drawn by diffusers' own pipeline: the note names the argument that it needs."""

import dataclasses
import re

import numpy as np
import pytest
import torch

import segue
from segue.export.unpack import note_of, unpack
from segue.runtime.bundle.reader import read_manifest, resolve
from segue.runtime.diagnostics.difference import psnr

ABSENT = {"text_encoder_3": None, "tokenizer_3": None}  # as diffusers documents SD3 without T5


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    out = tmp_path_factory.mktemp("unpacked") / "emoji"
    return out, unpack(resolve("emoji"), out)


@pytest.fixture(scope="module")
def picture(unpacked):
    """Function that draws the red heart of seed 7 with diffusers, from the unpacked checkpoint; takes more options."""
    from diffusers import StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline.from_pretrained(unpacked[0], torch_dtype=torch.float32, **ABSENT)
    pipeline.set_progress_bar_config(disable=True)
    sampler = read_manifest("emoji").sampler

    def draw(**options):
        generator = torch.Generator().manual_seed(7)
        options |= {"sigmas": list(sampler.sigmas), "guidance_scale": sampler.guidance, "generator": generator}
        return np.asarray(pipeline("a red heart", **options).images[0])

    return draw


@pytest.fixture(scope="module")
def ours():
    with segue.open("emoji") as model:
        return model.render(segue.Request("a red heart", seed=7, noise="torch")).images[0]


def test_diffusers_draws_the_picture_of_segue_with_the_argument_that_the_note_names(unpacked, picture, ours):
    (tokens,) = re.findall(r"max_sequence_length=(\d+)\.", unpacked[1])
    assert psnr(ours, picture(max_sequence_length=int(tokens))) >= 55  # 60.1 dB: the bundle is in fp16


def test_without_that_argument_diffusers_draws_another_picture(picture, ours):
    """The note may go as soon as this fails."""
    assert psnr(ours, picture()) < 20  # 15.5 dB


@pytest.mark.parametrize(("family", "tokens"), [("sd3", 256), ("sdxl", 0), ("longcat-image", 0)])
def test_a_bundle_whose_tokens_are_the_default_of_diffusers_needs_no_note(family, tokens):
    content = dataclasses.replace(read_manifest("emoji"), family=family, t5_tokens=tokens)
    assert note_of(content) == ""

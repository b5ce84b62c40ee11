"""The exported pipeline beside PyTorch's: whole clips through diffusers' own codecs and transformers, equal noise."""

import contextlib
import itertools
import json

import numpy as np
import pytest
import torch
from torch import Tensor

from segue.export.families.wan.segment import SegmentTransformer
from segue.runtime.bundle import reader
from segue.runtime.bundle.segments import SegmentSpec
from segue.runtime.pipeline import open_model
from segue.runtime.sampling.latents import to_bytes
from segue.runtime.sampling.motion import image_mask
from segue.runtime.sampling.noise import philox_normal
from segue.runtime.sampling.reference import hybrid_reference
from segue.runtime.sampling.schedule import custom_schedule
from segue.runtime.videos import request
from segue.runtime.videos.request import AnimationRequest
from segue.runtime.videos.stage_one import scaled
from segue.training.video.clips.latents import FrozenCodec
from segue.training.video.text import Umt5Conditioner
from segue.training.video.windows import Window, generate

FRAMES, SEED = 17, 3  # two segments, the second one short


def video_of(frames: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2)[None]


@pytest.fixture(scope="module")
def request_() -> AnimationRequest:
    rows, columns = np.mgrid[:128, :64]
    picture = np.stack([255 - rows, 3 * columns, rows + columns], -1).astype(np.uint8)
    return AnimationRequest(picture, "smiling face", seed=SEED)


@pytest.fixture(scope="module")
def expected(video_checkpoint, video_bundle, request_) -> np.ndarray:
    """The frames of one window by PyTorch in float32, uint8."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segue.training.video.clips.latents.mixed_precision", lambda device: contextlib.nullcontext())
        return by_pytorch(video_checkpoint, video_bundle, request_)


def by_pytorch(video_checkpoint, video_bundle, request_) -> np.ndarray:
    from diffusers import WanTransformer3DModel

    cpu, said = torch.device("cpu"), json.loads((video_checkpoint / "segue.json").read_text())
    text = Umt5Conditioner(video_checkpoint, said["video"]["text_tokens"], cpu)
    image = request.prepare(request_, reader.read(video_bundle).manifest).image
    states = text(["", request_.prompt])
    low, high = FrozenCodec(video_checkpoint, cpu), FrozenCodec(video_checkpoint, cpu, "detail_vae")
    small = scaled(image, said["video"]["scale"])
    given = low.encode(video_of([small, *[np.zeros_like(small)] * (FRAMES - 1)]))
    first = WanTransformer3DModel.from_pretrained(video_checkpoint / "transformer")
    latents = torch.from_numpy(philox_normal(given.shape[1:], SEED, 0, 1))[None]
    mask = torch.from_numpy(image_mask(*given.shape[2:]))[None]
    levels = custom_schedule([1, 2 / 3, 1 / 3], 5.0, 1000)
    with torch.no_grad():
        for now, then in itertools.pairwise(levels.sigmas):
            beside = torch.cat([latents, mask, given], 1).repeat(2, 1, 1, 1, 1)
            free, tied = first(beside, torch.full((2,), 1000 * now), states, return_dict=False)[0].chunk(2)
            latents = latents + (then - now) * (free + 2.0 * (tied - free))
        frames = low.decode(latents).clamp(-1, 1)[0].permute(1, 2, 3, 0).contiguous().numpy()
        reference = high.encode(video_of(list(hybrid_reference(frames, image))))
        noise = [philox_normal(reference.shape[1:2] + reference.shape[3:], SEED, i, 2) for i in range(5)]
        second = SegmentTransformer.from_pretrained(video_checkpoint / "detail_transformer")

        def velocity(given: Window) -> Tensor:
            return second(given.latents, given.timesteps, states[1:], given.positions)

        made = generate(
            velocity, reference[:, :, :1], reference, torch.from_numpy(np.stack(noise, 1))[None], SegmentSpec(),
            custom_schedule([1.0, 0.5], 5.0, 1000),
        )  # fmt: skip
        return to_bytes(high.decode(made)[0].transpose(0, 1).numpy())


def test_the_exported_pipeline_gives_the_frames_of_pytorch(video_bundle, request_, expected):
    with open_model(video_bundle, threads=1) as model:
        found = np.concatenate(list(model.frames(request_)))
    assert found.shape == expected.shape == (FRAMES, 128, 64, 3)
    error = np.square(found.astype(float) - expected).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-9)) > 60
    assert expected.std() > 10

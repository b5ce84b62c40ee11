"""Diffusers' own Wan pipelines on a tiny checkpoint, window by window, with the noise of Segue."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from segue.runtime.sampling.noise import philox_normal

MOTION, FRESH = 1, 3  # streams of noise


@dataclass(frozen=True)
class Asked:
    """A request: pictures uint8 [height, width, 3] or None, and what the sampler does."""

    image: np.ndarray | None
    frames: tuple[int, ...]  # of each window
    prompt: str
    negative: str = ""
    last: np.ndarray | None = None
    guidance: float = 1.0
    renoised: bool = False
    steps: int = 4
    seed: int = 3


@contextmanager
def fresh_noise(draw):
    """Let FlowMatchEuler's stochastic steps take `draw(step)`."""
    from diffusers.schedulers import scheduling_flow_match_euler_discrete as module

    steps = iter(range(1000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "randn_tensor", lambda shape, **_: torch.from_numpy(draw(next(steps)))[None])
        yield


def by_diffusers(checkpoint: Path, asked: Asked) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the latents of each window, [channels, T, h, w], and all frames, float32 [n, height, width, 3] in [0, 1].

    The pipelines are WanImageToVideoPipeline, and WanPipeline for a window without a picture.
    """
    from diffusers import WanImageToVideoPipeline, WanPipeline
    from PIL import Image

    index = json.loads((checkpoint / "model_index.json").read_text())
    parts = loaded(checkpoint, asked.renoised)
    options = {"expand_timesteps": index["expand_timesteps"], "boundary_ratio": index["boundary_ratio"]}
    channels, factor = parts["vae"].config.z_dim, parts["vae"].config.scale_factor_spatial
    height, width = json.loads((checkpoint / "segue.json").read_text())["video"]["size"]
    states = encoded(checkpoint, [asked.negative, asked.prompt])
    image = None if asked.image is None else Image.fromarray(asked.image)
    all_latents, shown = [], []
    for window, frames in enumerate(asked.frames):
        shape = (channels, (frames - 1) // 4 + 1, height // factor, width // factor)

        def drawn(stream: int, shape=shape, window=window) -> np.ndarray:
            return philox_normal(shape, asked.seed, window, stream)

        call = {
            "prompt_embeds": states[1:], "negative_prompt_embeds": states[:1], "height": height, "width": width,
            "num_frames": frames, "num_inference_steps": asked.steps, "guidance_scale": asked.guidance,
            "latents": torch.from_numpy(drawn(MOTION))[None],
        }  # fmt: skip
        if image is None:
            pipeline = WanPipeline(**parts, **options)
        else:
            pipeline = WanImageToVideoPipeline(**parts, **options)
            call["image"] = image
            if asked.last is not None and window == len(asked.frames) - 1:
                call["last_image"] = Image.fromarray(asked.last)
        pipeline.set_progress_bar_config(disable=True)
        with torch.no_grad(), fresh_noise(lambda step, drawn=drawn: drawn(FRESH + step)):
            latents = pipeline(**call, output_type="latent").frames
            mean, std = (
                torch.tensor(getattr(pipeline.vae.config, name)).view(1, -1, 1, 1, 1)
                for name in ("latents_mean", "latents_std")
            )
            pixels = pipeline.vae.decode(latents * std + mean, return_dict=False)[0]
        all_latents.append(latents[0].numpy())
        made = pipeline.video_processor.postprocess_video(pixels, output_type="np")[0]
        shown.append(made[1:] if window else made)
        image = torch.from_numpy(made[-1]).permute(2, 0, 1)[None]
    return all_latents, np.concatenate(shown)


def loaded(checkpoint: Path, renoised: bool) -> dict:
    """Return the components of both pipelines in float32."""
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
    from transformers import AutoTokenizer, UMT5EncoderModel

    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(
        checkpoint, subfolder="scheduler", stochastic_sampling=renoised
    )
    return {
        "tokenizer": AutoTokenizer.from_pretrained(checkpoint / "tokenizer"),
        "text_encoder": UMT5EncoderModel.from_pretrained(checkpoint / "text_encoder"),
        "vae": AutoencoderKLWan.from_pretrained(checkpoint / "vae"),
        "scheduler": scheduler,
        **{
            name: WanTransformer3DModel.from_pretrained(checkpoint / name)
            for name in ("transformer", "transformer_2")
            if (checkpoint / name).is_dir()
        },
    }


def encoded(checkpoint: Path, prompts: list[str]) -> torch.Tensor:
    """Return the states of prompts as diffusers' pipeline has them, without the package ftfy."""
    from segue.training.video.text import Umt5Conditioner

    length = json.loads((checkpoint / "segue.json").read_text())["video"]["text_tokens"]
    return Umt5Conditioner(checkpoint, length, torch.device("cpu"))(prompts)

"""The oracle: run the same request through diffusers' own pipeline and through the exported bundle.

Both get the same initial latents, prompts, steps and guidance. diffusers computes in float32, from the bundle's own
weight files, whatever the bundle's precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UsageError
from ...runtime.bundle.families import family_of
from ...runtime.bundle.manifest import Manifest
from ...runtime.diagnostics.difference import psnr, relative_l2
from ...runtime.notices import silent
from ...runtime.pipeline import open_model
from ...runtime.request import Request
from ...runtime.sampling.noise import philox_normal
from ..checkpoint.lora.merge import PATCH
from ..checkpoint.read import read_index
from ..checkpoint.single.open import plain_checkpoint
from ..families.registry import families, named


@dataclass(frozen=True)
class Case:
    """One request: steps on the default grid, or custom sigmas before the shift."""

    prompt: str
    size: tuple[int, int]
    guidance: float
    steps: int | None = None
    sigmas: tuple[float, ...] | None = None
    negative: str = ""


@dataclass(frozen=True)
class Difference:
    """How far the bundle's result is from diffusers': relative L2 of the final latents, PSNR of the pictures in dB."""

    case: Case
    latents: float
    psnr: float


def compare(bundle: Path, cases: Sequence[Case], threads: int | None = None) -> Iterator[Difference]:
    """Yield the difference of each case; `bundle` is a bundle directory, which diffusers loads as a checkpoint."""
    import torch

    if any(bundle.glob(f"*/{PATCH}")):
        raise UsageError(f"{bundle} has merged LoRA files, which diffusers would leave out. Compare one without.")
    with open_model(bundle, threads) as model, torch.no_grad():
        with plain_checkpoint(bundle, model.bundle.manifest.provenance.single_file) as plain:
            pipeline = load_pipeline(plain)
        manifest = model.bundle.manifest
        for seed, case in enumerate(cases):
            height, width = (side // manifest.latents.factor for side in case.size)
            noise = philox_normal((manifest.latents.channels, height, width), seed, image=0)[None]
            request = Request(
                case.prompt,
                case.negative,
                steps=case.steps,
                guidance=case.guidance,
                size=case.size,
                sigmas=case.sigmas,
                latents=noise,
            )
            with silent():
                ours = model.render(request)
            latents = _latents(pipeline, manifest, case, torch.from_numpy(noise.copy()))
            if hasattr(pipeline, "_patchify_latents"):  # FLUX.2's, whose latents come back as its decoder takes them
                latents, scaled = _normalised(pipeline, latents), latents
            else:
                scaled = latents / pipeline.vae.config.scaling_factor + (pipeline.vae.config.shift_factor or 0)
            decoded = pipeline.vae.decode(scaled, return_dict=False)[0]
            picture = np.asarray(pipeline.image_processor.postprocess(decoded, output_type="pil")[0])
            yield Difference(case, relative_l2(ours.latents, latents.numpy()), psnr(ours.images[0], picture))


def _latents(pipeline: Any, manifest: Manifest, case: Case, noise: Any) -> Any:
    """Return the final latents of diffusers' pipeline, [1, channels, height, width]."""
    options: dict[str, Any] = {"sigmas": list(case.sigmas)} if case.sigmas else {}
    height, width = case.size
    normalises = hasattr(pipeline, "_patchify_latents")
    packs = hasattr(pipeline, "_pack_latents") and not normalises  # LongCat-Image's does
    family = named(manifest.family)
    if family_of(manifest).zero_tokens:
        options["max_sequence_length"] = manifest.t5_tokens
    if packs:
        options["enable_prompt_rewrite"] = False  # a language model, which does not draw
        noise = pipeline._pack_latents(noise, *noise.shape)
    if not normalises:  # FLUX.2's negative prompt is always empty
        options["negative_prompt"] = case.negative or (None if manifest.zero_negative else "")
    latents = pipeline(
        prompt=case.prompt,
        height=height,
        width=width,
        num_inference_steps=case.steps or len(case.sigmas or ()),
        guidance_scale=max(case.guidance - 1 + family.guided_above, 0),
        latents=noise,
        output_type="latent",
        **options,
    ).images
    if packs:
        latents = pipeline._unpack_latents(latents, height, width, manifest.latents.factor)
    return latents


def _normalised(pipeline: Any, latents: Any) -> Any:
    """Return latents of FLUX.2's autoencoder as squares, normalised, which its denoiser works on."""
    of = pipeline.vae
    mean, variance = (part[None, :, None, None] for part in (of.bn.running_mean, of.bn.running_var))
    return (pipeline._patchify_latents(latents) - mean) / (variance + of.config.batch_norm_eps).sqrt()


def load_pipeline(checkpoint: Path) -> Any:
    """Return diffusers' own pipeline over a checkpoint or bundle directory, in float32, without progress bars."""
    import diffusers
    import torch

    name = str(read_index(checkpoint)["_class_name"])
    family = families().get(name)
    optional = family.row.drops if family else ()
    pipeline = getattr(diffusers, name).from_pretrained(
        checkpoint,
        **{part: None for part in optional if not (checkpoint / part).is_dir()},
        torch_dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline

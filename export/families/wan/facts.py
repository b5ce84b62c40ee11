"""Check a SwiftI2V checkpoint, and read its two samplers, latents, sizes and segments.

It is a checkpoint of WanImageToVideoPipeline (Stage I) with two more components: `detail_transformer` and `detail_vae`
(Stage II). diffusers loads only Stage I from it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ....errors import CheckpointError
from ....runtime.bundle.families import SECOND_EXPERT
from ....runtime.bundle.limits import MAX_SIDE
from ....runtime.bundle.manifest import Latents, Motion, Sizes, Video
from ....runtime.bundle.segments import latent_frames
from ....runtime.sampling.motion import BOUNDARY
from ...checkpoint.read import Checkpoint
from ..base import Facts
from ..checks import class_of, unusable
from ..sampler import FLOW_SCHEDULERS, flow_sampler, plain_shift, scheduler_of

PIPELINE = "WanImageToVideoPipeline"
FOLDERS = ("text_encoder", "transformer", "vae", "detail_transformer", "detail_vae")
CLASSES = {
    "text_encoder": ("UMT5EncoderModel",),
    "tokenizer": ("T5Tokenizer", "T5TokenizerFast"),
    "transformer": ("WanTransformer3DModel",),
    "vae": ("AutoencoderKLWan",),
    "detail_transformer": ("WanTransformer3DModel", "SegmentTransformer"),
    "detail_vae": ("AutoencoderKLWan",),
    "scheduler": FLOW_SCHEDULERS,
}
STAGE_II = ("detail_transformer", "detail_vae")
TRAIN = "Train a Stage II for it, as docs/guide/train.md shows, and export what that writes."
MASK = 4  # channels of Stage I's input that mark the given frames


def check(index: dict[str, Any]) -> None:
    """Raise CheckpointError unless `index`, a model_index.json, is of Wan's image-to-video pipeline with Stage II."""
    for name, wanted in CLASSES.items():
        found = class_of(index, name)
        if found is None and name in STAGE_II:
            raise CheckpointError(
                f"The checkpoint has no {name}: it is Wan's image to video alone, without Stage II. {TRAIN}"
            )
        if found not in wanted:
            raise CheckpointError(
                f"model_index.json gives {name} as {found!r}; SwiftI2V needs {wanted[0]}. Choose a checkpoint with "
                "both stages, as segue train writes it (docs/design/swifti2v.md)."
            )
    second = class_of(index, SECOND_EXPERT)
    if second not in (None, "WanTransformer3DModel"):
        raise CheckpointError(
            f"model_index.json gives {SECOND_EXPERT} as {second!r}; SwiftI2V needs WanTransformer3DModel, or none. "
            "Choose a checkpoint with that class."
        )
    if second is not None and index.get("boundary_ratio") != BOUNDARY:
        raise CheckpointError(
            f"model_index.json has boundary_ratio {index.get('boundary_ratio')!r}; the runtime changes from one expert "
            f"to the other at {BOUNDARY}. Choose a checkpoint with that ratio."
        )
    if class_of(index, "image_encoder") is not None:
        raise CheckpointError(
            "The checkpoint has an image_encoder, as Wan 2.1's image-to-video does; Segue exports Wan 2.2's, which has "
            "none. Choose a checkpoint of Wan 2.2."
        )


def facts(found: Checkpoint) -> Facts:
    """Return the samplers, latents, sizes and segments of a checkpoint.

    Raises CheckpointError for a scheduler that the runtime does not support, and for widths that do not fit.
    """
    settings, video = found.settings, found.settings.video
    scheduler = scheduler_of(found)
    plain_shift(scheduler)
    sampler = flow_sampler(settings, scheduler)
    if sampler.guidance > 1:
        raise CheckpointError(f"guidance is {sampler.guidance:g}, but Stage II runs without guidance. Give 1.")
    try:
        motion, detail = (found.parts[name].config for name in ("transformer", "detail_transformer"))
        vae, detail_vae = (found.parts[name].config for name in ("vae", "detail_vae"))
        experts = [name for name in ("transformer", SECOND_EXPERT) if name in found.parts]
        for name in experts:
            _fit(name, found.parts[name].config, "in_channels", 2 * vae["z_dim"] + MASK)
            _fit(name, found.parts[name].config, "out_channels", vae["z_dim"])
        if detail["in_channels"] == detail_vae["z_dim"]:
            raise CheckpointError(
                f"detail_transformer/config.json has in_channels {detail['in_channels']}, as a plain Wan transformer "
                f"has. Stage II needs {2 * detail_vae['z_dim']}, because it also sees the low video: it was never "
                f"widened. {TRAIN}"
            )
        _fit("detail_transformer", detail, "in_channels", 2 * detail_vae["z_dim"])
        _fit("detail_transformer", detail, "out_channels", detail_vae["z_dim"])
        for name in (*experts, "detail_transformer"):
            config = found.parts[name].config
            _fit(name, config, "text_dim", found.parts["text_encoder"].config["d_model"])
            if config["rope_max_seq_len"] < latent_frames(video.frames):
                raise CheckpointError(
                    f"{name}/config.json has rope_max_seq_len {config['rope_max_seq_len']}, below the "
                    f"{latent_frames(video.frames)} latent frames of a window. Lower frames in segue.json."
                )
        low = Motion(
            vae["z_dim"], factor(vae), motion["patch_size"][1], *_normal(vae),
            dataclasses.replace(
                sampler, steps=video.motion_steps, guidance=float(video.motion_guidance), sigmas=video.motion_sigmas
            ),
        )  # fmt: skip
        latents = Latents(detail_vae["z_dim"], factor(detail_vae), detail["patch_size"][1], 1.0, 0.0)
        multiple = math.lcm(latents.factor * latents.patch, video.scale * low.factor * low.patch)
        rows = min(
            detail["rope_max_seq_len"] * latents.factor * latents.patch,
            motion["rope_max_seq_len"] * video.scale * low.factor * low.patch,
        )
        maximum = min(settings.maximum_size or MAX_SIDE, rows, MAX_SIDE) // multiple * multiple
    except (KeyError, TypeError, ValueError, ArithmeticError, IndexError) as error:
        raise unusable(error) from None
    return Facts(
        sampler=dataclasses.replace(sampler, guidance=1.0),
        latents=latents,
        sizes=Sizes(video.size, min(multiple, *video.size), maximum, multiple),
        video=Video(
            video.frames, float(video.fps), video.scale, video.targets, video.before, video.after,
            *_normal(detail_vae), low,
        ),
    )  # fmt: skip


def factor(vae: dict[str, Any]) -> int:
    """Return the pixels of a frame's side per latent."""
    return int(2 ** (len(vae["dim_mult"]) - 1) * (vae.get("patch_size") or 1))


def _normal(vae: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(map(float, vae["latents_mean"])), tuple(map(float, vae["latents_std"]))


def _fit(name: str, config: dict[str, Any], key: str, need: int) -> None:
    if config[key] != need:
        raise CheckpointError(
            f"{name}/config.json has {key} {config[key]}; the other parts need {need}. These parts do not belong "
            "together; fetch the checkpoint again."
        )

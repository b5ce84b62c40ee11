"""Check a SwiftI2V checkpoint, and read its two samplers, latents, sizes and segments.

It is a checkpoint of WanImageToVideoPipeline (Stage I) with two more components: `detail_transformer` and `detail_vae`
(Stage II). diffusers loads only Stage I from it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ....errors import CheckpointError
from ....runtime.bundle.families import DETAIL, DETAIL_VAE, SECOND_EXPERT
from ....runtime.bundle.limits import MAX_SIDE
from ....runtime.bundle.manifest import Detail, Latents, Motion, Sizes, Video
from ...checkpoint.read import Checkpoint
from ..base import Facts
from ..checks import class_of, unusable
from ..sampler import flow_sampler, plain_shift, scheduler_of
from ..wan import facts as wan

PIPELINES = (wan.IMAGE_TO_VIDEO,)
STAGE_II = {DETAIL: (wan.TRANSFORMER, "SegmentTransformer"), DETAIL_VAE: ("AutoencoderKLWan",)}
FOLDERS = (*wan.FOLDERS, *STAGE_II)
TRAIN = "Train a Stage II for it, as docs/guide/train.md shows, and export what that writes."
USUAL = {
    "frames": 81, "fps": 16.0, "size": (1408, 2560), "scale": 4, "targets": 3, "before": 1, "after": 0,
    "motion_steps": 4, "motion_guidance": 1.0,
}  # fmt: skip


def holds(index: Mapping[str, Any]) -> bool:
    """Return whether a model_index.json of one of PIPELINES is of this family: it names a part of Stage II."""
    return any(class_of(dict(index), name) is not None for name in STAGE_II)


def check(index: dict[str, Any]) -> None:
    """Raise CheckpointError unless `index`, a model_index.json, is of Wan's image-to-video pipeline with Stage II."""
    for name in STAGE_II:
        if class_of(index, name) is None:
            raise CheckpointError(f"The checkpoint has no {name}, so its Stage II is not whole. {TRAIN}")
    second = {SECOND_EXPERT: (wan.TRANSFORMER,)} if class_of(index, SECOND_EXPERT) is not None else {}
    advice = "Choose a checkpoint with both stages, as segue train writes it (docs/design/swifti2v.md)."
    wan.check_images(index)
    wan.check_classes(index, wan.CLASSES | STAGE_II | second, "SwiftI2V", advice)


def facts(found: Checkpoint) -> Facts:
    """Return the samplers, latents, sizes and segments of a checkpoint.

    Raises CheckpointError for a scheduler that the runtime does not support, and for widths that do not fit.
    """
    settings, video = found.settings, wan.stated(found.settings.video, USUAL)
    scheduler = scheduler_of(found)
    plain_shift(scheduler)
    sampler = flow_sampler(settings, scheduler)
    if sampler.guidance > 1:
        raise CheckpointError(f"guidance is {sampler.guidance:g}, but Stage II runs without guidance. Give 1.")
    try:
        motion, detail = (found.parts[name].config for name in ("transformer", DETAIL))
        vae, detail_vae = (found.parts[name].config for name in ("vae", DETAIL_VAE))
        experts = [name for name in ("transformer", SECOND_EXPERT) if name in found.parts]
        for name in experts:
            wan.fit_transformer(found, name, 2 * vae["z_dim"] + wan.MASK, vae["z_dim"], video["frames"])
        if detail["in_channels"] == detail_vae["z_dim"]:
            raise CheckpointError(
                f"detail_transformer/config.json has in_channels {detail['in_channels']}, as a plain Wan transformer "
                f"has. Stage II needs {2 * detail_vae['z_dim']}, because it also sees the low video: it was never "
                f"widened. {TRAIN}"
            )
        wan.fit_transformer(found, DETAIL, 2 * detail_vae["z_dim"], detail_vae["z_dim"], video["frames"])
        low = Motion(
            vae["z_dim"], wan.factor(vae), motion["patch_size"][1], *wan.normal(vae),
            dataclasses.replace(
                sampler, steps=video["motion_steps"], guidance=float(video["motion_guidance"]),
                sigmas=video["motion_sigmas"],
            ),
            wan.boundary_of(found.index, experts),
        )  # fmt: skip
        latents = Latents(detail_vae["z_dim"], wan.factor(detail_vae), detail["patch_size"][1], 1.0, 0.0)
        multiple = math.lcm(latents.factor * latents.patch, video["scale"] * low.factor * low.patch)
        rows = min(
            detail["rope_max_seq_len"] * latents.factor * latents.patch,
            motion["rope_max_seq_len"] * video["scale"] * low.factor * low.patch,
        )
        maximum = min(settings.maximum_size or MAX_SIDE, rows, MAX_SIDE) // multiple * multiple
    except (KeyError, TypeError, ValueError, ArithmeticError, IndexError) as error:
        raise unusable(error) from None
    return Facts(
        sampler=dataclasses.replace(sampler, guidance=1.0),
        latents=latents,
        sizes=Sizes(video["size"], min(multiple, *video["size"]), maximum, multiple),
        video=Video(
            video["frames"], float(video["fps"]), video["scale"], low, "mask",
            Detail(video["targets"], video["before"], video["after"], *wan.normal(detail_vae)),
        ),
    )  # fmt: skip

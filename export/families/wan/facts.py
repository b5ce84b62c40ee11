"""What the families of Wan read from a checkpoint: classes, latents, and all facts of a video of one stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ....errors import CheckpointError
from ....runtime.bundle.families import SECOND_EXPERT
from ....runtime.bundle.limits import MAX_SIDE
from ....runtime.bundle.manifest import Latents, Motion, Sampler, Sizes, Video
from ....runtime.bundle.segments import latent_frames
from ....runtime.sampling.motion import BOUNDARY
from ...checkpoint.read import Checkpoint, VideoSettings
from ..base import Facts
from ..checks import class_of, unusable
from ..sampler import FLOW_SCHEDULERS, flow_sampler, plain_shift, scheduler_of

IMAGE_TO_VIDEO, TEXT_TO_VIDEO = "WanImageToVideoPipeline", "WanPipeline"
TRANSFORMER = "WanTransformer3DModel"
FOLDERS = ("text_encoder", "transformer", "vae")
CLASSES = {
    "text_encoder": ("UMT5EncoderModel",),
    "tokenizer": ("T5Tokenizer", "T5TokenizerFast"),
    "transformer": (TRANSFORMER,),
    "vae": ("AutoencoderKLWan",),
    "scheduler": FLOW_SCHEDULERS,
}
MASK = 4  # channels of Stage I's input that mark the given frames
OF_STAGE_TWO = ("scale", "targets", "before", "after", "motion_steps", "motion_guidance", "motion_sigmas")
OF_IMAGES = ("image_embedder", "add_k_proj")  # in the names of weights that read a picture through CLIP
FEW = 8  # steps: a network that takes more is not a few-step student


def check_classes(index: Mapping[str, Any], classes: Mapping[str, tuple[str, ...]], model: str, advice: str) -> None:
    """Raise CheckpointError unless `index`, a model_index.json, gives each component of `model` one of its classes."""
    for name, wanted in classes.items():
        found = class_of(dict(index), name)
        if found not in wanted:
            raise CheckpointError(f"model_index.json gives {name} as {found!r}; {model} needs {wanted[0]}. {advice}")


def check_images(index: Mapping[str, Any]) -> None:
    """Raise CheckpointError for a pipeline that reads the picture through an image encoder."""
    if class_of(dict(index), "image_encoder") is not None:
        raise CheckpointError(
            "The checkpoint has an image_encoder, as Wan 2.1's image-to-video does; Segue exports Wan 2.2's, which has "
            "none. Choose a checkpoint of Wan 2.2."
        )


def stated(settings: VideoSettings, usual: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a video in segue.json, with the values of `usual` where it says nothing."""
    own = {name: value for name, value in dataclasses.asdict(settings).items() if value is not None}
    return {**usual, **own}


def one_stage(found: Checkpoint, given: str, usual: Mapping[str, Any]) -> Facts:
    """Return the facts of a checkpoint of one stage; `given` is that of `Video`, `usual` its sizes if none are stated.

    Raises CheckpointError for a scheduler that the runtime does not support, for widths that do not fit, and for keys
    of segue.json that belong to two stages.
    """
    settings = found.settings
    for name in OF_STAGE_TWO:
        if getattr(settings.video, name) not in (None, ()):
            raise CheckpointError(
                f"segue.json sets {name} of a video, which belongs to two stages; this checkpoint has one. Remove it. "
                "The keys steps, guidance and sigmas beside the table video set the sampler."
            )
    video = stated(settings.video, usual)
    scheduler = scheduler_of(found)
    plain_shift(scheduler)
    sampler = dataclasses.replace(flow_sampler(settings, scheduler), grid=scheduler["grid"])
    try:
        vae = found.parts["vae"].config
        wide, mask = vae["z_dim"], 0 if given == "first" else MASK + vae["z_dim"]
        experts = [name for name in ("transformer", SECOND_EXPERT) if name in found.parts]
        for name in experts:
            fit_transformer(found, name, wide + mask, wide, video["frames"])
            check_no_images(found, name)
        config = found.parts["transformer"].config
        motion = Motion(
            wide, factor(vae), config["patch_size"][1], *normal(vae), sampler, boundary_of(found.index, experts)
        )
        latents = Latents(motion.channels, motion.factor, motion.patch, 1.0, 0.0)
        multiple = latents.factor * latents.patch
        rows = config["rope_max_seq_len"] * multiple
        maximum = min(settings.maximum_size or MAX_SIDE, rows, MAX_SIDE) // multiple * multiple
    except (KeyError, TypeError, ValueError, ArithmeticError, IndexError) as error:
        raise unusable(error) from None
    return Facts(
        sampler=sampler,
        latents=latents,
        sizes=Sizes(video["size"], min(multiple, *video["size"]), maximum, multiple),
        video=Video(video["frames"], float(video["fps"]), 1, motion, given),
        notes=_of_solver(sampler),
    )


def boundary_of(index: Mapping[str, Any], experts: list[str]) -> float:
    """Return the share of the timesteps at which two experts change; raises CheckpointError if it is not stated."""
    if len(experts) == 1:
        return BOUNDARY
    boundary = index.get("boundary_ratio")
    if not isinstance(boundary, float) or not 0 < boundary < 1:
        raise CheckpointError(
            f"model_index.json has boundary_ratio {str(boundary)[:40]}, which must be a number between 0 and 1 for two "
            "transformers. Fetch the file again."
        )
    return boundary


def fit_transformer(found: Checkpoint, name: str, taken: int, given: int, frames: int) -> None:
    """Raise CheckpointError unless a transformer has these channels, the text's width and room for a window."""
    config = found.parts[name].config
    fit(name, config, "in_channels", taken)
    fit(name, config, "out_channels", given)
    fit(name, config, "text_dim", found.parts["text_encoder"].config["d_model"])
    if config["rope_max_seq_len"] < latent_frames(frames):
        raise CheckpointError(
            f"{name}/config.json has rope_max_seq_len {config['rope_max_seq_len']}, below the "
            f"{latent_frames(frames)} latent frames of a window. Lower frames in segue.json."
        )


def check_no_images(found: Checkpoint, name: str) -> None:
    """Raise CheckpointError for a transformer with weights that read a picture through CLIP, as Wan 2.1's has."""
    seen = [tensor for tensor in found.parts[name].tensors if any(part in tensor for part in OF_IMAGES)]
    if seen:
        raise CheckpointError(
            f"{name} has the weight {seen[0]!r}, which reads a picture through an image encoder, as Wan 2.1 does. "
            "Choose a checkpoint of Wan 2.2."
        )


def fit(name: str, config: Mapping[str, Any], key: str, need: int) -> None:
    """Raise CheckpointError unless a setting of NAME/config.json has the value that the other parts need."""
    if config[key] != need:
        raise CheckpointError(
            f"{name}/config.json has {key} {config[key]}; the other parts need {need}. These parts do not belong "
            "together; fetch the checkpoint again."
        )


def factor(vae: Mapping[str, Any]) -> int:
    """Return the pixels of a frame's side per latent."""
    return int(2 ** (len(vae["dim_mult"]) - 1) * (vae.get("patch_size") or 1))


def normal(vae: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of each channel of the latents."""
    return tuple(map(float, vae["latents_mean"])), tuple(map(float, vae["latents_std"]))


def _of_solver(sampler: Sampler) -> tuple[str, ...]:
    """Return a remark if the checkpoint's solver takes other steps than Segue does at the same levels."""
    if sampler.grid != "unipc" or sampler.steps <= FEW:
        return ()
    return (
        f"the scheduler is UniPC, and Segue takes Euler steps at its levels: right for a few-step student, and for "
        f"{sampler.steps} steps a little less exact than UniPC's steps of second order",
    )

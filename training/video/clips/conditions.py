"""Conditions for the distillation of SwiftI2V's stages: windows of clips and their texts, on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....errors import TrainingError
from ....runtime.bundle.segments import SegmentSpec, count_segments, segment
from ....runtime.storage.directory import NewDirectory
from ...cdm.data.conditions import write_rows
from ...cdm.families import Condition
from ...cdm.names import MOTION
from ..text import Umt5Conditioner
from .dataset import Clips
from .latents import cached_windows
from .places import places
from .references import ReferenceSpec, cached_references

EACH = 2  # windows of each clip, drawn and varied


def encode_clips(checkpoint: Path, family: str, data: Path, out: Path, progress: Callable[[int, int], None]) -> int:
    """Write the conditions of a stage of `checkpoint` for the clips in `data`. Return the number of windows.

    Stage I's conditions are the image's latents. Stage II's are context, motion reference and positions of segments,
    with one kind for each place in the clip. A cache beside the clips keeps the latents. `progress` takes the numbers
    of finished and of all windows, for each kind.
    """
    said = _video(checkpoint)
    clips = Clips(data)
    text = Umt5Conditioner(checkpoint, said["text_tokens"], clips.device)
    common = said["frames"], said["scale"]
    with NewDirectory(out) as new:
        if family == MOTION:
            images = cached_windows(clips, checkpoint, *common, EACH, True, image=True).latents
            kinds = [(new.path, {"image": images}, tuple(images.shape[1:]))]
        else:
            windows = cached_windows(clips, checkpoint, said["frames"], 1, EACH, True, part="detail_vae")
            made = ReferenceSpec(str(checkpoint))
            reference = cached_references(
                clips, checkpoint, *common, EACH, True, said["text_tokens"], made, 0, part="detail_vae"
            )
            spec = SegmentSpec(said["targets"], said["before"], said["after"])
            kinds = [
                (new.path / f"kind-{index}", *_segment(windows.latents, reference, spec, index))
                for index in range(count_segments(reference.shape[2], spec))
            ]
        where = places(clips, EACH, True)
        names = where.names(clips, torch.arange(len(where)))
        empty = {"states": text([""])}
        for folder, tensors, shape in kinds:
            folder.mkdir(exist_ok=True)

            def make(rows: range, tensors: dict[str, Tensor] = tensors) -> Condition:
                here = list(rows)
                return {"states": text([names[i] for i in here])} | {name: t[here] for name, t in tensors.items()}

            write_rows(folder, names, make, empty, 1024, 32, progress, shape)
        new.commit()
    return len(names)


def _segment(
    clean: Tensor, reference: Tensor, spec: SegmentSpec, index: int
) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """Return a segment's conditions in every window, and the shape of its targets."""
    count, channels, frames, height, width = clean.shape
    part = segment(index, frames, spec)
    found = {
        "context": clean[:, :, [0, *part.before]],
        "reference": reference[:, :, list(part.reference)],
        "positions": torch.tensor(part.frames).expand(count, -1),
    }
    return found, (channels, len(part.targets), height, width)


def _video(checkpoint: Path) -> dict[str, Any]:
    try:
        return json.loads((checkpoint / "segue.json").read_text())["video"]
    except (OSError, ValueError, KeyError) as error:
        raise TrainingError(
            f"{checkpoint}/segue.json has no video settings ({type(error).__name__} while reading). Name a "
            "checkpoint that segue train wrote for [motion] or [detail]."
        ) from None

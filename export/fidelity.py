"""What a precision costs, in pictures: a bundle beside one of more precision, from the same noise."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ParityError
from ..runtime import manifest, memory
from ..runtime.differences import psnr
from ..runtime.pipeline import open_model
from ..runtime.request import Request
from .parity import BASE_BYTES, BYTES_PER_PARAMETER

if TYPE_CHECKING:
    from .lora import Lora

PROMPTS = ("a red heart", "a dog", "pizza", "a house with a garden", "the moon", "a green tree", "a ship", "a clock")
GATES = {"fp16": 35.0, "bf16": 20.0}  # dB, of pictures beside the checkpoint's in fp32
FULL = "the checkpoint in fp32"
MOST = 100.0  # dB, of equal pictures


def near(before: Path, after: Path, prompts: Sequence[str], told: Callable[[int], None] = lambda done: None) -> float:
    """Return the PSNR in dB of pictures of both bundles from the same noise, over all pixels; at most MOST."""
    drawn = []
    for number, path in enumerate((before, after)):
        with open_model(path) as model:
            pictures = []
            for done, picture in enumerate(model.pictures(Request(list(prompts)))):
                pictures.append(picture.image)
                if number:
                    told(done)
            drawn.append(np.stack(pictures))
    return min(psnr(drawn[1], drawn[0]), MOST)


def beside_full(
    source: Path, made: Path, content: manifest.Manifest, precision: str, loras: Sequence[Lora], pictures: int = 2
) -> manifest.Fidelity | None:
    """Return how near the pictures of the bundle at `made` are to those of its checkpoint `source` in fp32.

    Both run on the processor, so bf16 by a twin in fp32 that has the weights of bf16. None for bundles of videos and
    where memory does not do. Raises ParityError below the gate.
    """
    from .export import export

    parameters = sum(component.parameters for component in content.components.values())
    if content.video is not None or memory.available() < BASE_BYTES + parameters * BYTES_PER_PARAMETER["fp32"]:
        return None
    with tempfile.TemporaryDirectory(dir=made) as scratch:
        full, drawn = Path(scratch) / "full", made
        export(source, full, precision="fp32", parity=False, loras=loras)
        if precision == "bf16":
            drawn = Path(scratch) / "twin"
            export(made, drawn, precision="fp32", parity=False, loras=loras)
        found = near(full, drawn, PROMPTS[:pictures])
    if found < GATES[precision]:
        raise ParityError(
            f"No bundle was made: pictures in {precision} are at {found:.1f} dB to those in fp32, below the gate of "
            f"{GATES[precision]:g}. Export with --precision fp32, or without the check: --no-parity."
        )
    return manifest.Fidelity(FULL, pictures, found, GATES[precision])

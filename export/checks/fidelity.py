"""Compare the pictures or frames of a bundle with those of its weights in fp32, from the same noise."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import ParityError
from ...runtime.bundle import manifest
from ...runtime.bundle.segments import COMPRESSION
from ...runtime.diagnostics.difference import psnr
from ...runtime.media.read_image import test_pattern
from ...runtime.notices import silent
from ...runtime.pipeline import Model, open_model
from ...runtime.planning import memory
from ...runtime.request import Request
from ...runtime.videos.request import AnimationRequest
from .parity import BASE_BYTES, BYTES_PER_PARAMETER

if TYPE_CHECKING:
    from ..checkpoint.lora.read import Lora

PROMPTS = ("a red heart", "a dog", "pizza", "a house with a garden", "the moon", "a green tree", "a ship", "a clock")
GATES = {"fp16": 35.0, "bf16": 20.0}  # dB, of pictures compared with the checkpoint's in fp32
FULL = "the checkpoint in fp32"
MOST = 100.0  # dB, of equal pictures


def near(before: Path, after: Path, prompts: Sequence[str], report: Callable[[int], None] = lambda n: None) -> float:
    """Return the PSNR in dB between the pictures of two bundles from the same noise, over all pixels; at most MOST.

    A video bundle makes a short clip of each prompt instead: one segment at the smallest size, all stages. `report`
    gets the number of pictures or clips that `after` has drawn so far.
    """
    drawn = []
    for number, path in enumerate((before, after)):
        with open_model(path) as model, silent():
            pictures = []
            for done, picture in enumerate(_drawn(model, prompts)):
                pictures.append(picture)
                if number:
                    report(done)
            drawn.append(np.stack(pictures))
    return min(psnr(drawn[1], drawn[0]), MOST)


def beside_full(
    source: Path, made: Path, content: manifest.Manifest, loras: Sequence[Lora] = (), pictures: int = 2,
    note: Callable[[str], None] = lambda text: None,
) -> manifest.Fidelity | None:  # fmt: skip
    """Compare the pictures of the bundle at `made` with those of its checkpoint `source` in fp32.

    Both run on the processor; a bf16 bundle runs as an fp32 copy of its bf16 weights. Returns None for a bundle in
    fp32 (its weights keep all their bits), without enough memory, and for weights that came in bf16 (nothing was
    rounded). `note` gets the last two reasons. Raises ParityError below the gate.
    """
    kinds = {component.precision for component in content.components.values()}
    precision = next((kind for kind in ("bf16", "fp16") if kind in kinds), None)
    parameters = sum(component.parameters for component in content.components.values())
    if precision is None:
        return None
    if memory.available() < BASE_BYTES + parameters * BYTES_PER_PARAMETER["fp32"]:
        note(f"the pictures in {precision} are not compared with fp32: not enough memory")
        return None
    from .fp32_twin import write_bundle

    with tempfile.TemporaryDirectory(dir=made) as scratch:
        full, drawn = write_bundle(made, content, Path(scratch) / "full", source, loras), made
        if precision == "bf16":
            drawn = write_bundle(made, content, Path(scratch) / "twin")
        found = near(full, drawn, PROMPTS[:pictures])
    if precision == "bf16" and found == MOST:
        note("the pictures in bf16 are not compared with fp32: the weights came in bf16, which no processor runs")
        return None
    if found < GATES[precision]:
        raise ParityError(
            f"No bundle was made: pictures in {precision} have {found:.1f} dB compared with fp32, below the gate of "
            f"{GATES[precision]:g}. Export with --precision fp32, or without the check: --no-parity."
        )
    return manifest.Fidelity(FULL, pictures, found, GATES[precision])


def _drawn(model: Model, prompts: Sequence[str]) -> Iterator[np.ndarray]:
    """Yield a picture of each prompt, or the frames of a clip [frames, height, width, 3], uint8."""
    content = model.bundle.manifest
    if content.video is None:
        yield from (picture.image for picture in model.pictures(Request(list(prompts))))
        return
    sizes, detail = content.sizes, content.video.detail
    segment = 1 if detail is None else detail.targets
    side = -(-sizes.minimum // sizes.multiple) * sizes.multiple
    for seed, prompt in enumerate(prompts):
        request = AnimationRequest(
            test_pattern(side, side), prompt, frames=COMPRESSION * segment + 1, seed=seed, size=side
        )
        yield np.concatenate(list(model.frames(request)))

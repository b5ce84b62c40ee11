"""Which precision each folder of a checkpoint gets: mixed files, and folders that overflow fp16."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ..errors import ParityError
from .checkpoint import read

WITHOUT = "Or export without the check: --no-parity."


def tell_mixed(found: read.Checkpoint, kinds: Mapping[str, str], note: Callable[[str], None]) -> None:
    """Tell `note` of each folder of `kinds`, the precisions of its graphs, whose tensors have several of them."""
    words = {**read.PRECISIONS, "F64": "fp64"}
    for folder, kind in kinds.items():
        if len(stored := read.dtypes(found.parts[folder])) > 1:
            note(f"{folder} holds {' and '.join(sorted(words[d] for d in stored))}; its graph computes in {kind}")


def in_fp32(
    found: read.Checkpoint, known: Sequence[str], kinds: Mapping[str, str], checked: bool, note: Callable[[str], None]
) -> dict[str, str]:
    """Return the folders that are written in fp32 because their activations overflow fp16, each with the reason.

    `known` overflow for sure. `kinds` are the precisions asked for. With `checked` the others are run, and `note` gets
    those that lack memory. Raises ParityError if the check fails.
    """
    islands = {
        folder: "its activations overflow fp16, and diffusers widens it as well"
        for folder in known
        if kinds[folder] == "fp16"
    }
    narrowed = {
        folder: sum(math.prod(tensor.shape) for tensor in part.tensors.values())
        for folder, part in found.parts.items()
        if kinds[folder] == "fp16" and folder not in islands and read.dtypes(part).keys() != {"F16"}
    }
    if not checked or not narrowed:
        return islands
    from .checks.fp16_overflow import overflowing

    try:
        overflow, left = overflowing(found.root, narrowed, found.single)
    except ParityError as error:
        raise ParityError(f"No bundle was made: the check for fp16 overflow failed. {error} {WITHOUT}") from None
    for folder in sorted(left):
        note(f"{folder}: not enough memory to check for fp16 overflow")
    return islands | overflow

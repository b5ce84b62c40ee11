"""Double the width of a Wan autoencoder without changing its result (Net2Net, Chen et al. 2016).

Every channel gets a copy, behind all originals. Norms over channels, shortcuts that average or repeat channels, and the
order of channels in space keep their meaning. A reader of two equal channels weighs them unequally, so that training
can separate the copies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import TrainingError

UNEQUAL = 0.25
"""How far the weights of two equal channels are drawn apart, in deviations of the layer's weights."""


@torch.no_grad()
def widen(narrow: Any, wide: Any, generator: torch.Generator) -> None:
    """Fill the AutoencoderKLWan `wide` so that it computes `narrow`. Encoder, decoder or both are twice as wide.

    Raises TrainingError if a layer has another width.
    """
    weights = narrow.state_dict()
    for name, target in wide.state_dict().items():
        source = weights.get(name)
        if source is None or not _fits(source.shape, target.shape):
            raise TrainingError(
                f"{name} has the shape {tuple(target.shape)} in the recipe and "
                f"{None if source is None else tuple(source.shape)} in its start. Give [codec] the widths "
                "of its start, or base or decoder_base twice as large."
            )
        target.copy_(_widened(name, source, target.shape, generator))


def _fits(narrow: torch.Size, wide: torch.Size) -> bool:
    return len(narrow) == len(wide) and all(b in (a, 2 * a) for a, b in zip(narrow, wide, strict=True))


def _widened(name: str, source: Tensor, shape: torch.Size, generator: torch.Generator) -> Tensor:
    made = source
    if shape[0] != source.shape[0]:
        # Queries, keys and values are consecutive, and so are the two frames made of one. Each has its own copies.
        parts = 3 if "to_qkv" in name else 2 if "upsampler" in name and "time_conv" in name else 1
        made = torch.cat([torch.cat([part, part]) for part in made.chunk(parts)])
        if parts == 3:
            made[: len(made) // 3] *= 0.5**0.5  # products of twice the channels, divided by a root of twice as many
    if source.ndim > 1 and shape[1] != source.shape[1]:
        apart = UNEQUAL * source.std() * torch.randn(made.shape, generator=generator)
        made = torch.cat([made / 2 + apart, made / 2 - apart], 1)
    return made

"""Make an autoencoder of Wan's structure twice as wide and have it compute the same (Net2Net, Chen et al. 2016).

Every channel is there twice, the copies behind the originals: norms over channels, the shortcuts that average or repeat
channels, and the order of channels in space keep their meaning. What reads two equal channels weighs them unequally, so
that training tells the copies apart.
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
    """Fill the AutoencoderKLWan `wide`, whose encoder, decoder or both are twice as wide, so that it is `narrow`.

    Raises TrainingError where a layer is neither as wide nor twice as wide.
    """
    weights = narrow.state_dict()
    for name, target in wide.state_dict().items():
        source = weights.get(name)
        if source is None or not _fits(source.shape, target.shape):
            raise TrainingError(
                f"{name} has the shape {tuple(target.shape)} in the recipe and "
                f"{None if source is None else tuple(source.shape)} in what it starts from. Give [codec] the widths of "
                "that, or base or decoder_base twice as large."
            )
        target.copy_(_widened(name, source, target.shape, generator))


def _fits(narrow: torch.Size, wide: torch.Size) -> bool:
    return len(narrow) == len(wide) and all(b in (a, 2 * a) for a, b in zip(narrow, wide, strict=True))


def _widened(name: str, source: Tensor, shape: torch.Size, generator: torch.Generator) -> Tensor:
    made = source
    if shape[0] != source.shape[0]:
        # Queries, keys and values, and the two frames that one becomes, lie one behind the other: each has its copies.
        parts = 3 if "to_qkv" in name else 2 if "upsampler" in name and "time_conv" in name else 1
        made = torch.cat([torch.cat([part, part]) for part in made.chunk(parts)])
        if parts == 3:
            made[: len(made) // 3] *= 0.5**0.5  # products of twice as many channels, divided by a root of twice as many
    if source.ndim > 1 and shape[1] != source.shape[1]:
        apart = UNEQUAL * source.std() * torch.randn(made.shape, generator=generator)
        made = torch.cat([made / 2 + apart, made / 2 - apart], 1)
    return made

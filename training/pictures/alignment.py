"""Representation alignment (REPA, Yu et al. 2025): a middle layer learns to predict features of the clean picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..loop.cached import Progress, parts, remembered, silent
from ..metrics.nets import Lite0
from .dataset import Pictures


class Alignment(nn.Module):
    """A head on one transformer block: from its image tokens to the clean picture's features at the same place.

    Only training uses it. `targets` are (N, tokens, features) of N pictures, one token for each patch, row by row.
    """

    def __init__(self, block: nn.Module, width: int, targets: torch.Tensor) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, targets.shape[-1]))
        self.targets = targets
        self.tokens = torch.empty(0)
        block.register_forward_hook(self._keep)

    def _keep(self, block: nn.Module, inputs: tuple, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.tokens = output[1]  # diffusers' joint blocks return the text's tokens, then the picture's

    def forward(self, chosen: torch.Tensor) -> torch.Tensor:
        """Return 1 - the mean cosine similarity of the block's last call, for the pictures `chosen`."""
        predicted = self.head(self.tokens).float()
        return 1 - F.cosine_similarity(predicted, self.targets[chosen].float(), dim=-1).mean()


def patch_features(pictures: Pictures, progress: Progress = silent) -> torch.Tensor:
    """Return Lite0's features (N, 64, 112) float16 of every 16 px patch, row by row, cached beside the data.

    Each feature has mean 0 and deviation 1 over the set. Raw features give cosines near 1 for any two patches.
    """

    @torch.no_grad()
    def measure() -> dict[str, torch.Tensor]:
        net = Lite0().to(pictures.device)
        indices = parts(len(pictures.rows), "features of patches", progress)
        maps = torch.cat([net.patches(pictures.on_white(part)).flatten(2).mT.cpu() for part in indices])
        mean, std = maps.mean((0, 1)), maps.std((0, 1))
        return {"features": ((maps - mean) / std).half()}

    path = pictures.table.with_name("lite0-patches.safetensors")
    return remembered(path, [pictures.table], measure)["features"].to(pictures.device)

"""Scores of generated pictures: distance of distributions, agreement with names, distance to the training set."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .nets import Lpips


def kid(real: torch.Tensor, made: torch.Tensor, subsets: int = 50, subset_size: int = 500) -> tuple[float, float]:
    """Return the kernel inception distance times 1e3 between Lite0 features (N, 1280), and its spread over subsets.

    Binkowski et al. 2018, with EfficientNet-Lite0 instead of Inception: comparable only with itself. Row i of both may
    be a picture and its reconstruction. The cross term therefore skips equal rows (Gretton et al. 2012, equation 4):
    they would push the distance below 0, the value of equal distributions. The spread of a single subset is 0.
    Raises ValueError if the numbers of rows differ, because a subset takes the same rows of both.
    """
    from torchmetrics.image.kid import poly_kernel

    if len(real) != len(made):
        raise ValueError(f"KID needs as many real rows as made ones, got {len(real)} and {len(made)}")
    generator = torch.Generator().manual_seed(0)
    size = min(subset_size, len(real))
    found = []
    for _ in range(subsets if size < len(real) else 1):
        rows = torch.randperm(len(real), generator=generator)[:size]
        x, y = real[rows].double(), made[rows].double()
        across = poly_kernel(x, y)
        terms = poly_kernel(x, x) + poly_kernel(y, y) - across - across.T
        found.append((terms.sum() - terms.trace()) / (size * (size - 1)))
    values = 1e3 * torch.stack(found)
    return values.mean().item(), values.std(correction=0).item()


def fit_retriever(features: torch.Tensor, embeddings: torch.Tensor, ridge: float = 1.0) -> torch.Tensor:
    """Return the ridge regression (1281, D) from Lite0 features (N, 1280) to name embeddings (N, D)."""
    x = torch.cat([F.normalize(features, dim=-1), torch.ones(len(features), 1)], -1).double()
    gram = x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(gram, x.T @ embeddings.double()).float()


def recall_at_10(retriever: torch.Tensor, features: torch.Tensor, embeddings: torch.Tensor, names: list[str]) -> float:
    """Return the share of pictures with their own name among the ten nearest distinct `names`.

    `embeddings` (N, D) belong to `names`, one for each picture. Equal names count once.
    """
    candidates = {name: i for i, name in enumerate(names)}
    order = list(candidates)
    target = torch.tensor([order.index(name) for name in names])
    predicted = torch.cat([F.normalize(features, dim=-1), torch.ones(len(features), 1)], -1) @ retriever
    similarity = F.normalize(predicted, dim=-1) @ F.normalize(embeddings[list(candidates.values())], dim=-1).T
    return (similarity.topk(min(10, len(order))).indices == target[:, None]).any(1).float().mean().item()


def nearest_lpips(
    made: torch.Tensor,
    made_features: torch.Tensor,
    real: Callable[[torch.Tensor], torch.Tensor],
    real_features: torch.Tensor,
    candidates: int = 10,
) -> torch.Tensor:
    """Return the LPIPS (N,) of each picture to its nearest real one, among the nearest by Lite0 features.

    Pictures are (N, 3, H, W) in [-1, 1]. `real(indices)` returns the real ones at `indices`.
    """
    similarity = F.normalize(made_features, dim=-1) @ F.normalize(real_features, dim=-1).T
    candidates = min(candidates, len(real_features))
    nearest = similarity.topk(candidates).indices
    lpips = Lpips()
    with torch.no_grad():
        return torch.stack(
            [
                lpips(p.expand(candidates, -1, -1, -1), real(i).to(p.device)).min()
                for p, i in zip(made, nearest, strict=True)
            ]
        )


def psnr_on_alpha(rgba: torch.Tensor, pixels: torch.Tensor, decoded: torch.Tensor) -> float:
    """Return the PSNR in dB over all pixels with alpha > 0.

    `rgba` is (N, H, W, 4) uint8; `pixels` and `decoded` are (N, 3, H, W) in [-1, 1].
    """
    inside = rgba[..., 3] > 0
    error = ((decoded.clamp(-1, 1) - pixels) / 2).square().mean(1)[inside].mean()
    return -10 * torch.log10(error).item()

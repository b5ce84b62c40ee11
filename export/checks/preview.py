"""Fit the linear map from latents to RGB that shows a picture while it is drawn (`runtime/pictures/preview.py`).

Synthetic pictures go through the bundle's own encoder and decoder in a child process, and least squares gives the map.
The pictures are dead leaves: opaque shapes of all sizes over one another, which have edges and statistics like those of
photographs (Lee, Mumford and Huang 2001, "Occlusion Models for Natural Images").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ParityError
from ...runtime.bundle.families import VAE_DECODER, VAE_ENCODER
from ...runtime.bundle.manifest import LinearMap, Manifest
from ...runtime.planning import memory
from .child import run_check
from .parity import BASE_BYTES, BYTES_PER_PARAMETER

PICTURES, SIDE = 8, 16  # number of pictures, and latents of a side
LEAVES, LEAST = 40, 0.05  # shapes of a picture, and the radius of the smallest as a share of its side
DIGITS = 6  # of the map's numbers


def fitted(bundle: Path, content: Manifest, note: Callable[[str], None] = lambda text: None) -> LinearMap | None:
    """Return the linear map of the bundle directory `bundle`; None for videos, and if memory does not suffice.

    `note` gets the reason if the map cannot be fitted, because a bundle without it works too.
    """
    pair = {name: content.components[name] for name in (VAE_ENCODER, VAE_DECODER) if name in content.components}
    if content.video is not None or len(pair) < 2:
        return None
    needed = sum(spec.parameters * BYTES_PER_PARAMETER.get(spec.precision, 10) for spec in pair.values())
    if memory.available() < BASE_BYTES + needed:
        note("previews have no linear map: not enough memory to fit it")
        return None
    asked = {
        "bundle": str(bundle),
        "single": content.provenance.single_file,
        "graphs": {name: [spec.graph, spec.precision] for name, spec in pair.items()},
        "latents": [content.latents.factor, content.latents.scaling, content.latents.shift],
    }
    answers: list[dict[str, Any]] = []
    try:
        if not run_check("preview_child", asked, answers.append):
            note("previews have no linear map: the fit was killed, as the kernel does if memory runs out")
    except ParityError as error:
        note(f"previews have no linear map: {error}")
    rows = answers[0]["rows"] if answers else []
    if not rows or not all(math.isfinite(value) for row in rows for value in row):
        return None
    *factors, bias = ((row[0], row[1], row[2]) for row in rows)
    return LinearMap(tuple(factors), bias)


def least_squares(latents: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Return the map from latents [n, channels, h, w] to pixels [n, 3, h, w], float64 [channels + 1, 3]; bias last."""
    known = latents.transpose(0, 2, 3, 1).reshape(-1, latents.shape[1]).astype(np.float64)
    wanted = pixels.transpose(0, 2, 3, 1).reshape(-1, 3).astype(np.float64)
    found, *_ = np.linalg.lstsq(np.append(known, np.ones((len(known), 1)), axis=1), wanted, rcond=None)
    return found


def averaged(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Return pixels [n, 3, height, width] averaged over squares of `factor`, float32 [n, 3, h, w], within [-1, 1]."""
    count, colours, height, width = pixels.shape
    squares = pixels.reshape(count, colours, height // factor, factor, width // factor, factor)
    return squares.astype(np.float32).clip(-1, 1).mean((3, 5))


def dead_leaves(rng: np.random.Generator, side: int) -> np.ndarray:
    """Return a picture of random discs and rectangles with soft shades, float32 [3, side, side] in [-1, 1]."""
    picture = np.empty((3, side, side), np.float32)
    picture[:] = rng.uniform(-1, 1, (3, 1, 1))
    rows, columns = np.mgrid[:side, :side]
    for _ in range(LEAVES):
        radius = side / 2 * max(rng.uniform(0.2, 1) ** 2, LEAST)
        colour, shade = rng.uniform(-1, 1, (3, 1, 1)), rng.uniform(-1, 1, (2, 3, 1, 1)) * rng.uniform(0, 1)
        (top, left), turn, stretch = rng.uniform(0, side, 2), rng.uniform(0, np.pi), rng.uniform(1, 3)
        down, right = rows - top, columns - left
        along, across = down * np.cos(turn) + right * np.sin(turn), right * np.cos(turn) - down * np.sin(turn)
        disc, box = along**2 + across**2, np.maximum(abs(along), abs(across) * stretch)
        inside = disc < radius**2 if rng.random() < 0.5 else box < radius
        picture[:] = np.where(inside, colour + (shade[0] * down + shade[1] * right) / side, picture)
    return picture.clip(-1, 1)

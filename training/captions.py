"""Captions of emoji pictures: the name, often with its style, sometimes with tags."""

from __future__ import annotations

import torch

from .data.emoji import Row

STYLES = ("3d", "noto", "twemoji")


def plain_caption(row: Row) -> str:
    """Return the caption used for evaluation: "woman astronaut dark skin tone, noto"; the 3-D style goes unnamed."""
    return row.name if row.style == "3d" else f"{row.name}, {row.style}"


def draw_captions(rows: list[Row], dropout: float, generator: torch.Generator) -> list[str]:
    """Return one random caption for each row; with probability `dropout` the empty one, for guidance.

    A 3-D picture goes without its style half of the time, so that a prompt without a style means the 3-D one; the
    other two styles are always named.
    """
    chance = torch.rand(len(rows), 5, generator=generator).tolist()
    return [_caption(row, *draws) if draws[4] >= dropout else "" for row, draws in zip(rows, chance, strict=True)]


def _caption(row: Row, article: float, style: float, tags: float, which: float, _: float) -> str:
    text = row.name
    if article < 0.5:
        text = f"{'an' if text[0] in 'aeiou' else 'a'} {text}"
    if row.tags and tags < 0.25:
        text = f"{text}, {row.tags[int(which * len(row.tags))]}"
    if row.style != "3d" or style < 0.5:
        text = f"{text}, {row.style}"
    return text

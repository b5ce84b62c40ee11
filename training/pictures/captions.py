"""Captions of emoji pictures: the name, often with its style, sometimes with tags."""

from __future__ import annotations

from pathlib import Path

import torch

from ...runtime.storage.files import write_whole
from ..data.emoji import Row, load
from .dataset import balance

STYLES = ("3d", "noto", "twemoji")


def write_prompts(folder: Path, count: int = 20_000) -> Path:
    """Write `folder/prompts.txt` for distillation: class-balanced captions of training pictures."""
    rows = [row for row in load(folder)[0] if row.split == "train"]
    generator = torch.Generator().manual_seed(0)
    chosen = torch.multinomial(torch.from_numpy(balance(rows)), count, replacement=True, generator=generator)
    captions = draw_captions([rows[i] for i in chosen.tolist()], 0.0, generator)
    write_whole(folder / "prompts.txt", "".join(f"{caption}\n" for caption in captions).encode())
    return folder / "prompts.txt"


def plain_caption(row: Row) -> str:
    """Return the caption for evaluation: "woman astronaut dark skin tone, noto". It omits the 3-D style."""
    return row.name if row.style == "3d" else f"{row.name}, {row.style}"


def draw_captions(rows: list[Row], dropout: float, generator: torch.Generator) -> list[str]:
    """Return a random caption for each row; an empty one with probability `dropout`, for guidance.

    Half of the captions of 3-D pictures omit the style, so that a prompt without a style means 3-D. The other two
    styles are always named.
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

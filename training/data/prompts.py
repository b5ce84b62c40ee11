"""The list of names that a model of emoji knows, for its checkpoint: `prompts.json`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...runtime.bundle.prompts import FILE_NAME, VARIANT, Name, Prompts, dump
from ...runtime.storage.files import write_whole
from .clips import Clip
from .emoji import Row


def prompts_of(rows: Iterable[Row | Clip]) -> Prompts:
    """Return the names of training data, by group and code points, and the styles of its pictures.

    A name is seen if a picture or clip of it is in the split "train". Variants by skin tone leave out their tags, which
    are those of the name without it.
    """
    found: dict[tuple[int, str], Row | Clip] = {}
    seen: set[str] = set()
    styles: dict[str, None] = {}
    for row in rows:
        found.setdefault((row.group if isinstance(row, Row) else 0, row.hexcode), row)
        if row.split == "train":
            seen.add(row.hexcode)
        if isinstance(row, Row):
            styles[row.style] = None
    names = tuple(
        Name(
            row.name,
            "".join(chr(code) for point in row.hexcode.split("-") if (code := int(point, 16)) >= 32),
            row.tags if isinstance(row, Row) and VARIANT not in row.name else (),
            row.hexcode in seen,
        )
        for _, row in sorted(found.items(), key=lambda item: item[0])
    )
    return Prompts(names, tuple(styles), photographs=False)


def write_names(rows: Iterable[Row | Clip], folder: Path) -> None:
    """Write the names of training data into the checkpoint directory `folder`. Raises OSError."""
    write_whole(folder / FILE_NAME, dump(prompts_of(rows)))

"""The captioned emoji pictures: three art styles from pinned packages, rendered at 128 px, named by emojibase.

`prepare` writes two files. `emoji.safetensors` holds `rgba` (N, 128, 128, 4) uint8 with straight alpha. `emoji.json`
holds one row for each picture (style, hexcode, name, tags, group, split), and the credits.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from ...errors import TrainingError
from ...runtime.storage.files import check_writable, write_whole, writing
from .packages import Package, credit_lines, fetch

SIZE = 128
EXPECTED = 10_545  # pictures in the pinned packages
_SVG = "http://www.w3.org/2000/svg"

FLUENT = Package(
    "npm",
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    "MIT",
    "Fluent Emoji by Microsoft, packaged by LobeHub",
)
NOTO = Package(
    "npm",
    "@svgmoji/noto",
    "3.2.0",
    "4bd1ef9824efaa08f124541a4c3420899a273333169aada20761384f9c7a35d0",
    "MIT (package), Apache-2.0 (art)",
    "Noto Emoji by Google, packaged by svgmoji",
)
TWEMOJI = Package(
    "npm",
    "@twemoji/svg",
    "15.0.0",
    "1d2907557a422c7c4e3feca50ef915c39da1db3d76b4a4d7e73fb59bce4403c3",
    "MIT (package), CC-BY-4.0 (art)",
    "Twemoji by Twitter and contributors, kept by jdecked",
)
NAMES = Package(
    "npm",
    "emojibase-data",
    "17.0.0",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    "MIT",
    "emojibase by Miles Johnson (names from Unicode CLDR)",
)


@dataclass(frozen=True)
class Row:
    """One picture: its subject, its style and its split."""

    style: str  # "3d", "noto" or "twemoji"
    hexcode: str  # code points in upper case, joined by "-", without FE0F
    name: str  # CLDR name in lower case, "woman astronaut dark skin tone"
    key: str  # the name without skin tone and gender: the unit of splits and balance
    tags: tuple[str, ...]
    group: int  # emojibase group, 0 to 9
    split: str  # "train", "held-out name" or "held-out combination"


def prepare(out: Path, cache: Path, progress: Callable[[int], None] = lambda done: None) -> int:
    """Fetch, render and name the pictures. Write them into the directory `out`. Return their number."""
    from safetensors.numpy import save

    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    check_writable(out / "emoji.json")
    names = names_of(fetch(NAMES, cache))
    rows: list[Row] = []
    pictures: list[np.ndarray] = []
    for style, hexcode, picture in _pictures(cache):
        if hexcode not in names:
            continue
        name, tags, group = names[hexcode]
        rows.append(Row(style, hexcode, name, base_key(name), tags, group, split_of(name)))
        pictures.append(picture)
        progress(len(rows))
    table = {"rows": [asdict(row) for row in rows], "credits": [asdict(p) for p in (FLUENT, NOTO, TWEMOJI, NAMES)]}
    with writing(out):
        write_whole(out / "emoji.safetensors", save({"rgba": np.stack(pictures)}))
        write_whole(out / "emoji.json", json.dumps(table, indent=0, ensure_ascii=False).encode())
    return len(rows)


def load(folder: Path) -> tuple[list[Row], np.ndarray]:
    """Return the rows and the pictures (N, 128, 128, 4) uint8 that `prepare` wrote into `folder`."""
    from safetensors.numpy import load_file

    return load_rows(folder), load_file(folder / "emoji.safetensors")["rgba"]


def load_rows(folder: Path) -> list[Row]:
    """Return the rows that `prepare` wrote into `folder`, without the pictures."""
    if not (folder / "emoji.json").is_file():
        raise TrainingError(f"{folder} has no emoji data. Run: segue data emoji --out {folder}")
    table = json.loads((folder / "emoji.json").read_text())["rows"]
    return [Row(**{**row, "tags": tuple(row["tags"])}) for row in table]


def credits(folder: Path) -> list[str]:
    """Return one line of credit for each source of the prepared data in `folder`."""
    return credit_lines(json.loads((folder / "emoji.json").read_text())["credits"])


def base_key(name: str) -> str:
    """Return `name` without skin tones and gender: "woman astronaut dark skin tone" and "astronaut" share a key.

    >>> base_key("woman astronaut medium-dark skin tone")
    'astronaut'
    """
    name = re.sub(r"\b(medium-light|medium-dark|light|medium|dark) skin tone\b", "", name)
    name = re.sub(r"\b(man|woman|men|women|person|people|boy|girl|deaf)\b", "", name)
    return " ".join(name.split()) or "person"


def split_of(name: str) -> str:
    """Return a name's split from the fixed file `emoji_holdout.json`."""
    names, combinations = _holdout()
    if base_key(name) in names:
        return "held-out name"
    words = f" {name} "
    if any(f" {attribute} " in words and f" {thing} " in words for attribute, thing in combinations):
        return "held-out combination"
    return "train"


def _holdout() -> tuple[frozenset[str], tuple[tuple[str, str], ...]]:
    table = json.loads(resources.files(__package__).joinpath("emoji_holdout.json").read_text())
    return frozenset(table["names"]), tuple((a, b) for a, b in table["combinations"])


def names_of(package: Path) -> dict[str, tuple[str, tuple[str, ...], int]]:
    """Return the name in lower case, the tags and the group of each hexcode in emojibase's files."""
    names = {}
    for record in json.loads((package / "package/en/data.json").read_text()):
        if "group" not in record:  # regional indicators: letters, not pictures
            continue
        for variant in (record, *record.get("skins", ())):
            name = re.sub(r"[:,“”\"]", "", variant["label"]).lower()
            names[hexcode_of(variant["hexcode"])] = (name, tuple(record.get("tags", ())), record["group"])
    return names


def hexcode_of(text: str) -> str:
    """Return code points in upper case, joined by "-", without FE0F, which some packages omit."""
    return "-".join(part for part in text.upper().split("-") if part != "FE0F")


def _pictures(cache: Path) -> Iterator[tuple[str, str, np.ndarray]]:
    for path in sorted(fetch(FLUENT, cache).glob("package/assets/*.webp")):
        picture = Image.open(path).convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        yield "3d", hexcode_of(path.stem), np.asarray(picture)
    # The sprite is one SVG. Its children are the emoji, with their code points as id.
    sprite = ElementTree.parse(fetch(NOTO, cache) / "package/sprites/all.svg").getroot()
    for child in sprite.findall(f"{{{_SVG}}}svg"):
        yield "noto", hexcode_of(child.attrib["id"]), _rasterise(ElementTree.tostring(child, encoding="unicode"))
    for path in sorted(fetch(TWEMOJI, cache).glob("package/*.svg")):
        yield "twemoji", hexcode_of(path.stem), _rasterise(path.read_text())


def _rasterise(svg: str) -> np.ndarray:
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS))

"""The captioned emoji clips: Fluent's animated emoji from pinned packages, at 128 px and 12 frames a second, on white.

`prepare` makes a directory. `clips.json` has one row for each clip, and the credits. Each clip has a file
`<hexcode>.safetensors` with `frames` (F, 128, 128, 3) uint8. Names and splits come from the still pictures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from ...errors import TrainingError
from ...runtime.storage.directory import NewDirectory
from .emoji import NAMES, base_key, hexcode_of, names_of, split_of
from .packages import Package, credit_lines, fetch

SIZE = 128
EVERY = 2  # of the source's frames, 42 ms each
FPS = 12
EXPECTED = 2_109  # moving clips in the pinned packages

_SHA256 = (
    "4c03ac178c1eabf2e2a16dd498f3cc2b92dc30ec3466ae38fdc497d4774c99ea",
    "e431da8172e394036c330faa77648d6fbbae1fd3b0be95637c4497c9075019c0",
    "3624d0c34c819c1794b74ccf6ae9034adff7c4cb6318dd2a645145f0196feb43",
    "3d4c08f1e321f70808ef4996aba0ab575a9d97b6c56ffffc92cf6161a7836aa3",
)
FLUENT = tuple(
    Package(
        "npm",
        f"@lobehub/fluent-emoji-anim-{number}",
        "1.0.0",
        digest,
        "MIT",
        "Fluent Emoji, animated, by Microsoft, packaged by LobeHub",
    )
    for number, digest in enumerate(_SHA256, 1)
)


@dataclass(frozen=True)
class Clip:
    """One clip: its subject, its length and its split."""

    hexcode: str  # code points in upper case, joined by "-", without FE0F; also the file name
    name: str  # CLDR name in lower case
    key: str  # the name without skin tone and gender: the unit of splits and balance
    split: str  # "train", "held-out name" or "held-out combination"
    frames: int


def prepare(out: Path, cache: Path, progress: Callable[[int], None] = lambda done: None) -> int:
    """Fetch, scale and name the clips. Write or replace the directory `out`. Return the number of clips."""
    from safetensors.numpy import save_file

    names = names_of(fetch(NAMES, cache))
    clips: list[Clip] = []
    with NewDirectory(out, replace=True) as new:
        for hexcode, path in _files(cache):
            if hexcode not in names:
                continue
            frames = read_frames(path)
            if len(frames) < 2:
                continue
            name = names[hexcode][0]
            save_file({"frames": frames}, new.path / f"{hexcode}.safetensors")
            clips.append(Clip(hexcode, name, base_key(name), split_of(name), len(frames)))
            progress(len(clips))
        table = {"clips": [asdict(clip) for clip in clips], "credits": [asdict(p) for p in (*FLUENT, NAMES)]}
        (new.path / "clips.json").write_text(json.dumps(table, indent=0, ensure_ascii=False), encoding="utf-8")
        new.commit()
    return len(clips)


def load(folder: Path) -> list[Clip]:
    """Return the clips that `prepare` wrote into `folder`."""
    if not (folder / "clips.json").is_file():
        raise TrainingError(f"{folder} has no emoji clips. Run: segue data emoji-clips --out {folder}")
    return [Clip(**row) for row in json.loads((folder / "clips.json").read_text(encoding="utf-8"))["clips"]]


def credits(folder: Path) -> list[str]:
    """Return one line of credit for each source of the prepared clips in `folder`."""
    return credit_lines(json.loads((folder / "clips.json").read_text(encoding="utf-8")).get("credits", []))


def read(folder: Path, clip: Clip, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Return frames `start` to `stop` of a clip, uint8 (F, 128, 128, 3). Reads only these frames."""
    from safetensors import safe_open

    with safe_open(folder / f"{clip.hexcode}.safetensors", "numpy") as file:
        return file.get_slice("frames")[start : clip.frames if stop is None else stop]


def read_frames(path: Path) -> np.ndarray:
    """Return every second frame of an animated picture, uint8 (F, 128, 128, 3), on white."""
    with Image.open(path) as picture:
        kept = [_on_white(f) for number, f in enumerate(ImageSequence.Iterator(picture)) if number % EVERY == 0]
    return np.stack(kept)


def _on_white(frame: Image.Image) -> np.ndarray:
    ground = Image.new("RGBA", frame.size, (255, 255, 255, 255))
    ground.alpha_composite(frame.convert("RGBA"))
    return np.asarray(ground.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def _files(cache: Path) -> Iterator[tuple[str, Path]]:
    for package in FLUENT:
        for path in sorted(fetch(package, cache).glob("package/assets/*.webp")):
            yield hexcode_of(path.stem), path

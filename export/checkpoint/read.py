"""Read a diffusers checkpoint directory: index, configs and tensor tables, but no weights."""

from __future__ import annotations

import json
import math
import stat
from collections import Counter
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from ...errors import BundleError, CheckpointError
from ...runtime.bundle.bundle_json import check_path
from ...runtime.bundle.families import TINY
from ...runtime.bundle.limits import MAX_FPS, MAX_FRAMES, MAX_SIDE, MAX_STEPS, MAX_TOKENS, MIN_FPS
from ...runtime.storage import typed_json
from ...runtime.storage.git import FETCH, is_pointer
from . import headers
from .advice import no_directory, no_weights
from .view import STEMS

TEXTS = (".json", ".txt", ".md", ".model", ".jinja", ".tiktoken", ".yaml", ".yml")
STUDENT = "student_pipeline_meta.json"  # how CDM's authors say a student draws; it names paths of their machine
LEFT_OUT = ("bundle.json", STUDENT)
MAX_JSON = 64 * 2**20
SHOWN = 4  # names of files in a remark
# The ranges of segue.json's numbers, as in the manifest
RANGES: dict[str, tuple[float, float]] = {
    "t5_tokens": (0, MAX_TOKENS), "steps": (1, MAX_STEPS), "guidance": (0, 10**6), "maximum_size": (1, MAX_SIDE),
    "frames": (5, MAX_FRAMES), "fps": (MIN_FPS, MAX_FPS), "scale": (1, 64), "text_tokens": (2, MAX_TOKENS),
    "targets": (1, MAX_FRAMES), "before": (0, MAX_FRAMES), "after": (0, MAX_FRAMES), "motion_steps": (1, MAX_STEPS),
    "motion_guidance": (0, 10**6), "eta": (0, 1),
}  # fmt: skip
WANTED = {"size": "[height, width]", "trained": "a list of [height, width]"}
PRECISIONS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}


@dataclass(frozen=True)
class Part:
    """One component folder: its config.json, its weight files and the tensors in them by name."""

    folder: str
    config: dict[str, Any]
    weights: tuple[str, ...]
    tensors: dict[str, headers.Tensor]


@dataclass(frozen=True)
class VideoSettings:
    """The table "video" of `segue.json`; a family has its own value for None.

    A window has `frames` video frames, and `size` is the default (height, width). The others belong to SwiftI2V. Stage
    I's sides are smaller by `scale`. A segment has `targets`, `before` and `after`. Fields that begin with `motion_`
    set Stage I's sampler.
    """

    frames: int | None = None
    fps: float | None = None
    size: tuple[int, int] | None = None
    text_tokens: int = 512
    scale: int | None = None
    targets: int | None = None
    before: int | None = None
    after: int | None = None
    motion_steps: int | None = None
    motion_guidance: float | None = None
    motion_sigmas: tuple[float, ...] = field(default=())


@dataclass(frozen=True)
class Settings:
    """Facts that a diffusers checkpoint lacks, from the optional `segue.json` at its root.

    256 zero tokens stand for an absent T5. If `steps` and `guidance` are None, `defaults.py` finds them. `sigmas` are
    the levels of a few-step student before the shift, as many as `steps`; empty means the default grid. `sampler`,
    `spacing`, `prediction`, `timesteps` and `eta` replace what the scheduler says, if they are given. `maximum_size`
    bounds a picture's side in pixels; None means the reach of the positional table. `trained` holds each size, (height,
    width), that the model was trained at, if that is known.
    """

    t5_tokens: int = 256
    steps: int | None = None
    guidance: float | None = None
    sigmas: tuple[float, ...] = field(default=())
    sampler: str = ""
    spacing: str = ""
    prediction: str = ""
    timesteps: tuple[int, ...] = field(default=())
    eta: float | None = None
    source: str = "unknown"
    revision: str = "unknown"
    licence: str = "unknown"
    credits: tuple[str, ...] = field(default=())
    maximum_size: int | None = None
    trained: tuple[tuple[int, int], ...] = field(default=())
    video: VideoSettings = field(default=VideoSettings())


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory: its index, parts with weights, settings and files."""

    root: Path
    index: dict[str, Any]
    parts: dict[str, Part]
    settings: Settings
    files: tuple[str, ...]
    title: str = ""  # the model's name where the directory's says nothing
    single: str = ""  # the single file that holds the weights of some parts

    def has(self, component: str) -> bool:
        """Return whether model_index.json names a class for the component."""
        entry = self.index.get(component)
        return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None


def read_index(root: Path) -> dict[str, Any]:
    """Return the model_index.json of the checkpoint at `root`; raises CheckpointError if there is none."""
    with headers.reading(root):
        if not root.is_dir():
            raise CheckpointError(no_directory(root))
        return read_json(root / "model_index.json", root)


def read(root: Path, folders: tuple[str, ...]) -> Checkpoint:
    """Return the checkpoint at `root`, with the weights of `folders`.

    Raises CheckpointError for a path that is not a diffusers checkpoint, pickled weights, malformed files, files that
    cannot be read, and file names that a bundle does not allow.
    """
    with headers.reading(root):
        found = _read(root, folders)
    for file in found.files:
        try:
            check_path(file, str(root))
        except BundleError:
            raise CheckpointError(
                f"{root} has the file {file!r}; a bundle's file names are printable and have neither ':' nor a "
                "backslash. Rename or remove that file."
            ) from None
    return found


def _read(root: Path, folders: tuple[str, ...]) -> Checkpoint:
    index = read_index(root)
    named = [n for n, v in index.items() if not n.startswith("_") and isinstance(v, list) and len(v) == 2 and v[0]]
    if TINY in folders and TINY not in named and (root / TINY / "config.json").is_file():
        named.append(TINY)  # no pipeline has a place for it in its index
    files = [p.name for p in root.iterdir() if p.is_file() and _carried(p)]
    parts = {}
    for folder in named:
        if folder in ("", "..") or Path(folder).name != folder or not (root / folder).is_dir():
            raise CheckpointError(
                f"{root / 'model_index.json'} names the component {folder!r}, but there is no such directory. "
                "Fetch the whole checkpoint again."
            )
        if folder in folders:
            parts[folder] = read_part(root, folder)
            files += parts[folder].weights
        below = [p.relative_to(root) for p in (root / folder).rglob("*") if p.is_file() and _carried(p)]
        files += [p.as_posix() for p in below if not any(part.startswith(".") for part in p.parts)]
    for file in files:
        if is_pointer(root / file):
            raise CheckpointError(f"{root / file} is a pointer of git-lfs, not the file itself. {FETCH}")
    return Checkpoint(root, index, parts, _settings(root), tuple(sorted(set(files))))


def left_out(found: Checkpoint) -> str:
    """Return which files of a checkpoint its bundle does not carry, as a line for people; empty if it carries all."""
    own = {*found.files, *LEFT_OUT, found.single}
    with headers.reading(found.root):
        below = [path.relative_to(found.root) for path in sorted(found.root.rglob("*")) if path.is_file()]
    rest = [f.as_posix() for f in below if f.as_posix() not in own and not any(p.startswith(".") for p in f.parts)]
    more = f" and {len(rest) - SHOWN} more" if len(rest) > SHOWN else ""
    return f"left out, because no graph needs them: {', '.join(rest[:SHOWN])}{more}" if rest else ""


def read_part(root: Path, folder: str) -> Part:
    """Return one component folder of the checkpoint or bundle at `root`: its config and the headers of its weights."""
    directory = root / folder
    weights: tuple[str, ...] = ()
    for stem in STEMS:
        if (directory / f"{stem}.safetensors").is_file():
            weights = (f"{folder}/{stem}.safetensors",)
            break
        if (directory / f"{stem}.safetensors.index.json").is_file():
            weights = _shards(root, folder, f"{stem}.safetensors.index.json")
            break
    if not weights:
        raise CheckpointError(no_weights(root, folder))
    tensors: dict[str, headers.Tensor] = {}
    for file in weights:
        found = headers.read(root / file, file)
        twice = tensors.keys() & found.keys()
        if twice:
            raise CheckpointError(
                f"{file} holds {min(twice)!r}, which another shard holds too. Fetch the checkpoint again."
            )
        tensors.update(found)
    return Part(folder, read_json(directory / "config.json", root), weights, tensors)


def dtypes(part: Part) -> Counter[str]:
    """Return the number of elements in each floating dtype of `part`."""
    counts = Counter[str]()
    for tensor in part.tensors.values():
        if tensor.dtype.startswith(("F", "BF")):
            counts[tensor.dtype] += math.prod(tensor.shape)
    return counts


def precision(part: Part) -> str:
    """Return the precision of most floating elements of `part`: "fp32", "fp16" or "bf16".

    Libraries keep a few tensors in fp32, such as `wo` of T5. The graph casts them. Raises CheckpointError for float8,
    and if no tensor is in one of the three.
    """
    counts = dtypes(part)
    narrow = [dtype for dtype in counts if dtype.startswith("F8")]
    kind = max(PRECISIONS, key=lambda dtype: counts[dtype])
    if narrow or not counts[kind]:
        advice = "Dequantise it first." if narrow else "Convert at export: --precision fp16 or --precision fp32."
        raise CheckpointError(
            f"The tensors of {part.folder} are in {' and '.join(sorted(counts)) or 'no floating dtype'}; a graph "
            f"needs {', '.join(PRECISIONS)}. {advice}"
        )
    return PRECISIONS[kind]


def read_json(path: Path, root: Path) -> dict[str, Any]:
    """Return the JSON object at `path`, a file of the checkpoint at `root`; raises CheckpointError without one."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        if status.st_size > MAX_JSON:
            raise ValueError(f"larger than {MAX_JSON} bytes")
        table = json.loads(path.read_bytes())
        if not isinstance(table, dict):
            raise ValueError("not an object")
    except FileNotFoundError:
        raise CheckpointError(
            f"{root} is not a diffusers checkpoint: it has no {path.relative_to(root)}. Give a directory written by "
            "save_pretrained, with model_index.json at its root."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        if is_pointer(path):
            raise CheckpointError(f"{path} is a pointer of git-lfs, not the file itself. {FETCH}") from None
        raise CheckpointError(f"{path} cannot be read ({error}). Fetch the file again.") from None
    return table


def _shards(root: Path, folder: str, name: str) -> tuple[str, ...]:
    table = read_json(root / folder / name, root).get("weight_map")
    shards = list(table.values()) if isinstance(table, dict) else []
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{folder}/{name} names the shard {str(shard)[:80]!r}, which is not a safetensors file of its "
                "directory. Fetch the checkpoint again from a source that you trust."
            )
    for shard in sorted(set(shards)):
        if not (root / folder / shard).is_file():
            raise CheckpointError(f"{folder}/{name} names {shard}, which is missing. Fetch that file.")
    return tuple(f"{folder}/{shard}" for shard in sorted(set(shards)))


def _carried(path: Path) -> bool:
    """Return whether a file beside the weights goes into the bundle: configs, tokenizers, cards, licences."""
    name = path.name
    if name.startswith(".") or path.stat().st_size > MAX_JSON or name in LEFT_OUT:
        return False
    if ".index." in name:
        return name in {f"{stem}.safetensors.index.json" for stem in STEMS}
    return path.suffix in TEXTS or name.startswith(("LICENSE", "LICENCE", "NOTICE"))


def _settings(root: Path) -> Settings:
    path = root / "segue.json"
    if not path.exists():
        return Settings()
    try:
        settings: Settings = typed_json.build(Settings, read_json(path, root), str(path))
    except typed_json.Malformed as error:
        raise CheckpointError(_malformed(error, path)) from None
    for table in (settings, settings.video):
        for name, (least, most) in RANGES.items():
            value = getattr(table, name, None)
            if value is not None and not least <= value <= most:
                raise CheckpointError(
                    f"{path}: {name} must be from {least} to {most}, got {str(value)[:40]}. Correct it."
                )
    if not all(1 <= side <= MAX_SIDE for side in settings.video.size or ()):
        raise CheckpointError(f"{path}: size must be from 1 to {MAX_SIDE}, got {settings.video.size}. Correct it.")
    return settings


def _malformed(error: typed_json.Malformed, path: Path) -> str:
    if error.unknown:
        return f"{path} has the unknown key {error.unknown[0]!r}. Remove it or correct its name."
    name = error.where.rpartition(":")[2]
    expected = "a table" if is_dataclass(error.kind) else WANTED.get(name, error.expected)
    return f"{path}: {name} must be {expected}, got {str(error.value)[:80]}. Correct it."

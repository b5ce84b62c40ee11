"""Find the checkpoint that a command names: a directory, a model of the hub, or a single file with its base.

A single file becomes a directory of links: the configs, tokenizers and missing components of its base, and the file.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....errors import CheckpointError, UsageError
from ....runtime.bundle.families import TINY
from .. import headers, read
from ..advice import PICKLED
from ..hub import Origin, locate
from ..view import link, write_variant
from .bases import names, usual, write_base
from .layout import DENOISER, KLEIN, NAMES, PLACES, SD3, ZIMAGE, held, is_single, pipeline_of

KLEIN_FIRST = ("img_in.weight", "x_embedder.weight")
KLEIN_9B = 4096  # rows of its first layer; that of 4B has 3072
GUIDANCE_KEY = "time_embedding.cond_proj.weight"  # of a UNet that takes guidance as an input


@dataclass(frozen=True)
class Staged:
    """A checkpoint directory. `single` names the single file in it, `title` the model, and `notes` are for people."""

    root: Path
    origin: Origin | None
    single: str = ""
    title: str = ""
    notes: tuple[str, ...] = ()


@contextmanager
def staged(checkpoint: str, base: str | None = None, variant: str = "") -> Iterator[Staged]:
    """Yield the checkpoint that `checkpoint` names, of `variant` if given, for the time of the context.

    `base` is what a single file takes all other files from: a checkpoint, or the name of a shipped base
    (`bases.names`). Without it a shipped one of the same sizes is taken. Raises CheckpointError as read and hub do, and
    for a single file without a base or of another model; UsageError for a base without a single file.
    """
    path = Path(checkpoint)
    if not is_single(path):
        if base is not None:
            raise UsageError(f"--base belongs to a single file, and {checkpoint} is none. Leave --base out.")
        root, origin = locate(checkpoint, variant)
        if not variant:
            yield Staged(root, origin)
            return
        read.read_index(root)
        with tempfile.TemporaryDirectory(prefix="segue-") as scratch:
            plain = write_variant(root, variant, Path(scratch))
            notes = (f"{', '.join(plain)}: no variant {variant}, so the plain files are taken",) if plain else ()
            yield Staged(Path(scratch), origin, title=root.resolve().name, notes=notes)
        return
    table = headers.read(path, path.name)
    pipeline = pipeline_of(table, path.name)
    name = base or usual(pipeline, table)
    if not name:
        raise CheckpointError(
            f"{path} holds weights of {NAMES[pipeline]}, but neither configs nor tokenizers. Name a checkpoint of the "
            f"same model to take them from: segue export {shlex.quote(str(path))} --base {_on_hub(pipeline, table)} "
            "-o BUNDLE"
        )

    def own(index: dict[str, Any]) -> Collection[str]:
        if index.get("_class_name") != pipeline:
            raise CheckpointError(
                f"{path} holds weights of {NAMES[pipeline]}, and {name} is a {str(index.get('_class_name'))[:60]!r}. "
                "Give the base of the same model."
            )
        return held(table, pipeline)

    with tempfile.TemporaryDirectory(prefix="segue-") as scratch:
        view, plain_base = Path(scratch) / "view", Path(scratch) / "variant"
        shipped = name in names()
        if shipped and variant:
            raise UsageError(
                f"--variant chooses among a checkpoint's weights, and the base {name} has none. Leave --variant out."
            )
        root = write_base(name, Path(scratch) / "base") if shipped else locate(name, variant, own)[0]
        folders = own(read.read_index(root))
        lacking = [p.folder for p in PLACES[pipeline] if (root / p.folder).is_dir() and p.folder not in folders]
        if shipped and lacking:
            raise CheckpointError(
                f"{path} lacks {', '.join(lacking)}, and the base {name} that ships with Segue has no weights. Take "
                f"them from a whole checkpoint: segue export {shlex.quote(str(path))} "
                f"--base {_on_hub(pipeline, table)} -o BUNDLE"
            )
        if variant and not shipped:
            write_variant(root, variant, plain_base)
            root = plain_base
        _link_base(root, view, folders)
        link(path, view / path.name)
        if GUIDANCE_KEY in table and (shape := table[GUIDANCE_KEY].shape):
            denoiser = next(place.folder for place in PLACES[pipeline] if place.bare)
            _set(view / denoiser / "config.json", {"time_cond_proj_dim": shape[-1]})
        note = f"from {path.name}: {', '.join(sorted(folders))}; the rest from {name}"
        yield Staged(view, None, path.name, path.stem, (note,))


@contextmanager
def with_decoder(source: Staged, decoder: Path | None) -> Iterator[Staged]:
    """Yield a staged checkpoint that also has the small decoder of previews from the directory `decoder`, if any.

    Raises CheckpointError for a directory that holds no model.
    """
    if decoder is None:
        yield source
        return
    if not (decoder / "config.json").is_file():
        raise CheckpointError(
            f"{decoder} has no config.json. Give the directory of an AutoencoderTiny, such as a copy of "
            "madebyollin/taesd3."
        )
    with tempfile.TemporaryDirectory(prefix="segue-") as scratch:
        view = Path(scratch)
        with headers.reading(source.root):
            for entry in (path for path in source.root.iterdir() if path.name != TINY):
                for path in [entry, *entry.rglob("*")]:  # a link to a folder is followed only where a search begins
                    place = path.relative_to(source.root)
                    if path.is_file() and not any(part.startswith(".") for part in place.parts):
                        link(path, view / place)
        with headers.reading(decoder):
            for path in decoder.iterdir():
                if path.is_file() and not path.name.startswith("."):
                    link(path, view / TINY / path.name)
        yield dataclasses.replace(source, root=view, title=source.title or source.root.resolve().name)


def _link_base(root: Path, view: Path, folders: Collection[str]) -> None:
    """Link the files of a base, but not the weights of `folders`, nor what says how its own denoiser draws."""
    with headers.reading(root):
        for path in root.iterdir():
            if path.is_file() and path.suffix != ".safetensors" and path.name not in read.LEFT_OUT:
                link(path, view / path.name)
            elif path.is_dir() and not path.name.startswith("."):
                for file in path.iterdir():
                    if file.is_file() and not (path.name in folders and _is_weight(file.name)):
                        link(file, view / path.name / file.name)


def _is_weight(name: str) -> bool:
    return name.endswith((".safetensors", *PICKLED)) or ".index." in name


def _set(path: Path, changed: dict[str, Any]) -> None:
    """Change a linked config in the view alone."""
    table = read.read_json(path, path.parents[1])
    path.unlink()
    path.write_text(json.dumps(table | changed, indent=2), encoding="utf-8")


def _on_hub(pipeline: str, table: dict[str, headers.Tensor]) -> str:
    """Return the name on the hub of the checkpoint that such files are usually made from."""
    if pipeline == ZIMAGE:
        return "hf:Tongyi-MAI/Z-Image-Turbo"
    if pipeline == KLEIN:
        first = next((t for name, t in table.items() if name.removeprefix(DENOISER) in KLEIN_FIRST), None)
        return f"hf:black-forest-labs/FLUX.2-klein-{'9' if first and first.shape[:1] == (KLEIN_9B,) else '4'}B"
    if pipeline != SD3:
        return "hf:stabilityai/stable-diffusion-xl-base-1.0"
    names = {name.removeprefix(DENOISER) for name in table}
    if any(name.startswith(("joint_blocks.37.", "transformer_blocks.37.")) for name in names):
        return "hf:stabilityai/stable-diffusion-3.5-large"
    if any(".attn2." in name for name in names):
        return "hf:stabilityai/stable-diffusion-3.5-medium"
    return "hf:stabilityai/stable-diffusion-3-medium-diffusers"

"""A directory of links that looks like a plain checkpoint: one variant of the weights, under the usual names."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path

from ...errors import CheckpointError
from . import headers

STEMS = ("diffusion_pytorch_model", "model")
_STEM = "|".join(STEMS)
# model.fp16.safetensors, and the two spellings of an index: model.safetensors.index.fp16.json and
# model.fp16.safetensors.index.json
VARIANT = re.compile(
    rf"(?P<stem>{_STEM})(\.(?P<file>[\w-]+)\.safetensors|\.safetensors\.index\.(?P<index>[\w-]+)\.json"
    r"|\.(?P<other>[\w-]+)\.safetensors\.index\.json)"
)
SHARD = re.compile(r".*-\d+-of-\d+")  # as in model.fp16-00001-of-00002.safetensors, which an index names
PLAIN = {f"{stem}.safetensors{end}" for stem in STEMS for end in ("", ".index.json")}


def variant_of(name: str) -> str:
    """Return the variant that a weight file or an index is of; empty for plain names, shards and other files."""
    match = VARIANT.fullmatch(name)
    found = match and (match["file"] or match["index"] or match["other"])
    return "" if not found or SHARD.fullmatch(found) else found


def plain_name(name: str) -> str:
    """Return the name that a variant's weight file or index has without a variant."""
    match = VARIANT.fullmatch(name)
    assert match is not None, name
    return f"{match['stem']}.safetensors" + ("" if match["file"] else ".index.json")


def variants(names: Iterable[str]) -> list[str]:
    """Return the variants among the names of a folder's files, sorted."""
    return sorted({found for name in names if (found := variant_of(name))})


def has_plain(names: Iterable[str]) -> bool:
    """Return whether a folder's files hold weights without a variant."""
    return not PLAIN.isdisjoint(names)


def command_of(root: Path | str, variant: str) -> str:
    """Return the command that exports one variant of a checkpoint."""
    return f"segue export {shlex.quote(str(root))} --variant {variant} -o BUNDLE"


def write_variant(root: Path, variant: str, target: Path) -> list[str]:
    """Fill the new directory `target` with links to the checkpoint at `root`: that variant, under the plain names.

    Returns the folders that have only plain weights, which are taken as they are. Raises CheckpointError if no folder
    has the variant.
    """
    plain, found = [], set()
    with headers.reading(root):
        for folder in [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]:
            names = {path.name for path in folder.iterdir() if path.is_file()}
            found |= set(variants(names))
            own = {name for name in names if variant_of(name) == variant}
            if not own and has_plain(names):
                plain.append(folder.name)
            for name in names - own:
                if variant_of(name) or (own and name in PLAIN):
                    continue
                link(folder / name, target / folder.name / name)
            for plain_file, name in {plain_name(name): name for name in sorted(own)}.items():  # an index may be twice
                link(folder / name, target / folder.name / plain_file)
        if variant not in found:
            others = f" It has {', '.join(sorted(found))}." if found else ""
            raise CheckpointError(
                f"{root} has no file of the variant {variant!r}, such as model.{variant}.safetensors.{others} "
                "Leave --variant out, or name a variant that is there."
            )
        for path in root.iterdir():
            if path.is_file():
                link(path, target / path.name)
    return sorted(plain)


def link(source: Path, target: Path) -> None:
    """Let the new file `target` be the file `source`: a symbolic link, or a hard link or copy if there are no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = Path(os.path.abspath(source))
    for make in (os.symlink, os.link, shutil.copyfile):
        try:
            make(source, target)
            return
        except FileExistsError:  # a copy would go through the link, into the checkpoint
            raise
        except OSError:
            if make is shutil.copyfile:
                raise

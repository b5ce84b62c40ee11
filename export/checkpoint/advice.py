"""What to do with a checkpoint that Segue does not read: each advice holds a command that runs as printed."""

from __future__ import annotations

import shlex
from pathlib import Path

from ...runtime.storage.git import FETCH, is_pointer
from .hub import PATTERN, PREFIX
from .view import STEMS, command_of, variants

TORCH = (".bin", ".pt", ".pth", ".ckpt")  # pickles that torch reads without running their code
PICKLED = (*TORCH, ".pkl", ".msgpack", ".h5")
_OF_TRANSFORMERS = "pytorch_model"  # the stem of its pickles; its safetensors files have the stem "model"


def no_directory(root: Path) -> str:
    """Return why `root` is no checkpoint directory, and what to do."""
    if not root.is_file():
        meant = f"Did you mean {PREFIX}{root.as_posix()}? " if PATTERN.fullmatch(root.as_posix()) else ""
        return f"There is no checkpoint at {root}. {meant}Give a directory written by diffusers' save_pretrained."
    if is_pointer(root):
        return f"{root} is a pointer of git-lfs, not the file itself. {FETCH}"
    kind = root.suffix.lower()
    if kind == ".onnx":
        return (
            f"{root} is a graph, and a checkpoint holds weights for PyTorch. docs/guide/own-graph.md says which graphs "
            f"Segue plays. Import such a graph: segue import {shlex.quote(str(root))} -o BUNDLE"
        )
    if kind == ".gguf":
        return (
            f"{root} is a GGUF file. No graph reads its blocks of 4 to 8 bits. Export the model that it was made from, "
            "as safetensors. Then make the bundle smaller: segue quantize --help"
        )
    if kind in TORCH:
        made = root.with_suffix(".safetensors")
        return (
            f"{root} is a pickle, and opening a pickle can run code. Convert it once; this reads tensors alone: "
            f"{_command([root.name], root.parent, made.name, 'state_dict')} "
            f"Then export the new file: segue export {shlex.quote(str(made))} -o BUNDLE"
        )
    if kind == ".safetensors":
        return (
            f"{root} is a single file. Name a checkpoint of the same model for its other files: "
            f"segue export {shlex.quote(str(root))} --base CHECKPOINT -o BUNDLE"
        )
    return f"{root} is a file; a checkpoint is a directory. Give one written by diffusers' save_pretrained."


def no_weights(root: Path, folder: str) -> str:
    """Return why the folder of the checkpoint at `root` has no weights to export, and what to do."""
    directory = root / folder
    names = sorted(path.name for path in directory.iterdir())
    pickled = [name for name in names if name.endswith(PICKLED)]
    if torch := [name for name in pickled if name.endswith(TORCH)]:
        stems = (STEMS[0], _OF_TRANSFORMERS, *STEMS[1:])
        stem = next((s for s in stems if any(name.startswith((f"{s}.", f"{s}-")) for name in torch)), STEMS[0])
        plain = [name for name in torch if name == f"{stem}.bin"]
        taken = plain or [name for name in torch if name.startswith(f"{stem}-")] or torch[:1]
        made = f"{'model' if stem == _OF_TRANSFORMERS else stem}.safetensors"
        return (
            f"{folder} has its weights only as {taken[0]}, a pickle, and opening a pickle can run code. Convert it "
            f"once; this reads tensors alone: {_command(taken, directory, made)} Then run the same export again."
        )
    if pickled:
        return (
            f"{folder} has its weights only as {pickled[0]}, which PyTorch does not read. "
            "Fetch the checkpoint's safetensors files."
        )
    if kinds := variants(names):
        return f"{folder} has its weights only as a variant. Take it: {command_of(root, kinds[0])}"
    found = ", ".join(name for name in names if name.endswith(".safetensors")) or "none"
    return (
        f"{folder} has no {' or '.join(s + '.safetensors' for s in STEMS)} (safetensors files there: {found}). "
        "Save the variant that you want with diffusers' save_pretrained and export that directory."
    )


def _command(names: list[str], folder: Path, made: str, inside: str = "") -> str:
    """Return a command that writes the tensors of pickles to the safetensors file `made` in the same folder.

    torch's `weights_only` builds tensors and no other objects. `inside` is the key of the tensors, if the file has it.
    """
    read = "torch.load(d / n, map_location='cpu', weights_only=True)"
    lines = [
        "import pathlib, torch, safetensors.torch as s",
        f"d = pathlib.Path({str(folder)!r})",
        f"f = [{read} for n in {names!r}]",
        *([f"f = [t.get({inside!r}, t) for t in f]"] if inside else []),
        "t = {k: v.clone() for p in f for k, v in p.items() if isinstance(v, torch.Tensor)}",
        f"s.save_file(t, d / {made!r}, {{'format': 'pt'}})",
    ]
    return f"python -c {shlex.quote('; '.join(lines))}"

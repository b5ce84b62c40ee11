"""Training state on disk: whole or absent, safetensors only, the newest complete one is the one to resume from."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ..errors import TrainingError


def save_state(out: Path, step: int, tensors: dict[str, torch.Tensor], recipe: dict) -> Path:
    """Write `out/state-<step>/` through a temporary sibling and rename, then remove the older ones."""
    final = out / f"state-{step:08d}"
    temporary = out / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary / "state.safetensors")
    (temporary / "state.json").write_text(json.dumps({"step": step, "recipe": recipe}, indent=1))
    for path in (*temporary.iterdir(), temporary):
        _flush(path)
    temporary.rename(final)
    _flush(out)
    for old in sorted(out.glob("state-*"))[:-1]:
        shutil.rmtree(old)
    return final


def load_state(out: Path, recipe: dict, may_change: tuple[str, ...] = ()) -> tuple[int, dict[str, torch.Tensor]] | None:
    """Return (step, tensors) of the newest state below `out`, or None when there is none.

    Raises TrainingError when that state was written by another recipe; keys in `may_change` ("loop.steps") may differ.
    """
    found = sorted(out.glob("state-*"))
    if not found:
        return None
    saved = json.loads((found[-1] / "state.json").read_text())
    differing = [key for key in _differences(saved["recipe"], recipe) if key not in may_change]
    if differing:
        raise TrainingError(
            f"{out} was started with another recipe: {', '.join(differing)} differ. "
            "Choose another --out, or remove that directory to start again."
        )
    return saved["step"], load_file(found[-1] / "state.safetensors")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _differences(a: dict, b: dict, prefix: str = "") -> list[str]:
    names = []
    for key in sorted(a.keys() | b.keys()):
        left, right = a.get(key), b.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            names += _differences(left, right, f"{prefix}{key}.")
        elif left != right:
            names.append(f"{prefix}{key}")
    return names

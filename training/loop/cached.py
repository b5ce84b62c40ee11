"""Compute once, keep beside the data: tensors in safetensors files that are whole or absent."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from ...runtime.storage.files import write_whole

Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Report no progress."""


def parts(count: int, what: str, progress: Progress, size: int = 64) -> Iterator[torch.Tensor]:
    """Yield the indices below `count`, `size` at a time, and report the progress."""
    for part in torch.arange(count).split(size):
        yield part
        progress(what, int(part[-1]) + 1, count)


def remembered(path: Path, sources: list[Path], make: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the tensors at `path`. Make them again if the bytes of `sources` have changed."""
    digest = hashlib.sha256()
    for source in sources:
        with source.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    key = digest.hexdigest()
    if path.is_file():
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("sources") == key:
                return load_file(path)
    tensors = {name: tensor.contiguous() for name, tensor in make().items()}
    write_whole(path, save(tensors, {"sources": key}))
    return tensors

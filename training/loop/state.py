"""Training state on disk, in safetensors files. A run resumes from the newest complete state.

torch.distributed.checkpoint reads and writes it: each process writes its own shards. Another number of processes can
read them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from ...errors import TrainingError


def save_state(out: Path, step: int, tensors: dict[str, torch.Tensor], recipe: dict) -> Path:
    """Write `out/state-<step>/` under a temporary name, rename it, then remove older states.

    Every process calls it, with the same names.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, save

    final = out / f"state-{step:08d}"
    temporary = out / f".{final.name}.tmp"
    if is_first():
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    _wait()
    packed = {name: tensor.contiguous() for name, tensor in tensors.items()}  # safetensors requires it
    with _plainly():
        save(packed, storage_writer=HuggingFaceStorageWriter(str(temporary), save_distributed=True))
    _wait()
    if is_first():
        (temporary / "state.json").write_text(json.dumps({"step": step, "recipe": recipe}, indent=1))
        for path in (*temporary.iterdir(), temporary):
            _flush(path)
        temporary.rename(final)
        _flush(out)
        for old in sorted(out.glob("state-*"))[:-1]:
            shutil.rmtree(old)
    _wait()
    return final


def find_state(out: Path, recipe: dict, may_change: tuple[str, ...] = ()) -> tuple[int, Path] | None:
    """Return (step, directory) of the newest state below `out`, or None.

    Raises TrainingError if another recipe wrote that state. Keys in `may_change` ("loop.steps") may differ.
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
    return saved["step"], found[-1]


def load_state(state: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Read the state in the directory `state` into `tensors`, in place. Every process calls it."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load

    with _plainly():
        load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(state)))


def is_first() -> bool:
    """Return whether this process is the first or the only one of the run."""
    return not dist.is_initialized() or dist.get_rank() == 0


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """Raise the cause instead of torch's wrapper, and silence torch's warning about a single process."""
    from torch.distributed.checkpoint.api import CheckpointException

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed is.*")
        try:
            yield
        except CheckpointException as error:
            causes = [cause for cause, _ in error.failures.values()]
            plain = [cause for cause in causes if isinstance(cause, OSError | KeyboardInterrupt)]
            raise (plain or causes)[0] from error


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

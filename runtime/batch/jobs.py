"""The jobs of a batch: make one, and record which are done.

The result of a job depends only on the job, its seed and the bundle, not on the worker.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...engines.base import Closing
from ...errors import UsageError
from ..film import film
from ..media.png import encode_png
from ..media.provenance import MIME, Certificate, check_certificate, signed
from ..media.read_image import read_image, read_mask
from ..pipeline import Model
from ..request import Request
from ..sampling.noise import random_seed
from ..storage.files import write_whole, writing
from ..storage.lock import locked
from ..videos.request import AnimationRequest, describe

RESULTS = "results.jsonl"


@dataclass(frozen=True)
class BatchJob:
    """One job: the name of its file without suffix, its arguments, and the hash that identifies it.

    A job without a seed gets one from `Ledger.seeded`.
    """

    name: str
    arguments: dict[str, Any]  # a picture is the path of its file, or its bytes if `packed`
    key: str  # sha256 of the bundle, the given arguments and the pictures' bytes
    files: Mapping[str, str] = field(default_factory=dict)  # path to sha256 of each picture
    metadata: bool = True  # whether its file holds metadata


@dataclass(frozen=True)
class Made:
    """The result of a job: the bytes of a PNG or MP4 file, its metadata, its suffix, and the time it took.

    `warnings` says what is probably not as intended, such as a prompt that was cut.
    """

    data: bytes
    metadata: dict[str, Any] | None
    ending: str
    seconds: float
    worker: str
    warnings: tuple[str, ...] = ()
    described: dict[str, Any] | None = None  # the metadata, even if the file holds none


def each_file(arguments: dict[str, Any], convert: Callable[[str, Any], Any]) -> dict[str, Any]:
    """Return the arguments of a job with each picture replaced by `convert(key, picture)`."""
    alone = [name for name in ("image", "last", "mask") if name in arguments]
    found: dict[str, Any] = {name: convert(name, arguments[name]) for name in alone}
    if "references" in arguments:
        found["references"] = [convert("references", one) for one in arguments["references"]]
    return arguments | found


def packed(job: BatchJob) -> BatchJob:
    """Return the job with the bytes of its pictures, for a worker that may not have the files.

    Raises UsageError if a file has changed since the job was read.
    """

    def read(_: str, path: str) -> bytes:
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise UsageError(f"{path} can no longer be read: {error.strerror}.", "Put it back.") from None
        if hashlib.sha256(data).hexdigest() != job.files[path]:
            raise UsageError(f"{path} was changed while the batch ran.", "Run the same command again.")
        return data

    return replace(job, arguments=each_file(job.arguments, read))


def make(model: Model, job: BatchJob) -> Made:
    """Return the result of a packed job; raises as `Model.pictures` and `Model.frames` do."""
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:  # they go to the caller of the batch
        warnings.simplefilter("always")
        if model.bundle.manifest.video is None:
            (picture,) = model.pictures(picture_request(job.arguments))
            described = dict(picture.metadata)
            metadata = described if job.metadata else None
            data, ending = encode_png(picture.image, metadata), ".png"
        else:
            data, described = _video(model, animation(job.arguments), job.metadata)
            metadata, ending = described if job.metadata else None, ".mp4"
    told = tuple(dict.fromkeys(str(one.message) for one in caught if issubclass(one.category, UserWarning)))
    worker = f"{platform.node()}:{os.getpid()}"
    return Made(data, metadata, ending, time.perf_counter() - started, worker, told, described)


class Ledger(Closing):
    """The results of a batch: `results.jsonl` in the output directory has a line for each done or failed job.

    A line is written after its file is whole, and a truncated line is ignored. So only the jobs that ran when the
    process died are done twice. Nobody else can open the ledger until `close`. The ledger signs the files, so that the
    certificate's key stays on this machine.
    """

    def __init__(self, folder: Path, certificate: Certificate | None = None) -> None:
        if certificate is not None:
            check_certificate(certificate)
        self.folder, self.certificate = folder, certificate
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = locked(
                folder / ".lock", f"another batch uses {folder}. Wait for it, or name another directory."
            )
            data = (folder / RESULTS).read_bytes() if (folder / RESULTS).is_file() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            with writing(folder):
                write_whole(folder / RESULTS, whole)
        try:
            rows = [json.loads(line) for line in whole.split(b"\n") if line]
            self._done = {(row["id"], row["key"]): row for row in rows if row["state"] == "done"}
            self._seeds = {(row["id"], row["key"]): row.get("seed", 0) for row in rows}  # 0: of earlier versions
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{folder / RESULTS} was not written by segue batch.", "Name another directory.") from None

    def has(self, job: BatchJob) -> bool:
        """Return whether the job is done and its file still has the written bytes."""
        row = self._done.get((job.name, job.key))
        if row is None:
            return False
        try:
            return hashlib.sha256((self.folder / row["file"]).read_bytes()).hexdigest() == row["sha256"]
        except OSError:
            return False

    def seeded(self, job: BatchJob) -> BatchJob:
        """Return the job with a seed: its own, else that of an earlier run of the same job, else a random one."""
        if "seed" in job.arguments:
            return job
        earlier = self._seeds.get((job.name, job.key))
        return replace(job, arguments=job.arguments | {"seed": random_seed() if earlier is None else earlier})

    def done(self, job: BatchJob, made: Made, attempts: int) -> dict[str, Any]:
        """Write a job's file, then its line; return the line."""
        file, data = f"{job.name}{made.ending}", made.data
        if self.certificate is not None:
            data = signed(data, MIME[made.ending], self.certificate, made.metadata, made.described)
        with writing(self.folder):
            write_whole(self.folder / file, data)
        told = {"warnings": list(made.warnings)} if made.warnings else {}
        return self._write(
            job, "done", file=file, sha256=hashlib.sha256(data).hexdigest(), seconds=round(made.seconds, 3),
            worker=made.worker, attempts=attempts, **told,
        )  # fmt: skip

    def failed(self, job: BatchJob, error: BaseException, attempts: int) -> dict[str, Any]:
        """Write the line of a failed job; return it."""
        return self._write(job, "failed", error=f"{type(error).__name__}: {error}", attempts=attempts)

    def close(self) -> None:
        """Let others open the ledger."""
        self._lock.release()

    def _write(self, job: BatchJob, state: str, **values: Any) -> dict[str, Any]:
        row = {"id": job.name, "state": state, "key": job.key, "seed": job.arguments.get("seed", 0), **values}
        with writing(self.folder), (self.folder / RESULTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if state == "done":
            self._done[job.name, job.key] = row
        return row


def picture_request(arguments: dict[str, Any]) -> Request:
    """Return the request of a job for pictures; each of its pictures is a path, or the bytes of a file."""
    return Request(**each_file(arguments, _pixels))


def animation(arguments: dict[str, Any]) -> AnimationRequest:
    """Return the request of a video job; its image is a path, or the bytes of a file."""
    return AnimationRequest(**each_file(arguments, _pixels))


def _pixels(key: str, given: str | bytes) -> np.ndarray:
    read = read_mask if key == "mask" else read_image
    return read(io.BytesIO(given), name=f"the file of {key}") if isinstance(given, bytes) else read(given)


def _video(model: Model, request: AnimationRequest, metadata: bool) -> tuple[bytes, dict[str, Any]]:
    """Return the bytes of a video, and its description even if the file holds no metadata."""
    ready = model.prepare(request)
    with tempfile.TemporaryDirectory(prefix="segue-") as folder:
        place = Path(folder) / "video.mp4"
        film(model, ready, place, metadata=metadata)
        bundle = model.bundle
        return place.read_bytes(), describe(ready, bundle.manifest, bundle.digest, model.target, model.loras)

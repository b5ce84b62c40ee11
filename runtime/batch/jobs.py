"""The jobs of a batch: read them from a file, make one, and record which are done.

A job is one line of JSON: the arguments of `Request` or `AnimationRequest`. `size` is "192x128" (width x height), and
the optional "id" names its file. The result depends only on the job and the bundle, not on the worker.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...engines.base import Closing
from ...errors import UsageError
from ..bundle.manifest import Manifest
from ..film import film
from ..media.png import encode_png
from ..media.provenance import MIME, Certificate, check_certificate, read_file, signed
from ..media.read_image import read_image
from ..pipeline import Model
from ..request import Request, prepare
from ..storage.files import write_whole, writing
from ..storage.lock import locked
from ..units import size_of
from ..videos.request import AnimationRequest
from ..videos.request import prepare as prepare_video

RESULTS = "results.jsonl"
MAX_JOBS = 1_000_000
MAX_LINE = 1 << 20  # characters
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DEVICE = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)")  # Windows reserves these names
_PICTURE = ("prompt", "negative", "seed", "steps", "guidance", "size", "sigmas", "noise")
_VIDEO = ("image", "prompt", "negative", "seed", "frames", "fps", "size")


@dataclass(frozen=True)
class BatchJob:
    """One job: the name of its file without suffix, its arguments, and the hash that identifies it."""

    name: str
    arguments: dict[str, Any]  # an image is the path of its file, or its bytes if `packed`
    key: str  # sha256 of the bundle, the arguments and the image's bytes
    image: str | None = None  # sha256 of the image's bytes
    metadata: bool = True  # whether its file holds metadata


@dataclass(frozen=True)
class Made:
    """The result of a job: the bytes of a PNG or MP4 file, its metadata, its suffix, and the time it took."""

    data: bytes
    metadata: dict[str, Any] | None
    ending: str
    seconds: float
    worker: str


def read_jobs(
    path: Path, content: Manifest, digest: str, metadata: bool = True, certificate: Certificate | None = None
) -> list[BatchJob]:
    """Return the jobs in the file at `path`; the bundle of `content` can meet every one.

    `digest` is the bundle's. Without `metadata` the files hold none; with a `certificate` the ledger signs them. Raises
    UsageError with the number of the first wrong line.
    """
    variant = ([] if metadata else ["bare"]) + (
        [] if certificate is None else [hashlib.sha256(certificate.chain.read_bytes()).hexdigest()]
    )
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a JSON string may hold other line ends
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}.", "Name a file with one JSON object per line.") from None
    if len(lines) > MAX_JOBS:
        raise UsageError(f"{path} has {len(lines)} lines, above the limit of {MAX_JOBS}.", "Split it.")
    jobs: list[BatchJob] = []
    names: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            job = _job(line, number, path.parent, content, digest, variant)
        except json.JSONDecodeError as error:
            raise UsageError(
                f"{path}, line {number} is not JSON: {error.msg}, at character {error.pos}.", "Correct that line."
            ) from None
        except (UsageError, TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"{path}, line {number}: {error}", "Correct that line; nothing was drawn.") from None
        if job.name.casefold() in names:  # some file systems ignore case
            raise UsageError(
                f"{path}, line {number}: another job has the id {job.name!r}.", "Give each job its own id."
            )
        names.add(job.name.casefold())
        jobs.append(replace(job, metadata=metadata))
    if not jobs:
        raise UsageError(f"{path} holds no job.", 'Write one JSON object per line, such as {"prompt": "a red heart"}.')
    return jobs


def packed(job: BatchJob) -> BatchJob:
    """Return the job with the bytes of its image, for a worker that may not have the file.

    Raises UsageError if the file has changed since the job was read.
    """
    if job.image is None:
        return job
    path = Path(job.arguments["image"])
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} can no longer be read: {error.strerror}.", "Put it back.") from None
    if hashlib.sha256(data).hexdigest() != job.image:
        raise UsageError(f"{path} was changed while the batch ran.", "Run the same command again.")
    return replace(job, arguments=job.arguments | {"image": data})


def make(model: Model, job: BatchJob) -> Made:
    """Return the result of a packed job; raises as `Model.pictures` and `Model.frames` do."""
    started = time.perf_counter()
    if model.bundle.manifest.video is None:
        (picture,) = model.pictures(Request(**job.arguments))
        metadata = dict(picture.metadata) if job.metadata else None
        data, ending = encode_png(picture.image, metadata), ".png"
    else:
        data, metadata = _video(model, _animation(job.arguments), job.metadata)
        ending = ".mp4"
    return Made(data, metadata, ending, time.perf_counter() - started, f"{platform.node()}:{os.getpid()}")


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

    def done(self, job: BatchJob, made: Made, attempts: int) -> dict[str, Any]:
        """Write a job's file, then its line; return the line."""
        file, data = f"{job.name}{made.ending}", made.data
        if self.certificate is not None:
            data = signed(data, MIME[made.ending], self.certificate, made.metadata)
        with writing(self.folder):
            write_whole(self.folder / file, data)
        return self._write(
            job, "done", file=file, sha256=hashlib.sha256(data).hexdigest(), seconds=round(made.seconds, 3),
            worker=made.worker, attempts=attempts,
        )  # fmt: skip

    def failed(self, job: BatchJob, error: BaseException, attempts: int) -> dict[str, Any]:
        """Write the line of a failed job; return it."""
        return self._write(job, "failed", error=f"{type(error).__name__}: {error}", attempts=attempts)

    def close(self) -> None:
        """Let others open the ledger."""
        self._lock.release()

    def _write(self, job: BatchJob, state: str, **values: Any) -> dict[str, Any]:
        row = {"id": job.name, "state": state, "key": job.key, **values}
        with writing(self.folder), (self.folder / RESULTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if state == "done":
            self._done[job.name, job.key] = row
        return row


def _job(line: str, number: int, folder: Path, content: Manifest, digest: str, variant: list[str]) -> BatchJob:
    table = json.loads(line) if len(line) <= MAX_LINE else None
    if not isinstance(table, dict):
        raise UsageError("the job is not a JSON object, or is too long.")
    name = table.pop("id", f"{number:06d}")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or _DEVICE.match(name):
        raise UsageError(f"id must be a file name, got {name!r}.")
    known = _PICTURE if content.video is None else _VIDEO
    if unknown := sorted(table.keys() - set(known)):
        raise UsageError(f"a job has no key {unknown[0]!r}; the keys are id, {', '.join(known)}.")
    if size := table.get("size"):
        table["size"] = list(size_of(str(size)))
    hashed, image = dict(table), None
    if content.video is None:
        if not isinstance(table.get("prompt"), str):
            raise UsageError("prompt is missing, or is not a string.")
        prepare(Request(**table), content)
    else:
        if not isinstance(table.get("image"), str):
            raise UsageError("image is missing: the path of a picture, relative to the file of jobs.")
        table["image"] = str((folder / table["image"]).resolve())
        prepare_video(_animation(table), content)
        hashed["image"] = image = hashlib.sha256(Path(table["image"]).read_bytes()).hexdigest()
    key = hashlib.sha256(json.dumps([digest, hashed, *variant], sort_keys=True).encode()).hexdigest()
    return BatchJob(name, table, key, image)


def _animation(arguments: dict[str, Any]) -> AnimationRequest:
    image = arguments["image"]
    pixels = read_image(io.BytesIO(image), name="the image") if isinstance(image, bytes) else read_image(image)
    return AnimationRequest(**{**arguments, "image": pixels})


def _video(model: Model, request: AnimationRequest, metadata: bool) -> tuple[bytes, dict[str, Any] | None]:
    with tempfile.TemporaryDirectory(prefix="segue-") as folder:
        place = Path(folder) / "video.mp4"
        film(model, request, place, metadata=metadata)
        return place.read_bytes(), read_file(place)["metadata"]

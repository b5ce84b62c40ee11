"""Many requests from a file, each done once: what they are, what a worker makes of one, and what is already done.

A job is one line of JSON: the arguments of `Request` or `AnimationRequest`, `size` as "192x128", width x height, and
"id", a name for its file, where it is to have one. What it gives depends on the job and the bundle alone, not on who
does it.
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
from ..storage.files import locked, write_whole, writing
from ..units import size_of
from ..videos.request import AnimationRequest
from ..videos.request import prepare as prepare_video

RESULTS = "results.jsonl"
MAX_JOBS = 1_000_000
MAX_LINE = 1 << 20  # characters
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DEVICE = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)")  # no names for files on Windows
_PICTURE = ("prompt", "negative", "seed", "steps", "guidance", "size", "sigmas", "noise")
_VIDEO = ("image", "prompt", "negative", "seed", "frames", "fps", "size")


@dataclass(frozen=True)
class BatchJob:
    """One job: the name of its file without the ending, its arguments, and the hash that tells it from every other."""

    name: str
    arguments: dict[str, Any]  # an image as the path of its file; as its bytes when `packed`
    key: str  # sha256 of the bundle and the arguments, an image by its bytes
    image: str | None = None  # the sha256 of those
    metadata: bool = True  # whether its file says what made it


@dataclass(frozen=True)
class Made:
    """What a worker made of a job: the bytes of a PNG or MP4 file, what it says of itself, and how long that took."""

    data: bytes
    told: dict[str, Any] | None
    ending: str
    seconds: float
    worker: str


def read_jobs(
    path: Path, content: Manifest, digest: str, metadata: bool = True, certificate: Certificate | None = None
) -> list[BatchJob]:
    """Return the jobs in the file at `path`, every one of which can be met by the bundle of `content`.

    `digest` is the bundle's; without `metadata` files do not say what made them, with a `certificate` the ledger signs
    them. Raises UsageError with the number of the line that is wrong.
    """
    way = ([] if metadata else ["bare"]) + (
        [] if certificate is None else [hashlib.sha256(certificate.chain.read_bytes()).hexdigest()]
    )
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # other ends of lines may be within a JSON text
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}. Name a file with one JSON object a line.") from None
    if len(lines) > MAX_JOBS:
        raise UsageError(f"{path} has {len(lines)} lines, above {MAX_JOBS}. Split it.")
    jobs: list[BatchJob] = []
    names: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            job = _job(line, number, path.parent, content, digest, way)
        except json.JSONDecodeError as error:
            raise UsageError(
                f"{path}, line {number} is no JSON: {error.msg}, at character {error.pos}. Mend it."
            ) from None
        except (UsageError, TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"{path}, line {number}: {error} Mend that line; nothing was drawn.") from None
        if job.name.casefold() in names:  # on some disks it would be the same file
            raise UsageError(f"{path}, line {number}: another job is called {job.name!r}. Give each its own id.")
        names.add(job.name.casefold())
        jobs.append(replace(job, metadata=metadata))
    if not jobs:
        raise UsageError(f'{path} holds no job. Write one JSON object a line, such as {{"prompt": "a red heart"}}.')
    return jobs


def packed(job: BatchJob) -> BatchJob:
    """Return the job with its image's bytes in it, for a worker that may have no such file.

    Raises UsageError where the file has changed since the job was read.
    """
    if job.image is None:
        return job
    path = Path(job.arguments["image"])
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read any more: {error.strerror}. Put it back.") from None
    if hashlib.sha256(data).hexdigest() != job.image:
        raise UsageError(f"{path} was changed while the batch ran. Run the same command again.")
    return replace(job, arguments=job.arguments | {"image": data})


def make(model: Model, job: BatchJob) -> Made:
    """Do a packed job; raises as `Model.pictures` and `Model.frames` do."""
    started = time.perf_counter()
    if model.bundle.manifest.video is None:
        (picture,) = model.pictures(Request(**job.arguments))
        told = dict(picture.metadata) if job.metadata else None
        data, ending = encode_png(picture.image, told), ".png"
    else:
        data, told = _video(model, _animation(job.arguments), job.metadata)
        ending = ".mp4"
    return Made(data, told, ending, time.perf_counter() - started, f"{platform.node()}:{os.getpid()}")


class Ledger(Closing):
    """What is done, in `results.jsonl` of the output directory: a line for each job that was done or has failed.

    A file is whole before its line is written, and a line that was cut off is no line: so nothing is lost, and nothing
    is done twice but what was under way when the process died. Nobody else can open it until `close`. Files are signed
    here where there is a certificate, so that its key stays on this machine.
    """

    def __init__(self, folder: Path, certificate: Certificate | None = None) -> None:
        if certificate is not None:
            check_certificate(certificate)
        self.folder, self.certificate = folder, certificate
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = locked(
                folder / ".lock", f"{folder} is another batch's. Wait for that, or name another directory."
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
            raise UsageError(f"{folder / RESULTS} is not what segue batch writes. Name another directory.") from None

    def has(self, job: BatchJob) -> bool:
        """Return whether the job is done and its file is there with the bytes that were written."""
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
            data = signed(data, MIME[made.ending], self.certificate, made.told)
        with writing(self.folder):
            write_whole(self.folder / file, data)
        return self._write(
            job, "done", file=file, sha256=hashlib.sha256(data).hexdigest(), seconds=round(made.seconds, 3),
            worker=made.worker, attempts=attempts,
        )  # fmt: skip

    def failed(self, job: BatchJob, error: BaseException, attempts: int) -> dict[str, Any]:
        """Write the line of a job that cannot be done; return it."""
        return self._write(job, "failed", error=f"{type(error).__name__}: {error}", attempts=attempts)

    def close(self) -> None:
        """Let others open it."""
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


def _job(line: str, number: int, folder: Path, content: Manifest, digest: str, way: list[str]) -> BatchJob:
    table = json.loads(line) if len(line) <= MAX_LINE else None
    if not isinstance(table, dict):
        raise UsageError("it is no JSON object, or too long.")
    name = table.pop("id", f"{number:06d}")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or _DEVICE.match(name):
        raise UsageError(f"id = {name!r} is no name for a file.")
    known = _PICTURE if content.video is None else _VIDEO
    if unknown := sorted(table.keys() - set(known)):
        raise UsageError(f"a job has no {unknown[0]!r}; known are id, {', '.join(known)}.")
    if size := table.get("size"):
        table["size"] = list(size_of(str(size)))
    hashed, image = dict(table), None
    if content.video is None:
        if not isinstance(table.get("prompt"), str):
            raise UsageError("prompt is missing, or no text.")
        prepare(Request(**table), content)
    else:
        if not isinstance(table.get("image"), str):
            raise UsageError("image is missing: the path of a picture, from the directory of the file of jobs.")
        table["image"] = str((folder / table["image"]).resolve())
        prepare_video(_animation(table), content)
        hashed["image"] = image = hashlib.sha256(Path(table["image"]).read_bytes()).hexdigest()
    key = hashlib.sha256(json.dumps([digest, hashed, *way], sort_keys=True).encode()).hexdigest()
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

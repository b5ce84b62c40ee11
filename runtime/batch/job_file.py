"""Read the jobs of a batch from a file.

A job is one line of JSON: the arguments of `Request` or `AnimationRequest`. `size` is "192x128" (width x height), and
pictures are paths relative to the file. The optional "id" names the job's result. A file that does not begin with `{`
is a list of prompts, one a line.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ..bundle.manifest import Manifest
from ..bundle.prompts import Prompts, spell_emoji
from ..media.names import file_words
from ..media.provenance import Certificate
from ..request import prepare
from ..storage.files import read_text
from ..units import size_of
from ..videos.request import prepare as prepare_video
from ..videos.request import takes_text_alone
from .jobs import BatchJob, animation, each_file, picture_request

MAX_JOBS = 1_000_000
MAX_LINE = 1 << 20  # characters
MAX_WRONG, MAX_REASON = 20, 300  # wrong lines that an error shows, and characters of what it says of each
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DEVICE = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)")  # Windows reserves these names
_PICTURE = (
    "prompt", "negative", "seed", "steps", "guidance", "size", "sigmas", "noise", "image", "strength", "mask",
    "feather", "references",
)  # fmt: skip
_VIDEO = ("image", "last", "prompt", "negative", "seed", "frames", "fps", "size")


def read_jobs(
    path: Path, content: Manifest, digest: str, metadata: bool = True, certificate: Certificate | None = None,
    prompts: Prompts | None = None,
) -> list[BatchJob]:  # fmt: skip
    """Return the jobs in the file at `path`; the bundle of `content` can meet every one.

    `digest` is the bundle's. Without `metadata` the files hold none; with a `certificate` the ledger signs them.
    `prompts` spells emoji in the file names of a list of prompts. Raises UsageError with the first 20 wrong
    lines and the number of others.
    """
    variant = ([] if metadata else ["bare"]) + (
        [] if certificate is None else [hashlib.sha256(certificate.chain.read_bytes()).hexdigest()]
    )
    try:
        lines = read_text(path).split("\n")  # a JSON string may hold other line ends
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}.", "Name a file with a prompt or a job a line.") from None
    if len(lines) > MAX_JOBS:
        raise UsageError(f"{path} has {len(lines)} lines, above the limit of {MAX_JOBS}.", "Split it.")
    filled = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not filled:
        raise UsageError(f"{path} holds no job.", 'Write one prompt a line, or JSON such as {"prompt": "pizza"}.')
    listed = _is_list(path, filled[0][1].strip(), content)
    jobs: dict[str, BatchJob] = {}
    repeats = Counter[str]()
    wrong, more = list[str](), 0
    for number, line in filled:
        try:
            if listed:
                name = _unused(file_words(spell_emoji(line.strip(), prompts)), jobs, repeats)
                table: dict[str, Any] = {"prompt": line.strip()}
            else:
                name, table = _read(line, f"{number:06d}")
            job = _job(table, name, path.parent, content, digest, variant)
            if name.casefold() in jobs:  # some file systems ignore case
                raise UsageError(f"another job has the id {name!r}. Give each job its own id.")
            jobs[name.casefold()] = replace(job, metadata=metadata)
        except json.JSONDecodeError as error:
            wrong.append(f"line {number} is not JSON: {error.msg}, at character {error.pos}.")
        except (UsageError, OSError, TypeError, ValueError, RecursionError) as error:
            wrong.append(f"line {number}: {error}"[:MAX_REASON])
        if len(wrong) > MAX_WRONG:  # only their number is told
            wrong.pop()
            more += 1
    if wrong:
        raise _refusal(path, wrong, more)
    return list(jobs.values())


def _is_list(path: Path, first: str, content: Manifest) -> bool:
    """Return whether a file whose first line is `first` is a list of prompts; raises UsageError if it is neither."""
    if first.startswith("["):
        raise UsageError(f"{path} is a JSON array.", "Write one JSON object on each line, without the brackets.")
    if not first.startswith("{") and content.video is not None and not takes_text_alone(content):
        raise UsageError(
            f"{path} is a list of prompts, and {content.name} makes videos, which need a picture.",
            'Write JSON, one object a line, such as {"image": "heart.png"}.',
        )
    return not first.startswith("{")


def _unused(words: str, taken: Container[str], repeats: Counter[str]) -> str:
    """Return words as the name of a file that no other job has; `repeats` counts how often they came."""
    name = words = f"picture-{words}" if _DEVICE.match(words) else words
    repeats[words] += 1
    while repeats[words] > 1 or name.casefold() in taken:
        name = f"{words}-{repeats[words]}"
        if name.casefold() not in taken:
            break
        repeats[words] += 1
    return name


def _refusal(path: Path, wrong: list[str], more: int) -> UsageError:
    if len(wrong) == 1:
        return UsageError(f"{path}, {wrong[0]}", "Correct that line; nothing was drawn.")
    shown = "".join(f"\n  {reason}" for reason in [*wrong, *([f"and {more} more."] if more else [])])
    return UsageError(f"{path} has {len(wrong) + more} wrong lines:{shown}\n", "Correct them; nothing was drawn.")


def _read(line: str, usual: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments of a line of JSON; `usual` is the name of a job without one."""
    table = json.loads(line) if len(line) <= MAX_LINE else None
    if not isinstance(table, dict):
        raise UsageError("the job is not a JSON object, or is too long.")
    name = table.pop("id", usual)
    if not isinstance(name, str) or not _NAME.fullmatch(name) or _DEVICE.match(name):
        raise UsageError(f"id must be a file name, got {name!r}.")
    return name, {key: value for key, value in table.items() if key != "seed" or value is not None}


def _job(
    table: dict[str, Any], name: str, folder: Path, content: Manifest, digest: str, variant: list[str]
) -> BatchJob:
    known = _PICTURE if content.video is None else _VIDEO
    if unknown := sorted(table.keys() - set(known)):
        raise UsageError(f"a job has no key {unknown[0]!r}; the keys are id, {', '.join(known)}.")
    if size := table.get("size"):
        table["size"] = list(size_of(str(size)))
    files: dict[str, str] = {}
    if content.video is None:
        if not isinstance(table.get("prompt"), str):
            raise UsageError("prompt is missing, or is not a string.")
        given = _placed(table, folder)
        prepare(picture_request(given), content)
    else:
        if not isinstance(table.get("image", "" if takes_text_alone(content) else None), str):
            raise UsageError("image is missing: the path of a picture, relative to the file of jobs.")
        given = _placed(table, folder)
        prepare_video(animation(given), content)

    def hashed(_: str, path: str) -> str:
        return files.setdefault(path, hashlib.sha256(Path(path).read_bytes()).hexdigest())

    told = each_file(given, hashed)
    key = hashlib.sha256(json.dumps([digest, told, *variant], sort_keys=True).encode()).hexdigest()
    return BatchJob(name, given, key, files)


def _placed(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the arguments of a job with absolute paths; those in the file are relative to `folder`, where it lies."""
    if not isinstance(table.get("references", []), list):
        raise UsageError('references must be a list of paths. Write ["first.png"].')

    def placed(key: str, path: Any) -> str:
        if not isinstance(path, str):
            raise UsageError(f"{key} must be the path of a picture, relative to the file of jobs, got {path!r}.")
        return str((folder / path).resolve())

    return each_file(table, placed)

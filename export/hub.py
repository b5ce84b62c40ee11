"""A checkpoint by its name on the Hugging Face hub, fetched at one commit, safetensors and texts alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError

PATTERN = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
FILES = ("*.safetensors", "*.json", "*.txt", "*.model")


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint came from: the hub's name of it, and the commit."""

    name: str
    commit: str


def locate(checkpoint: str) -> tuple[Path, Origin | None]:
    """Return the directory of a checkpoint, given a path or NAME/MODEL[@REVISION] of the hub, and its origin there.

    A directory of that name always wins. What the hub gives lies in its own cache. Raises CheckpointError where the hub
    cannot be reached, has no such model or does not let this user read it.
    """
    found = PATTERN.fullmatch(checkpoint)
    if Path(checkpoint).exists() or found is None:
        return Path(checkpoint), None
    name, revision = found.groups()
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        commit = HfApi().model_info(name, revision=revision).sha
        if not commit:
            raise ValueError("the hub names no commit")
        directory = snapshot_download(name, revision=commit, allow_patterns=list(FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{checkpoint!r} is no directory, and cannot be had from the hub: {what[:300]}. Name a directory in "
            "diffusers' format, or log in (hf auth login) and look whether the model's licence has to be accepted."
        ) from None
    return Path(directory), Origin(name, commit)

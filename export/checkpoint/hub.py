"""Fetch a checkpoint from the Hugging Face hub at one commit: the files that its index names, and no pickles."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, SegueError

PREFIX = "hf:"
PATTERN = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
ROOT = ("model_index.json", "segue.json", "student_pipeline_meta.json", "prompts.json", "LICENSE*", "NOTICE*", "*.md")
OF_A_PART = (
    "*.json", "*.txt", "*.model", "*.md", "*.jinja", "*.tiktoken", "*.yaml", "*.yml", "model*.safetensors",
    "diffusion_pytorch_model*.safetensors",
)  # fmt: skip
VARIANTS = ("*.fp16*", "*.bf16*", "*.fp32*", "*.non_ema*", "*.ema*")  # of the same weights
WEIGHTS = "*.safetensors*"


@dataclass(frozen=True)
class Origin:
    """The source of a checkpoint: its name on the hub, and the commit."""

    name: str
    commit: str


def locate(
    checkpoint: str, variant: str = "", without: Callable[[dict[str, Any]], Collection[str]] = lambda index: ()
) -> tuple[Path, Origin | None]:
    """Return the directory of a checkpoint, given a path or hf:ORG/NAME[@REVISION], and its origin on the hub.

    Fetched files lie in the hub library's cache. A folder's weights of `variant` are fetched if it has some, else its
    plain ones. `without` gets the model_index.json, and names the folders whose weights are not needed. Raises
    CheckpointError if the hub cannot be reached, has no such model or does not let this user read it.
    """
    if not checkpoint.startswith(PREFIX):
        return Path(checkpoint), None
    found = PATTERN.fullmatch(checkpoint.removeprefix(PREFIX))
    if found is None:
        raise CheckpointError(f"{checkpoint!r} is not a name of the hub. Write hf:ORG/NAME[@REVISION].")
    name, revision = found.groups()
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    try:
        commit = HfApi().model_info(name, revision=revision).sha
        if not commit:
            raise ValueError("the hub returned no commit")
        index = json.loads(Path(hf_hub_download(name, "model_index.json", revision=commit)).read_text(encoding="utf-8"))
        parts = [part for part, entry in index.items() if isinstance(entry, list) and len(entry) == 2 and entry[0]]
        wanted = [*ROOT, *(f"{part}/{pattern}" for part in parts for pattern in OF_A_PART)]
        left_out = [f"{part}/{WEIGHTS}" for part in without(index)]
        if variant:
            info = HfApi().model_info(name, revision=commit)
            left_out += _others([one.rfilename for one in info.siblings or ()], parts, variant)
        else:
            left_out += VARIANTS
        directory = snapshot_download(name, revision=commit, allow_patterns=wanted, ignore_patterns=left_out)
    except SegueError:
        raise
    except Exception as error:  # errors of the hub, of its HTTP client and of the disk share no base class
        what = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{checkpoint!r} cannot be fetched from the hub: {what[:300]}. Check its name and the network. If the "
            "model's licence must be accepted, accept it and log in (hf auth login). Or give a directory."
        ) from None
    return Path(directory), Origin(name, commit)


def _others(files: Sequence[str], parts: Sequence[str], variant: str) -> list[str]:
    """Return the weight files of each folder that are not of `variant`, or not plain where a folder lacks it."""
    others = []
    for part in parts:
        own = [file for file in files if file.startswith(f"{part}/") and ".safetensors" in file]
        marked = [file for file in own if f".{variant}." in file or f".{variant}-" in file]
        plain = [file for file in own if "." not in _stem(file)]
        others += sorted({*own} - {*(marked or plain)})
    return others


def _stem(file: str) -> str:
    """Return a weight file's name without its endings, which holds a point only in a variant."""
    return Path(file).name.removesuffix(".json").removesuffix(".index").removesuffix(".safetensors")

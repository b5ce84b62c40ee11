"""Networks from directories in diffusers' or transformers' format: of this disk, and of safetensors, alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def pretrained(kind: Any, folder: Path) -> Any:
    """Return the network that `folder` holds, in float32 and in evaluation mode.

    `kind` is its class. Pickled weights are not read and no hub is asked: raises OSError where `folder` has no
    safetensors file, and ValueError where that does not fit.
    """
    if not (folder / "config.json").is_file():  # else the libraries tell of a hub that was not meant
        raise FileNotFoundError(f"{folder} has no config.json")
    return kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True, use_safetensors=True)

"""Load networks in diffusers' or transformers' format, only from local safetensors files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn


def pretrained(kind: Any, folder: Path) -> Any:
    """Return the network that `folder` holds, in float32 and in evaluation mode.

    `kind` is its class. Reads no pickle and asks no hub. Raises OSError if `folder` has no safetensors file, and
    ValueError if the weights do not fit.
    """
    if not (folder / "config.json").is_file():  # otherwise the libraries' errors mention the hub
        raise FileNotFoundError(f"{folder} has no config.json")
    return kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True, use_safetensors=True)


def save_half(model: Any, folder: Path) -> None:
    """Write `model` in fp16. Drop the path of its source from the config."""
    model.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


@torch.no_grad()
def xavier_linears(network: nn.Module) -> None:
    """Give every linear of `network` Xavier weights and no bias."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

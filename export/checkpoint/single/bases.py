"""Bases that ship with Segue: the configs of published models and CLIP's tokenizer, without weights.

The configs are those of the models' diffusers checkpoints. The vocabulary is that of OpenAI's CLIP, whose licence lies
beside it. It is a list of merges: the tokens follow from it (Radford et al. 2021, github.com/openai/CLIP).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..headers import Tensor
from .layout import DENOISER, SD3, SDXL

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
PADS = {"tokenizer": END, "tokenizer_2": "!"}
# The first layer of a denoiser, in its original and in diffusers' names: its width tells the models apart
FIRST = {
    SDXL: ("input_blocks.0.0.weight", "conv_in.weight"),
    SD3: ("x_embedder.proj.weight", "pos_embed.proj.weight"),
}
WIDTHS = {(SDXL, 320): "sdxl", (SD3, 1536): "sd3-medium", (SD3, 2432): "sd3.5-large"}
TWICE = {"sd3-medium": "sd3.5-medium"}  # the model with two attentions in a block


def names() -> list[str]:
    """Return the names of the shipped bases."""
    return list(_table())


def usual(pipeline: str, table: Mapping[str, Tensor]) -> str:
    """Return the shipped base whose denoiser has the sizes of that in the file; empty if none has."""
    plain = {name.removeprefix(DENOISER): tensor for name, tensor in table.items()}
    first = next((plain[name] for name in FIRST.get(pipeline, ()) if name in plain), None)
    found = WIDTHS.get((pipeline, first.shape[0] if first and first.shape else 0), "")
    return TWICE.get(found, found) if any(".attn2.qkv" in name or ".attn2.to_q" in name for name in plain) else found


def write_base(name: str, root: Path) -> Path:
    """Write a shipped base to the new directory `root` and return it."""
    base = _table()[name]
    root.mkdir(parents=True)
    (root / "model_index.json").write_text(json.dumps(base["index"], indent=1), encoding="utf-8")
    for folder, config in base["configs"].items():
        file = "scheduler_config.json" if folder == "scheduler" else "config.json"
        (root / folder).mkdir()
        (root / folder / file).write_text(json.dumps(config, indent=1), encoding="utf-8")
    for folder, pad in PADS.items():
        _write_tokenizer(root / folder, pad)
    return root


def _write_tokenizer(folder: Path, pad: str) -> None:
    folder.mkdir()
    merges = gzip.decompress((_data() / "clip_merges.txt.gz").read_bytes()).decode("utf-8")
    # GPT-2's stand-ins for bytes: printable ones are themselves, and the others come after them
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    units = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    joined = [line.replace(" ", "") for line in merges.splitlines()]
    tokens = [*units, *(f"{unit}</w>" for unit in units), *joined, BEGIN, END]
    vocabulary = json.dumps({token: number for number, token in enumerate(tokens)}, ensure_ascii=False)
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    special = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": pad}
    config = {**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "do_lower_case": True}
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _table() -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = json.loads((_data() / "bases.json").read_text(encoding="utf-8"))
    return table


def _data() -> Path:
    return Path(str(files("segue.export.checkpoint.single"))) / "data"

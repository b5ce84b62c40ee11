"""Encode prompts for a family's transformer, with the text encoders of diffusers' pipelines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ....errors import TrainingError
from ....runtime.bundle.families import T5, tokenizer_of
from ...loop.device import fast_dtype, training_device
from ..families import Condition, find_family
from ..names import LONGCAT, SD3
from .conditions import Encode, write_conditions


def encode_prompts(
    checkpoint: Path, family: str, prompts: Path, out: Path, progress: Callable[[int, int], None]
) -> int:
    """Write the embeddings of each line of the file `prompts` to the new directory `out`. Return their number.

    `checkpoint` is in diffusers format, or a bundle. Loads only its text encoders. `progress` takes the numbers of
    finished and of all prompts. Raises TrainingError for an unknown family and unreadable files.
    """
    find_family(family)
    try:
        lines = [line for line in prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{prompts} cannot be read: {error}. Name a text file with one prompt a line.") from None
    try:
        encode = ENCODERS[family](checkpoint)
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"the text encoders of {checkpoint} cannot be loaded: {error}. Name a checkpoint in diffusers format."
        ) from error
    write_conditions(out, lines, encode, progress=progress)
    return len(lines)


def _sd3(checkpoint: Path) -> Encode:
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    index = json.loads((checkpoint / "model_index.json").read_text())
    without: dict[str, Any] = {"transformer": None, "vae": None}
    settings = checkpoint / "segue.json"
    zeros = json.loads(settings.read_text()).get("t5_tokens", 256) if settings.is_file() else 256
    if index.get(T5, [None])[0] is None:
        without |= {T5: None, tokenizer_of(T5): None}
    else:
        zeros = 256
    pipeline = _loaded(StableDiffusion3Pipeline, checkpoint, without)
    with torch.device("meta"):  # without T5 the pipeline needs the transformer's width, and nothing else
        config = SD3Transformer2DModel.load_config(checkpoint / "transformer")
        pipeline.register_modules(transformer=SD3Transformer2DModel.from_config(config))

    @torch.no_grad()
    def encode(prompts: list[str]) -> Condition:
        states, _, pooled, _ = pipeline.encode_prompt(
            prompts, None, None, training_device(), do_classifier_free_guidance=False, max_sequence_length=zeros
        )
        return {"states": states, "pooled": pooled}

    return encode


def _longcat(checkpoint: Path) -> Encode:
    from diffusers import LongCatImagePipeline

    pipeline = _loaded(LongCatImagePipeline, checkpoint, {"transformer": None, "vae": None})

    @torch.no_grad()
    def encode(prompts: list[str]) -> Condition:
        return {"states": pipeline.encode_prompt(prompts)[0]}

    return encode


def _loaded(pipeline: Any, checkpoint: Path, without: dict[str, Any]) -> Any:
    device = training_device()
    dtype = fast_dtype(device) if device.type == "cuda" else torch.float32
    return pipeline.from_pretrained(
        checkpoint, torch_dtype=dtype, local_files_only=True, use_safetensors=True, **without
    ).to(device)


ENCODERS: dict[str, Callable[[Path], Encode]] = {SD3: _sd3, LONGCAT: _longcat}

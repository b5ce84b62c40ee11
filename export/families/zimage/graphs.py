"""Z-Image: a transformer, an autoencoder, and Qwen3 on the prompt without padding.

Source: diffusers' ZImagePipeline.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ..checks import unusable
from ..graph import Graph
from ..modules import autoencoder
from ..qwen3 import text_encoder
from ..step import with_step
from .transformer import transformer


def graphs(configs: Mapping[str, dict[str, Any]], takes: Collection[str] = ()) -> tuple[Graph, ...]:
    """Return the five graphs of the checkpoint whose config.json files are `configs`, keyed by folder.

    Raises CheckpointError if a config lacks a key or holds a value that its class does not take.
    """
    try:
        text = configs["text_encoder"]
        return (
            text_encoder(text, (text["num_hidden_layers"] - 1,), masked=False),
            *with_step(transformer(configs["transformer"]), takes=takes),
            *autoencoder(configs["vae"]),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise unusable(error) from None

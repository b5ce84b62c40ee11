"""The graphs of Wan 2.2 TI2V: one transformer with a timestep for each latent frame, an autoencoder, and UMT5.

The autoencoder's encoder only sees the picture, so its graph for the frames after the first is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ..graph import Graph
from ..step import with_step
from ..wan.graphs import detail, streams, text_encoder, traceable

UNUSED = "vae_encoder_next"


@traceable
def graphs(configs: Mapping[str, dict[str, Any]], takes: Collection[str] = ()) -> tuple[Graph, ...]:
    """Return the graphs of the checkpoint whose config.json files are `configs`, keyed by folder.

    Raises CheckpointError if a config lacks a key or holds a value that its class does not take.
    """
    return (
        text_encoder(configs["text_encoder"]),
        *with_step(detail("transformer", configs["transformer"]), windows=True, takes=takes),
        *(graph for graph in streams("vae", configs["vae"]) if graph.component != UNUSED),
    )

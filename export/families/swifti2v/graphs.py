"""SwiftI2V on Wan 2.2: two transformers, two causal autoencoders and a UMT5 text encoder, as diffusers lays them out.

Stage I is a checkpoint of WanImageToVideoPipeline; Stage II lies beside it as `detail_transformer` and `detail_vae`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ....runtime.bundle.families import DETAIL, DETAIL_VAE, SECOND_EXPERT
from ..graph import Graph
from ..step import with_step
from ..wan.graphs import detail, motion, streams, text_encoder, traceable


@traceable
def graphs(configs: Mapping[str, dict[str, Any]], takes: Collection[str] = ()) -> tuple[Graph, ...]:
    """Return the graphs of the checkpoint whose config.json files are `configs`, keyed by folder.

    Raises CheckpointError if a config lacks a key or holds a value that its class does not take.
    """
    return (
        text_encoder(configs["text_encoder"]),
        *with_step(motion("transformer", configs["transformer"]), takes=takes),
        *([motion(SECOND_EXPERT, configs[SECOND_EXPERT])] if SECOND_EXPERT in configs else []),
        *with_step(detail(DETAIL, configs[DETAIL]), windows=True, takes=takes),
        *streams("vae", configs["vae"]),
        *streams(DETAIL_VAE, configs[DETAIL_VAE]),
    )

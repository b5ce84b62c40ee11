"""The graph of Qwen3 as a text encoder, which FLUX.2-klein and Z-Image share.

Sources: transformers' Qwen3Model, and how diffusers' Flux2KleinPipeline and ZImagePipeline call it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ...errors import CheckpointError
from .graph import WEIGHT, Graph, Port
from .modules import FUSED_ATTENTION, Wrapper


class Rotary(torch.nn.Module):
    """A rotary embedding with frequencies in float32 at every precision, computed without a buffer.

    It takes positions [batch, length] and returns cosines and sines [batch, length, head] in the dtype of `states`.
    """

    def __init__(self, theta: float, head: int) -> None:
        super().__init__()
        self.theta, self.head = theta, head

    def forward(self, states, position_ids):  # type: ignore[no-untyped-def]
        """Return the cosines and the sines."""
        exponents = torch.arange(0, self.head, 2, dtype=torch.float32) / self.head
        angles = position_ids[..., None].float() * (self.theta**-exponents)
        doubled = torch.cat([angles, angles], -1)
        return doubled.cos().to(states.dtype), doubled.sin().to(states.dtype)


class _Encoder(Wrapper):
    """Returns the states `taken` side by side, and skips the norm behind the last layer."""

    def __init__(self, model: torch.nn.Module, taken: Sequence[int]) -> None:
        super().__init__(model)
        self.taken = tuple(taken)

    def forward(self, input_ids, attention_mask=None):  # type: ignore[no-untyped-def]
        place = torch.arange(input_ids.shape[1])
        seen = (place[None, :] <= place[:, None])[None, None]
        if attention_mask is not None:
            seen = seen & (attention_mask[:, None, None, :] > 0)
        states = [self.model.embed_tokens(input_ids)]
        turns = self.model.rotary_emb(states[0], place[None])
        for layer in self.model.layers:
            states.append(layer(states[-1], attention_mask=seen, position_embeddings=turns))
        return torch.cat([states[number] for number in self.taken], -1)


def check(config: Mapping[str, Any], taken: Sequence[int]) -> int:
    """Return the width of the states `taken` side by side, see `text_encoder`.

    Raises CheckpointError for a text_encoder/config.json that has too few layers or an attention that the graph lacks.
    """
    from transformers import Qwen3Config

    made = Qwen3Config(**config)
    # Behind the last layer diffusers would take the state after the norm
    if made.num_hidden_layers <= max(taken):
        raise CheckpointError(
            f"text_encoder/config.json has num_hidden_layers {made.num_hidden_layers}; the state behind layer "
            f"{max(taken)} is needed, so there must be more. Fetch the checkpoint again."
        )
    rope = made.rope_parameters["rope_type"]
    if rope != "default" or set(made.layer_types) != {"full_attention"}:
        raise CheckpointError(
            f"text_encoder/config.json has rope_type {str(rope)[:40]!r} and layer_types "
            f"{str(sorted(set(made.layer_types)))[:80]}; Segue exports 'default' with full_attention. "
            "Choose a checkpoint with these."
        )
    return int(made.hidden_size) * len(taken)


def text_encoder(config: Mapping[str, Any], taken: Sequence[int], masked: bool) -> Graph:
    """Return the graph of Qwen3 for text; only the layers that `taken` needs are built.

    `taken` numbers states, 0 for the embedding and n for the state behind layer n. A checkpoint's files may be those of
    Qwen3Model or of Qwen3ForCausalLM.

    input_ids int64 [batch, length], with `masked` also attention_mask int64 [batch, length] -> states [batch, length,
    width * states taken], side by side. Tokens attend to earlier tokens, except where the mask is 0. Positions count
    those as well. Raises CheckpointError as `check` does.
    """
    from transformers import Qwen3Config, Qwen3Model

    width, layers = check(config, taken), max(taken)
    kinds = config.get("layer_types")
    short = {**config, "num_hidden_layers": layers, "layer_types": kinds and kinds[:layers]}
    made = Qwen3Config(**short)

    def build() -> torch.nn.Module:
        model = Qwen3Model._from_config(made, attn_implementation="sdpa")
        model.rotary_emb = Rotary(made.rope_parameters["rope_theta"], made.head_dim)
        return model

    def feed(rng: np.random.Generator, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        shape = sizes["batch"], sizes["length"]
        mask = np.ones(shape, np.int64)
        for row, end in enumerate(rng.integers(2, shape[1], shape[0])):
            mask[row, end:] = 0
        fed = {"input_ids": rng.integers(0, made.vocab_size, shape), "attention_mask": mask}
        return {port.name: fed[port.name] for port in inputs}

    names = ("input_ids", "attention_mask") if masked else ("input_ids",)
    inputs = tuple(Port(name, "int64", ("batch", "length")) for name in names)
    return Graph(
        component="text_encoder",
        folder="text_encoder",
        file="model.onnx",
        opset=FUSED_ATTENTION,
        build=build,
        load=lambda path: Qwen3Model.from_pretrained(
            path, config=Qwen3Config(**short), dtype=torch.float32, use_safetensors=True
        ),
        wrap=lambda model: _Encoder(model, taken),
        inputs=inputs,
        outputs=(Port("states", WEIGHT, ("batch", "length", width)),),
        traced={"batch": 2, "length": 24},
        trials=({"batch": 1, "length": 31}, {"batch": 3, "length": 12}),
        feed=feed,
        buffer=lambda name: None,
        alias=lambda name: f"model.{name}",
    )

"""A tiny Z-Image checkpoint with random weights, in the published layout."""

from __future__ import annotations

from pathlib import Path

from .checkpoints import save_parts, tiny_autoencoder
from .qwen3 import write_chat_tokenizer


def build_zimage(root: Path, *, causal: bool = False, shard_bytes: int = 100_000) -> Path:
    """Write a tiny Z-Image checkpoint to `root` and return it; `causal` saves the text encoder as Qwen3ForCausalLM."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    torch.manual_seed(0)
    vocabulary = write_chat_tokenizer(root / "tokenizer")
    text = Qwen3Config(
        vocab_size=vocabulary + 3, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=1024, rope_theta=10000.0,
    )  # fmt: skip
    parts = {
        "text_encoder": (Qwen3ForCausalLM if causal else Qwen3Model)(text),
        "transformer": ZImageTransformer2DModel(
            in_channels=4, dim=48, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=32,
            axes_dims=[8, 8, 8], axes_lens=[600, 32, 32],
        ),
        "vae": tiny_autoencoder(
            4, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False
        ),
    }  # fmt: skip
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(root / "scheduler")
    index = {
        "_class_name": "ZImagePipeline", "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", type(parts["text_encoder"]).__name__],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "ZImageTransformer2DModel"], "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    return save_parts(root, parts, index, {"maximum_size": 256}, shard_bytes)

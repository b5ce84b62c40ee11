"""A teacher of two thin blocks with a small autoencoder, and random text embeddings."""

from __future__ import annotations

from pathlib import Path

import torch

PROMPTS = tuple(f"prompt {i}" for i in range(7))


def embed(prompts: list[str]) -> dict[str, torch.Tensor]:
    """Return embeddings that depend on the prompt's length and last letter alone."""
    rows = [torch.Generator().manual_seed(len(p) * 1000 + ord(p[-1:] or " ")) for p in prompts]
    return {
        "states": torch.stack([torch.randn(5, 24, generator=g) for g in rows]),
        "pooled": torch.stack([torch.randn(12, generator=g) for g in rows]),
    }


def write_teacher(folder: Path) -> Path:
    """Write the teacher's transformer and autoencoder to `folder` and return it."""
    from diffusers import AutoencoderKL, SD3Transformer2DModel

    torch.manual_seed(0)
    network = SD3Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=24, caption_projection_dim=16, pooled_projection_dim=12, out_channels=4,
        pos_embed_max_size=4,
    )  # fmt: skip
    network.save_pretrained(folder / "transformer")
    AutoencoderKL(
        block_out_channels=(8,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, latent_channels=4, norm_num_groups=4,
        scaling_factor=1.5, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False,
    ).save_pretrained(folder / "vae")  # fmt: skip
    return folder

"""A teacher of two thin blocks with a small autoencoder, and random text embeddings."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from segue.training.cdm.data.conditions import write_conditions
from segue.training.loop import device

PROMPTS = tuple(f"prompt {i}" for i in range(7))


def embed(prompts: list[str]) -> dict[str, torch.Tensor]:
    """Return embeddings that depend on the prompt's length and last letter alone."""
    rows = [torch.Generator().manual_seed(len(p) * 1000 + ord(p[-1:] or " ")) for p in prompts]
    return {
        "states": torch.stack([torch.randn(5, 24, generator=g) for g in rows]),
        "pooled": torch.stack([torch.randn(12, generator=g) for g in rows]),
    }


@pytest.fixture(autouse=True, scope="module")
def fp32():
    """Compute in fp32 on every machine: these tests compare small numbers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "fast_dtype", lambda _: torch.float32)
        yield


@pytest.fixture(scope="session")
def encode():
    return embed


@pytest.fixture(scope="session")
def prompts() -> tuple[str, ...]:
    return PROMPTS


@pytest.fixture(scope="session")
def worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cdm_worker", Path(__file__).with_name("worker.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import AutoencoderKL, SD3Transformer2DModel

    torch.manual_seed(0)
    network = SD3Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=24, caption_projection_dim=16, pooled_projection_dim=12, out_channels=4,
        pos_embed_max_size=4,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("teacher")
    network.save_pretrained(folder / "transformer")
    AutoencoderKL(
        block_out_channels=(8,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, latent_channels=4, norm_num_groups=4,
        scaling_factor=1.5, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False,
    ).save_pretrained(folder / "vae")  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def conditions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "conditions"
    write_conditions(folder, PROMPTS, embed, rows=3, batch=2)
    return folder

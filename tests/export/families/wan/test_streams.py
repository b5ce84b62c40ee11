"""Tiny autoencoders of both published kinds: Wan 2.1's, and Wan 2.2's with patches and residual blocks."""

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from segue.export.families.wan.streams import Decode, Encode, Stream

KINDS = {
    "wan 2.1": {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1},
    "wan 2.2": {
        "base_dim": 8, "decoder_base_dim": 12, "z_dim": 6, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1,
        "is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16,
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=list(KINDS))
def model(request: pytest.FixtureRequest) -> AutoencoderKLWan:
    torch.manual_seed(0)
    config = KINDS[request.param]
    size = config["z_dim"]
    return AutoencoderKLWan(**config, latents_mean=[0.0] * size, latents_std=[1.0] * size).eval()


def through(kind: type[Stream], model: AutoencoderKLWan, parts: list[Tensor]) -> Tensor:
    first, later = kind(model, True), kind(model, False)
    assert first.caches == later.caches
    made, *caches = first(parts[0])
    found, shapes = [made], [cache.shape for cache in caches]
    for part in parts[1:]:
        made, *caches = later(part, *caches)
        found.append(made)
        assert [cache.shape for cache in caches] == shapes
    assert len(shapes) == len(first.caches)
    return torch.cat(found, 2)


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).norm() < 1e-5 * expected.norm()


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 2, 6])
def test_a_clip_decoded_frame_by_frame_is_the_clip_decoded_whole(model: AutoencoderKLWan, count: int) -> None:
    latents = torch.randn(2, model.config.z_dim, count, 3, 4, generator=torch.Generator().manual_seed(1))
    found = through(Decode, model, list(latents.split(1, 2)))
    close(found, model.decode(latents, return_dict=False)[0])
    assert found.shape[2] == 4 * count - 3


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 2, 6])
def test_a_clip_encoded_piece_by_piece_is_the_clip_encoded_whole(model: AutoencoderKLWan, count: int) -> None:
    side = model.spatial_compression_ratio
    pixels = torch.rand(2, 3, 4 * count - 3, 3 * side, 2 * side, generator=torch.Generator().manual_seed(2)) * 2 - 1
    parts = [pixels[:, :, :1], *(pixels[:, :, i : i + 4] for i in range(1, pixels.shape[2], 4))]
    close(through(Encode, model, parts), model.encode(pixels, return_dict=False)[0].mean)


@torch.no_grad()
def test_the_first_latent_frame_depends_on_the_first_frame_alone(model: AutoencoderKLWan) -> None:
    side = 2 * model.spatial_compression_ratio
    clip = torch.rand(1, 3, 9, side, side, generator=torch.Generator().manual_seed(3)) * 2 - 1
    alone, whole = (model.encode(pixels, return_dict=False)[0].mean for pixels in (clip[:, :, :1], clip))
    close(whole[:, :, :1], alone)

"""What each family's transformer is given, against diffusers' own pipeline code."""

import pytest
import torch

from segue.errors import TrainingError
from segue.training.cdm.families import FAMILIES, find_family, square_ids, text_ids


@pytest.fixture
def longcat():
    from diffusers import LongCatImageTransformer2DModel

    torch.manual_seed(0)
    return LongCatImageTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=12, axes_dims_rope=[4, 6, 6],
    )  # fmt: skip


def test_position_ids_are_those_of_longcats_pipeline() -> None:
    from diffusers.pipelines.longcat_image.pipeline_longcat_image import prepare_pos_ids

    assert text_ids(7).equal(prepare_pos_ids(modality_id=0, type="text", start=(0, 0), num_token=7))
    expected = prepare_pos_ids(modality_id=1, type="image", start=(512, 512), height=4, width=4)
    assert square_ids(16).equal(expected)
    with pytest.raises(TrainingError, match="15 packed latents are not a square"):
        square_ids(15)


def test_longcat_takes_the_level_itself_and_packed_latents(longcat) -> None:
    family = FAMILIES["longcat-image"]
    assert family.shape(longcat.config, 64, 64) == (16, 16)
    with pytest.raises(TrainingError, match="square"):
        family.shape(longcat.config, 64, 128)
    latents, states = torch.randn(2, 16, 16), torch.randn(2, 5, 12)
    seen = []
    longcat.time_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    velocity = family.velocity(longcat, latents, torch.tensor([0.25, 0.5]), {"states": states})
    assert velocity.shape == latents.shape
    assert seen[0].tolist() == [250.0, 500.0]


def test_every_adapted_linear_and_every_sharded_block_exists(longcat) -> None:
    family = FAMILIES["longcat-image"]
    names = [name for name, _ in longcat.named_modules()]
    assert all(any(name.endswith(end) for name in names) for end in family.adapted)
    kinds = {type(module).__name__ for module in longcat.modules()}
    assert set(family.blocks) <= kinds


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"no family 'flux'. Name one of sd3, longcat-image"):
        find_family("flux")

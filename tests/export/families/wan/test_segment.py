"""Stage II's transformer beside diffusers' own class, on a tiny random one."""

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from segue.export.families.wan.segment import SegmentTransformer, widened
from segue.runtime.bundle.segments import SegmentSpec, segment

CHANNELS, FRAMES, HEIGHT, WIDTH = 6, 5, 4, 8


@pytest.fixture(scope="module")
def wan() -> WanTransformer3DModel:
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=CHANNELS, out_channels=CHANNELS, text_dim=10,
        freq_dim=16, ffn_dim=40, num_layers=2, rope_max_seq_len=64,
    )  # fmt: skip
    return model.eval()


@pytest.fixture(scope="module")
def stage_two(wan: WanTransformer3DModel) -> SegmentTransformer:
    return widened(wan, CHANNELS).eval()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def window() -> dict[str, Tensor]:
    positions = torch.tensor([segment(1, 21, SegmentSpec()).frames, segment(3, 21, SegmentSpec()).frames])
    return {
        "latents": normal(2, CHANNELS, FRAMES, HEIGHT, WIDTH),
        "timesteps": torch.tensor([[0.0, 0.0, 700.0, 700.0, 700.0], [0.0, 0.0, 250.0, 250.0, 250.0]]),
        "text": normal(2, 7, 10, seed=1),
        "positions": positions,
    }


def with_reference(latents: Tensor, seed: int = 5) -> Tensor:
    return torch.cat([latents, normal(*latents.shape, seed=seed)], 1)


@torch.no_grad()
def test_on_frames_that_follow_one_another_it_is_the_model_that_it_was_made_of(wan, stage_two, window):
    per_token = window["timesteps"].repeat_interleave(HEIGHT * WIDTH // 4, 1)
    expected = wan(window["latents"], per_token, window["text"], return_dict=False)[0]
    rows = torch.arange(FRAMES).expand(2, -1)
    for seed in (5, 6):  # whatever the reference holds
        found = stage_two(with_reference(window["latents"], seed), window["timesteps"], window["text"], rows)
        assert (found - expected).norm() < 1e-5 * expected.norm()


@torch.no_grad()
def test_positions_count_and_only_their_distances_do(stage_two, window):
    latents = with_reference(window.pop("latents"))
    found = stage_two(latents, **window)
    moved = stage_two(latents, **{**window, "positions": window["positions"] + 9})
    assert (moved - found).norm() < 1e-4 * found.norm()
    packed = stage_two(latents, **{**window, "positions": torch.arange(FRAMES).expand(2, -1)})
    assert (packed - found).norm() > 1e-4 * found.norm()


@torch.no_grad()
def test_each_sample_has_its_own_positions_and_timesteps(stage_two, window):
    window["latents"] = with_reference(window["latents"])
    together = stage_two(**window)
    for row in range(2):
        alone = stage_two(**{name: tensor[row : row + 1] for name, tensor in window.items()})
        assert torch.allclose(together[row : row + 1], alone, atol=1e-5)


@torch.no_grad()
def test_a_noisy_frame_moves_what_the_image_latent_has_become(stage_two, window):
    """Attention runs both ways: so what a context frame has become in one step cannot be kept for the next."""
    seen: list[Tensor] = []
    handle = stage_two.blocks[-1].register_forward_hook(lambda module, given, made: seen.append(made))
    latents = with_reference(window.pop("latents"))
    stage_two(latents, **window)
    latents[:, :CHANNELS, 4] += 1.0
    stage_two(latents, **window)
    handle.remove()
    a_frame = HEIGHT * WIDTH // 4
    for context in (0, 1):
        before, after = (hidden[:, context * a_frame : (context + 1) * a_frame] for hidden in seen)
        assert (after - before).norm() > 1e-4 * before.norm()


def test_the_new_channels_learn_and_checkpointing_changes_nothing(stage_two, window):
    gradients = []
    for checkpointing in (False, True):
        model = SegmentTransformer.from_config(stage_two.config)
        model.load_state_dict(stage_two.state_dict())
        if checkpointing:
            model.enable_gradient_checkpointing()
        made = model(with_reference(window["latents"]), window["timesteps"], window["text"], window["positions"])
        made.square().mean().backward()
        gradients.append(model.patch_embedding.weight.grad)
    assert gradients[0][:, CHANNELS:].abs().sum() > 0
    assert torch.allclose(*gradients, atol=1e-7)

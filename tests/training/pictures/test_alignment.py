"""The alignment's own loss, and a teacher that trains with it, on features that stand in for Lite0's."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from segue.training.pictures.alignment import Alignment, patch_features
from segue.training.pictures.autoencoder import Autoencoder, AutoencoderSpec
from segue.training.pictures.dataset import Pictures
from segue.training.pictures.spec import TeacherSpec
from segue.training.pictures.teacher import Teacher


class Joint(nn.Module):
    """As a joint block of diffusers: the text's tokens and the picture's."""

    def forward(self, text: torch.Tensor, picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both."""
        return text, picture


@pytest.fixture
def targets() -> torch.Tensor:
    return torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))


def test_tokens_that_point_as_their_targets_do_cost_nothing_and_opposite_ones_two(targets):
    block = Joint()
    alignment = Alignment(block, 6, targets)
    alignment.head = nn.Sequential()
    chosen = torch.tensor([2, 0])
    for factor, expected in ((3.0, 0.0), (-0.5, 2.0)):
        block(torch.randn(2, 5, 6), factor * targets[chosen])
        assert alignment(chosen).item() == pytest.approx(expected, abs=1e-6)
    block(torch.randn(2, 5, 6), targets[[0, 2]])
    assert alignment(chosen).item() > 0.5


def test_the_targets_are_no_weights_and_the_block_gets_a_gradient(targets):
    block = Joint()
    alignment = Alignment(block, 6, targets)
    assert {name.split(".")[0] for name in alignment.state_dict()} == {"head"}
    tokens = torch.randn(1, 4, 6, requires_grad=True)
    block(torch.zeros(1, 1, 6), tokens)
    alignment(torch.tensor([1])).backward()
    assert tokens.grad is not None
    assert tokens.grad.abs().sum() > 0


def test_an_aligned_teacher_learns_with_a_head_that_its_checkpoint_lacks(
    pictures: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    table = hashlib.sha256((pictures / "emoji.json").read_bytes()).digest()
    features = torch.randn(8, 64, 112, generator=torch.Generator().manual_seed(0)).half()
    key = {"sources": hashlib.sha256(table).hexdigest()}
    save_file({"features": features}, pictures / "lite0-patches.safetensors", key)
    assert patch_features(Pictures(pictures)).equal(features)
    Autoencoder(AutoencoderSpec(str(pictures), channels=(8, 8, 8, 16), groups=4), seed=0).finish(tmp_path / "parts")
    parts = str(tmp_path / "parts")
    spec = TeacherSpec(
        str(pictures), parts, str(tiny_checkpoint), layers=2, heads=2, head=8, joint_width=40, align=0.5,
        align_depth=1,
    )  # fmt: skip
    task = Teacher(spec, seed=0)
    loss, figures = task.loss(task.draw(3, torch.Generator().manual_seed(1)))
    assert loss.item() == pytest.approx(figures["velocity"] + 0.5 * figures["alignment"], rel=1e-5)
    loss.backward()
    untouched = [name for name, p in task.module.named_parameters() if p.grad is None]
    assert not [name for name in untouched if name.startswith("alignment")]
    task.finish(tmp_path / "out")
    from diffusers import SD3Transformer2DModel

    net = SD3Transformer2DModel.from_pretrained(tmp_path / "out/checkpoint/transformer")
    assert not [name for name in net.state_dict() if "alignment" in name or "head." in name]


def test_an_alignment_deeper_than_the_transformer_is_refused(
    pictures: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from segue.errors import TrainingError

    Autoencoder(AutoencoderSpec(str(pictures), channels=(8, 8, 8, 16), groups=4), seed=0).finish(tmp_path / "parts")
    parts = str(tmp_path / "parts")
    for depth in (0, 3):
        spec = TeacherSpec(
            str(pictures), parts, str(tiny_checkpoint), layers=2, heads=2, head=8, joint_width=40, align=0.5,
            align_depth=depth,
        )  # fmt: skip
        with pytest.raises(TrainingError, match=rf"align_depth = {depth} .* 1 to 2"):
            Teacher(spec, seed=0)

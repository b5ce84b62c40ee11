"""The text encoders without the networks that have to be fetched: those two are replaced by small stand-ins."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from segue.training.pictures import text_encoders
from segue.training.pictures.text_encoders import TextEncoders, TextEncodersSpec


@pytest.fixture
def task(pictures: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> TextEncoders:
    table = hashlib.sha256((pictures / "emoji.json").read_bytes()).digest()
    features = torch.randn(8, 1280, generator=torch.Generator().manual_seed(0))
    save_file({"features": features}, pictures / "lite0.safetensors", {"sources": hashlib.sha256(table).hexdigest()})
    monkeypatch.setattr(text_encoders, "embed_names", lambda names: torch.eye(len(names), 384))
    monkeypatch.setattr(
        text_encoders,
        "make_tokenizer",
        lambda length, pad: CLIPTokenizer.from_pretrained(tiny_checkpoint / "tokenizer"),
    )
    return TextEncoders(TextEncodersSpec(str(pictures), widths=(32, 64), layers=1), seed=0)


def test_a_step_depends_on_its_generator_alone(task: TextEncoders) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, _ = task.loss(task.draw(4, torch.Generator().manual_seed(5)))
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(2)
    second, _ = task.loss(task.draw(4, torch.Generator().manual_seed(5)))
    other, _ = task.loss(task.draw(4, torch.Generator().manual_seed(6)))
    assert first.item() == second.item() != other.item()


def test_captions_and_pictures_are_brought_together(task: TextEncoders) -> None:
    optimiser = torch.optim.Adam(task.module.parameters(), 3e-3)
    curve = []
    for step in range(30):
        loss, _ = task.loss(task.draw(8, torch.Generator().manual_seed(step)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        curve.append(loss.item())
    assert sum(curve[-5:]) < 0.8 * sum(curve[:5])


def test_tokenizers_are_written_as_the_published_checkpoint_has_them(task: TextEncoders, tmp_path: Path) -> None:
    text_encoders.save_tokenizer(task.tokenizers[0], tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["merges.txt", "tokenizer_config.json", "vocab.json"]
    again = CLIPTokenizer.from_pretrained(tmp_path)
    for text in ("a red heart", "", "it's  A hare!"):
        assert again(text).input_ids == task.tokenizers[0](text).input_ids

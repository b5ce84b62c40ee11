from pathlib import Path

import pytest
import torch

from segue.training.loop.run import step_generator
from segue.training.pictures import text_encoders
from segue.training.video import text as module
from segue.training.video.text import Umt5Conditioner, VideoText, VideoTextSpec, make_tokenizer, pooled, tokens

WORDS = ["red square", "green square", "a smiling face", "waving hand", "box"] * 20


@pytest.fixture
def training(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> VideoText:
    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr(
        text_encoders,
        "embed_names",
        lambda names: torch.nn.functional.normalize(torch.randn(len(names), 8, generator=generator)),
    )
    monkeypatch.setattr(
        module,
        "picture_features",
        lambda folder, of, progress=None: torch.randn(len(of.rows), 1280, generator=generator),
    )
    return VideoText(
        VideoTextSpec(str(pictures), width=32, layers=1, head=16, feed_forward=32, vocabulary=60, length=8), 0
    )


def test_the_loss_falls_and_the_encoder_that_is_written_is_the_one_that_was_trained(training, tmp_path: Path) -> None:
    optimiser = torch.optim.Adam(training.module.parameters(), 1e-2)
    losses = []
    for step in range(12):
        loss, _ = training.loss(training.draw(8, step_generator(0, step)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    training.finish(tmp_path)
    conditioner = Umt5Conditioner(tmp_path, 8, torch.device("cpu"))
    states = conditioner(["red square", "a green square here"])
    ids, mask = tokens(training.tokenizer, ["red square", "a green square here"])
    with torch.no_grad():
        expected = training.encoder.eval()(ids, mask).last_hidden_state
    assert states.shape == (2, 8, 32)
    assert torch.allclose(states[1, : mask[1].sum()], expected[1, : mask[1].sum()], atol=1e-5)
    assert not states[0, mask[0].sum() :].any()


def test_a_tokenizer_ends_every_text_and_knows_the_words_it_was_made_of() -> None:
    tokenizer = make_tokenizer(WORDS, 60, 12)
    ids, mask = tokens(tokenizer, ["red square", "", "waving hand " * 9])
    assert ids.shape == mask.shape == (3, 12)
    assert ids[1].tolist() == [1] + [0] * 11  # the end of text, then padding
    assert mask[2].all()
    assert ids[2, -1] == 1
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == "red square"


def test_the_mean_leaves_padding_out() -> None:
    states = torch.tensor([[[1.0], [3.0], [100.0]]])
    assert pooled(states, torch.tensor([[1, 1, 0]])).tolist() == [[2.0]]


def test_equal_names_are_equally_good_answers() -> None:
    names = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    targets = text_encoders.soft_targets(names, torch.tensor([0, 0, 1]), 0.1, 0.05)
    assert targets[0, 0] == targets[0, 1] > targets[0, 2]
    perfect = torch.cat([names, names])
    loss = text_encoders.contrastive(perfect, names, torch.tensor(3.0), targets)
    assert loss < text_encoders.contrastive(perfect, names.flip(0), torch.tensor(3.0), targets)

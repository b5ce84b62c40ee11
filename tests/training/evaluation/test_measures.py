import pytest
import torch

from segue.training.evaluation import measures
from segue.training.evaluation.measures import Classifier, Interval, diversity, interval, saturation


def test_the_interval_is_students_t_over_seeds() -> None:
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half == pytest.approx(4.303 / 3**0.5)
    assert interval([5.0]) == Interval(5.0, None)
    assert str(found) == "2 ± 2.5"
    assert str(interval([5.0])) == "5"


def test_the_classifier_knows_what_can_be_told_apart_and_guesses_what_cannot() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 1280, generator=generator)
    keys = [f"key {i % 4}" for i in range(400)]
    order = torch.arange(400) % 4
    apart = centres[order] + 0.1 * torch.randn(400, 1280, generator=generator)
    styles = [("flat", "round")[i // 4 % 2] for i in range(400)]
    found = Classifier(apart, keys, styles)
    assert found.accuracy_on_real == 1.0
    assert found.accuracy(centres, ["key 0", "key 1", "key 2", "key 3"]) == 1.0
    assert found.accuracy(centres, ["key 1", "key 2", "key 3", "key 0"]) == 0.0
    same = Classifier(torch.randn(400, 1280, generator=generator), keys, styles)
    assert 0.1 < same.accuracy_on_real < 0.45


def test_saturation_counts_what_lies_beyond_white_and_black() -> None:
    pictures = torch.zeros(1, 3, 2, 2)
    pictures[0, 0, 0, 0], pictures[0, 1, 0, 0], pictures[0, 2, 0, 0] = 1.5, -1.1, 1.01
    assert saturation(pictures) == pytest.approx(2 / 12)


def test_diversity_is_the_mean_over_pairs_of_one_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    class Distance(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return (a - b).abs().mean((1, 2, 3))

    monkeypatch.setattr(measures, "Lpips", Distance)
    values = torch.tensor([[0.0, 0.5, 1.0], [0.2, 0.2, 0.2]])
    pictures = values[:, :, None, None, None].expand(2, 3, 3, 4, 4)
    assert diversity(pictures) == pytest.approx([(0.5 + 1.0 + 0.5) / 3, 0.0])


def test_no_recolour_of_a_held_out_picture_is_fitted() -> None:
    # Pictures of one class and style are all alike, those of another style point elsewhere: only leaks could be known.
    generator = torch.Generator().manual_seed(0)
    kinds = {(k, s): torch.randn(1280, generator=generator) for k in range(6) for s in range(3)}
    rows = [(k, s) for k in range(6) for s in range(3) for _ in range(5)]
    features = torch.stack([kinds[row] for row in rows])
    found = Classifier(features, [f"key {k}" for k, _ in rows], [f"style {s}" for _, s in rows])
    assert found.accuracy_on_real < 0.6

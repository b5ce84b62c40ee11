"""A video model beside what is simpler, with stand-ins for the networks that would be fetched."""

import json
from pathlib import Path

import pytest
import torch

from segue.errors import TrainingError
from segue.training.evaluation import measures, videos
from segue.training.evaluation.report import write_video_report
from segue.training.evaluation.video_model import Noise, VideoModel, settings_of
from segue.training.evaluation.videos import VideoEvalSpec, evaluate


class Larger:
    """Stands in for the super-resolution network."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        return frames.repeat_interleave(self.factor, -1).repeat_interleave(self.factor, -2)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch, features, distance) -> None:
    monkeypatch.setattr(videos, "Lite0", features)
    monkeypatch.setattr(videos, "AnimeVideo", Larger)
    monkeypatch.setattr(measures, "Lpips", distance)
    monkeypatch.setattr(videos, "HELD_OUT", ("train", "held-out name"))
    monkeypatch.setattr(videos, "warp_error", lambda video, truth, every: float(truth is None))  # slow, tested alone


def test_every_way_is_measured_and_the_clip_itself_is_perfect(both: Path, clips: Path, tmp_path: Path, stand_ins):
    told = []
    spec = VideoEvalSpec(clips=2, seeds=2, batch=1)
    found = evaluate({"one": both}, clips, spec, lambda what, done, total: told.append((done, total)))
    sources = ("motion of the clip", "motion of Stage I")
    assert set(found.figures) == {
        "the clip itself",
        "frozen first frame",
        *(f"{way}, {source}" for way in ("bicubic", "realesr-animevideov3", "one") for source in sources),
    }
    assert told[-1] == (4, 4)
    truth, frozen = found.figures["the clip itself"], found.figures["frozen first frame"]
    assert truth["LPIPS"].mean == 0
    assert truth["PSNR"].mean == 100
    assert truth["dynamic degree / the clip's"].mean == 1
    assert frozen["dynamic degree"].mean == 0
    assert "loop gap" not in frozen
    assert frozen["PSNR of the first frame"].mean == 100
    bicubic = found.figures["bicubic, motion of the clip"]
    assert 0 < bicubic["LPIPS"].mean < found.figures["one, motion of the clip"]["LPIPS"].mean  # a random model
    assert bicubic["LPIPS"].half == 0  # nothing of it is drawn
    assert found.figures["one, motion of Stage I"]["seam ratio"].mean > 0
    assert found.figures["one, motion of Stage I"]["LPIPS"].half > 0
    assert found.figures["one, motion of the clip"]["warp error"].mean == 0  # along the true flow
    assert found.figures["one, motion of Stage I"]["warp error"].mean == 1  # along its own
    assert set(found.most) == set(found.figures)
    write_video_report(found, spec, {"one": str(both)}, tmp_path)
    page, table = (tmp_path / "report.html").read_text(), json.loads((tmp_path / "report.json").read_text())
    assert page.count("<img") == len(found.figures)
    assert table["figures"]["frozen first frame"]["dynamic degree"] == {"mean": 0.0, "half": 0.0}


@pytest.mark.slow
def test_a_batch_of_clips_gives_what_each_gives_alone(both: Path, clips: Path, stand_ins):
    one, two = (
        evaluate({"one": both}, clips, VideoEvalSpec(clips=2, batch=batch), lambda *_: None).figures for batch in (1, 2)
    )
    for way, figures in one.items():
        for measure, value in figures.items():
            assert two[way][measure].mean == pytest.approx(value.mean, rel=1e-2, abs=1e-3), (way, measure)


def test_noise_is_each_clips_own():
    assert Noise(1, [4, 7])((2, 3), 1)[1].equal(Noise(1, [7])((2, 3), 1)[0])
    assert not Noise(1, [4])((2, 3), 1).equal(Noise(2, [4])((2, 3), 1))
    assert not Noise(1, [4])((2, 3), 1).equal(Noise(1, [4])((2, 3), 2))  # a stage's is its own


def test_settings_are_the_checkpoints_own(both: Path, tmp_path: Path):
    settings = settings_of(both)
    assert settings.frames == 25
    assert settings.motion.steps == 20
    assert settings.detail.steps == 4
    with pytest.raises(TrainingError, match="has no video settings"):
        settings_of(tmp_path)
    with pytest.raises(TrainingError, match="has no detail_transformer"):
        VideoModel(tmp_path, torch.device("cpu"))

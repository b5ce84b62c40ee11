"""An evaluation of the tiny checkpoint beside itself, with stand-ins for the networks that would be fetched."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from segue.errors import TrainingError
from segue.runtime.sampling.schedule import default_schedule
from segue.training.evaluation import evaluate as module
from segue.training.evaluation import measures
from segue.training.evaluation.evaluate import (
    EvalSpec,
    Student,
    evaluate,
    even_schedule,
    names_of,
    settings_of,
    sigmas_of,
    subjects,
)
from segue.training.evaluation.report import write_report
from segue.training.metrics import scores
from segue.training.pictures.autoencoder import Autoencoder, AutoencoderSpec
from segue.training.pictures.checkpoint import write_checkpoint
from segue.training.pictures.sampling import load_pipeline
from segue.training.pictures.spec import TeacherSpec
from segue.training.pictures.teacher import Teacher


@pytest.fixture
def checkpoint(
    pictures: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, features, distance
) -> Path:
    table = hashlib.sha256((pictures / "emoji.json").read_bytes()).digest()
    of_pictures = torch.randn(8, 1280, generator=torch.Generator().manual_seed(0))
    save_file({"features": of_pictures}, pictures / "lite0.safetensors", {"sources": hashlib.sha256(table).hexdigest()})
    monkeypatch.setattr(module, "Lite0", features)
    monkeypatch.setattr(measures, "Lpips", distance)
    monkeypatch.setattr(scores, "Lpips", distance)
    monkeypatch.setattr(module, "PROMPTS_OF_DIVERSITY", 2)
    monkeypatch.setattr(module, "PICTURES_OF_DIVERSITY", 2)
    monkeypatch.setattr(module, "LADDER", range(1, 3))
    Autoencoder(AutoencoderSpec(str(pictures), channels=(8, 8, 8, 16), groups=4), seed=0).finish(tmp_path / "parts")
    spec = TeacherSpec(
        str(pictures), str(tmp_path / "parts"), str(tiny_checkpoint), layers=1, heads=2, head=8, joint_width=40
    )
    transformer = Teacher(spec, 0).transformer
    for parameter in transformer.parameters():  # one that begins draws its noise again, whatever is asked for
        torch.nn.init.normal_(parameter, std=0.1)
    write_checkpoint(transformer, spec, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_the_report_holds_every_way_of_drawing_and_the_teacher_is_itself(
    checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    spec = EvalSpec(prompts=6, seeds=2, ladder_prompts=4, steps=3, guidance=1.0)  # so the first two draw the same
    told = []
    students = {"one": checkpoint, "two": checkpoint}
    found = evaluate(students, checkpoint, pictures, spec, lambda *at: told.append(at))
    assert told[-1] == ("done", told[-1][2], told[-1][2])
    assert [done for _, done, _ in told] == list(range(len(told)))
    names = list(found.figures)
    assert len(names) == 5
    assert found.figures[names[1]]["LPIPS to the teacher"].mean == 0.0
    assert found.figures[names[1]]["KID / the teacher's"].mean == 1.0
    assert found.figures["one, 4 steps"]["LPIPS to the teacher"].mean > 0
    assert found.figures[names[0]]["calls"].mean == 3
    assert found.figures["one, 4 steps"]["calls"].mean == 4
    assert found.figures[names[0]]["KID x 1e3"].half is not None
    assert found.figures["one, 4 steps"] == found.figures["two, 4 steps"]
    assert set(found.ladders) == {
        f"{name}, {grid}" for name in students for grid in ("even levels", "diffusers' default levels")
    }
    assert list(found.ladders["one, even levels"]) == [1, 2]
    write_report(found, spec, {"students": {"one": "a <b>"}, "teacher": "t"}, tmp_path)
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["ladders"]["one, even levels"]["2"]["accuracy"]["half"] is not None
    assert content["figures"]["one, 4 steps"]["accuracy"]["mean"] == found.figures["one, 4 steps"]["accuracy"].mean
    page = (tmp_path / "report.html").read_text()
    assert "a &lt;b&gt;" in page
    assert page.count("data:image/png;base64,") == len(names)
    assert "<svg" in page


def test_students_and_teachers_are_drawn_on_the_grids_they_are_meant_for(checkpoint: Path) -> None:
    students = [Student("a", None, sigmas_of(checkpoint)), Student("b", None, (1.0, 0.5))]  # type: ignore[arg-type]
    whole, free, few, student, other = subjects(students, None, EvalSpec())  # type: ignore[arg-type]
    assert (whole.calls, free.calls, few.calls, student.calls, other.calls) == (56, 28, 8, 4, 2)
    assert student.schedule.sigmas.tolist() == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])
    assert even_schedule(4, 3.0).sigmas.tolist() == student.schedule.sigmas.tolist()


def test_the_checkpoints_say_how_they_are_sampled(tmp_path: Path) -> None:
    for name, table in (
        ("student", {"sigmas": [1.0, 0.5]}),
        ("teacher", {"steps": 20, "guidance": 3.0, "source": "x"}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "segue.json").write_text(json.dumps(table))
    (tmp_path / "teacher/scheduler").mkdir()
    (tmp_path / "teacher/scheduler/scheduler_config.json").write_text('{"shift": 2.0, "num_train_timesteps": 1000}')
    assert settings_of(tmp_path / "teacher") == {"steps": 20, "guidance": 3.0, "shift": 2.0}
    assert sigmas_of(tmp_path / "student") == (1.0, 0.5)
    assert settings_of(tmp_path) == {}


def test_students_are_named_by_their_runs_or_their_bundles(tmp_path: Path) -> None:
    assert list(names_of([tmp_path / "run/checkpoint", tmp_path / "emoji"])) == ["run", "emoji"]
    same = [tmp_path / "a/emoji", tmp_path / "b/emoji"]
    assert names_of(same) == {str(path): path for path in same}


def test_guidance_leads_from_the_empty_prompt_to_the_caption(checkpoint: Path) -> None:
    pipeline = load_pipeline(checkpoint, torch.device("cpu"))
    noise = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    one = default_schedule(1, 3.0, 1000)
    tied, free, led = (
        pipeline.draw([caption], noise, one, guidance) - noise
        for caption, guidance in (("red", 1.0), ("", 1.0), ("red", 2.0))
    )
    assert torch.allclose(led, free + 2 * (tied - free), rtol=1e-2, atol=1e-2)


def test_a_checkpoint_that_is_not_there_is_named(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="Name a directory in diffusers format"):
        evaluate({"a": tmp_path / "a"}, tmp_path / "b", pictures, EvalSpec(), lambda *_: None)

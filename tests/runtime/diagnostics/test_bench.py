"""Timing a bundle: the stages are its calls, the numbers hang together, and impossible requests are refused."""

import json

import pytest
from click.testing import CliRunner

import segue
from segue.cli import cli
from segue.engines.ort.engine import OrtEngine
from segue.errors import UsageError
from segue.runtime.diagnostics.bench import BundleProcess, bench
from segue.runtime.request import Request


def test_stages_are_the_calls_of_a_picture_and_fit_into_it():
    found = bench("emoji", Request("a red heart", size=64, steps=3), repeats=2, threads=1)
    calls = {stage.component: stage.calls for stage in found.stages}
    assert calls == {"text_encoder": 1, "text_encoder_2": 1, "transformer": 3, "vae_decoder": 1}
    assert sum(stage.calls * stage.seconds.low for stage in found.stages) <= found.picture.high
    (denoiser,) = [stage for stage in found.stages if stage.component == "transformer"]
    with segue.open("emoji") as model:
        cost = model.bundle.manifest.components["transformer"].cost
        assert cost is not None
        alone = cost.flops.at({"batch": 1, "height": 8, "width": 8, "text": 24})
    assert denoiser.flops == alone  # the student draws without guidance: one sample a call
    for stage in found.stages:
        assert stage.seconds.low <= stage.seconds.median <= stage.seconds.high
        assert stage.share == pytest.approx(stage.flops / stage.seconds.median / found.peak)
        assert 0 < stage.share < 1.5  # of a peak that was measured in the same minute
    assert found.threads == 1


def test_the_command_tells_the_same_as_json():
    told = CliRunner().invoke(cli, ["bench", "emoji", "--size", "64", "--steps", "1", "--repeats", "2", "--json"])
    rows = [json.loads(line) for line in told.output.splitlines()]
    assert rows[-1]["event"] == "bench"
    assert {stage["component"] for stage in rows[-1]["stages"]} >= {"transformer", "vae_decoder"}


def test_device_memory_is_told_where_what_runs_a_component_knows_it(monkeypatch):
    command = ["bench", "emoji", "--size", "64", "--steps", "1", "--repeats", "2"]
    told = json.loads(CliRunner().invoke(cli, [*command, "--json"]).output.splitlines()[-1])
    assert {stage["device_bytes"] for stage in told["stages"]} == {None}  # ONNX Runtime does not tell
    monkeypatch.setattr(OrtEngine, "device_bytes", property(lambda engine: 3 * 2**19))
    assert bench("emoji", Request("x", size=64, steps=1), repeats=2, threads=1).stages[0].device_bytes == 3 * 2**19
    shown = CliRunner().invoke(cli, command).output
    assert "MiB on" in shown
    assert [line.split("│")[6].strip() for line in shown.splitlines() if line.startswith("│ vae")] == ["1.5"]


def test_one_repeat_is_refused_and_so_are_videos(video_bundle):
    with pytest.raises(UsageError, match="repeats must be 2 or more, got 1"):
        bench("emoji", Request("x"), repeats=1)
    with pytest.raises(UsageError, match="makes videos"):
        bench(str(video_bundle), Request("x"), repeats=2)


def test_a_painter_draws_what_the_model_draws_and_tells_its_memory(exported):
    import numpy as np

    import segue

    painter = BundleProcess(str(exported), 1)
    found = painter.draw("a red heart", 3, (64, 96))
    painter.close()
    with segue.open(exported, threads=1) as model:
        assert np.array_equal(found.image, model.generate("a red heart", seed=3, size=(64, 96)))
    assert found.seconds > 0
    assert found.memory > 2**20

"""Every command takes the steps and the guidance that the bundle holds, if the user gives none."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from segue.cli import cli
from segue.engines.targets import TARGETS, Target
from segue.runtime.bundle.reader import read
from segue.runtime.bundle.shapes import default_range, profiles
from segue.runtime.diagnostics.bench import bench
from segue.runtime.diagnostics.compare import compare
from segue.runtime.request import Request
from support.bundles import write_tiny_bundle
from support.servers import local, wait

STEPS, GUIDANCE = 3, 2.5
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def bundle(tmp_path):
    """A bundle with defaults that no family has."""
    root = write_tiny_bundle(tmp_path / "b")
    content = json.loads((root / "bundle.json").read_text())
    content["sampler"] |= {"steps": STEPS, "guidance": GUIDANCE}
    (root / "bundle.json").write_text(json.dumps(content))
    return root


def run(*arguments):
    told = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    return [json.loads(line) for line in told.stdout.splitlines() if line.startswith("{")]


def request_of(picture):
    text = Image.open(picture).text
    (held,) = [json.loads(value) for value in text.values() if value.startswith("{")]
    return held["steps"], held["guidance"]


def test_render_and_batch(bundle, tmp_path):
    run("render", bundle, "a red heart", "-o", tmp_path / "p.png", "--json")
    assert request_of(tmp_path / "p.png") == (STEPS, GUIDANCE)
    (tmp_path / "jobs.txt").write_text("a red heart\n")
    run("batch", tmp_path / "jobs.txt", "--bundle", bundle, "-o", tmp_path / "out", "--json")
    (made,) = (tmp_path / "out").glob("*.png")
    assert request_of(made) == (STEPS, GUIDANCE)


def test_serve(bundle, tmp_path):
    with local(tmp_path / "data", bundle) as (client, runner):
        job = wait(client, client.post("/v1/jobs", json={"prompt": "a red heart"}).json()["id"])
        assert job["state"] == "done", job
        assert request_of(runner.place(job["id"]) / "picture-1.png") == (STEPS, GUIDANCE)


def test_plan(bundle):
    (plan,) = [event for event in run("plan", bundle, "--json") if event["event"] == "plan"]
    calls = {phase["component"]: phase["calls"] for phase in plan["phases"]}
    assert calls == {"text_encoder": 2, "text_encoder_2": 2, "transformer": STEPS, "vae_decoder": 1}


def test_bench_and_compare(bundle, monkeypatch):
    found = bench(str(bundle), Request("a red heart"), repeats=2, threads=1)
    assert {stage.component: stage.calls for stage in found.stages}["transformer"] == STEPS
    monkeypatch.setitem(TARGETS, "again", Target("again", "onnxruntime", "", False, "cpu", TARGETS["ort-cpu"].provider))
    (beside,) = compare(read(bundle), ["again"], Request("a red heart"))
    assert len(beside.steps["picture"]) == STEPS
    assert np.isfinite(beside.steps["picture"]).all()


def test_build(bundle):
    content = read(bundle).manifest
    shapes = profiles(content, [default_range(content)], guided=False)["transformer"][0]["hidden_states"]
    assert [shape[0] for shape in shapes] == [1, 2, 2]  # guidance doubles the batch

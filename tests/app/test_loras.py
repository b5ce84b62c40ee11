"""Jobs may name LoRA files of the server's directory, and of no other place."""

import contextlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import segue
from segue.app.runner import Runner
from segue.app.server import create_app
from support.servers import wait

MODULE = "transformer_blocks.0.attn.to_q"
ASKED = {"prompt": "a red heart", "seed": 3, "steps": 1, "width": 64, "height": 64}
LORA = {"file": "style.safetensors", "factor": 0.8}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "loras").mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = {f"transformer.{MODULE}.lora_A.weight": torch.randn(2, 32, generator=generator)}
    tensors[f"transformer.{MODULE}.lora_B.weight"] = torch.randn(32, 2, generator=generator)
    save_file(tensors, tmp_path / "loras/style.safetensors")
    save_file(tensors, tmp_path / "outside.safetensors")
    (tmp_path / "loras/broken.safetensors").write_bytes(b"no")
    return tmp_path / "loras"


@contextlib.contextmanager
def server(place, bundle, loras):
    from fastapi.testclient import TestClient

    model = segue.open(bundle)
    with (
        Runner({"tiny": model}, place, 16, loras=loras) as runner,
        TestClient(create_app(runner), base_url="http://127.0.0.1:8421") as client,
    ):
        yield client, runner


def drawn(client, runner, **more):
    job = wait(client, client.post("/v1/jobs", json=ASKED | more).json()["id"])
    assert job["state"] == "done", job
    return job, segue.read_image(runner.place(job["id"]) / "picture-1.png")


@pytest.mark.slow
def test_a_job_plays_its_files_and_the_next_one_does_not(adaptable, folder, tmp_path):
    with segue.open(adaptable) as model:
        options = {"seed": 3, "steps": 1, "size": 64}
        plain = model.generate("a red heart", **options)
        model.lora(folder / "style.safetensors", 0.8)
        expected = model.generate("a red heart", **options)
    assert not np.array_equal(plain, expected)
    with server(tmp_path / "data", adaptable, folder) as (client, runner):
        job, found = drawn(client, runner, loras=[LORA])
        assert job["request"]["loras"] == [LORA | {"component": ""}]
        assert np.array_equal(found, expected)
        job, found = drawn(client, runner)
        assert "loras" not in job["request"]
        assert np.array_equal(found, plain)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("other.safetensors", "no LoRA file 'other.safetensors'. Choose one of broken.safetensors, style.safetensors"),
        ("../outside.safetensors", "no LoRA file '../outside.safetensors'"),
        ("broken.safetensors", "broken.safetensors is damaged or not a safetensors file"),
    ],
)
def test_a_file_that_cannot_be_played_is_refused_at_once(adaptable, folder, tmp_path, name, why):
    with server(tmp_path / "data", adaptable, folder) as (client, _):
        answer = client.post("/v1/jobs", json=ASKED | {"loras": [{"file": name}]})
    assert answer.status_code == 422
    assert why in answer.json()["error"]["message"]


def test_a_server_without_a_directory_says_how_to_start_it(adaptable, tmp_path):
    with server(tmp_path / "data", adaptable, None) as (client, _):
        answer = client.post("/v1/jobs", json=ASKED | {"loras": [LORA]})
    assert answer.status_code == 422
    assert "Start segue serve with --lora-dir" in answer.json()["error"]["message"]

"""The endpoints of jobs: seeds that are drawn, warnings, removal."""

import base64
import io

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def both(here, tmp_path_factory):
    with here(tmp_path_factory.mktemp("jobs"), "emoji", "emoji-motion") as (client, runner):
        yield client, runner


@pytest.fixture(scope="module")
def client(both):
    return both[0]


def ask(client, **values):
    return client.post("/v1/jobs", json={"prompt": "a red heart", **values}).json()


def files_of(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_without_a_seed_each_job_gets_one_of_its_own_and_keeps_it(client, finished):
    jobs = [finished(client, ask(client)["id"]) for _ in range(2)]
    seeds = [job["request"]["seed"] for job in jobs]
    assert seeds[0] != seeds[1]
    assert all(0 <= seed < 2**32 for seed in seeds)
    again = finished(client, ask(client, seed=seeds[0])["id"])
    first, second, third = (client.get("/" + job["files"][0]).content for job in (*jobs, again))
    assert first == third != second
    assert finished(client, ask(client, seed=0)["id"])["request"]["seed"] == 0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"prompt": "quarterly revenue spreadsheet"}, "expect a wrong result"),
        ({"prompt": "heart " * 200}, "its end was cut"),
        ({"negative": "blue"}, "the negative prompt has no effect"),
        ({"guidance": 7}, "was made to draw without guidance"),
        ({"width": 192, "height": 192}, "192x192"),
    ],
)
def test_a_job_tells_what_is_probably_not_as_intended(client, finished, values, words):
    accepted = ask(client, **values)
    assert [line for line in accepted["warnings"] if words in line]
    assert finished(client, accepted["id"])["warnings"] == accepted["warnings"]
    assert ask(client)["warnings"] == []


def test_a_photograph_for_a_model_of_emoji_is_told(client, finished):
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, "PNG")
    image = base64.b64encode(data.getvalue()).decode()
    job = client.post("/v1/jobs", json={"kind": "video", "image": image, "frames": 1}).json()
    assert any("looks like a photograph" in line for line in job["warnings"])
    client.post(f"/v1/jobs/{job['id']}/cancel")
    finished(client, job["id"])


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_picture_in_base64_may_be_broken_into_lines(client, finished, end):
    data = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(data, "PNG")
    image = base64.encodebytes(data.getvalue()).decode().replace("\n", end)
    assert end in image.strip()
    answer = client.post("/v1/jobs", json={"kind": "video", "image": image, "frames": 1})
    assert answer.status_code == 202, answer.text
    client.post(f"/v1/jobs/{answer.json()['id']}/cancel")
    finished(client, answer.json()["id"])


def test_bytes_that_are_no_picture_are_told_without_an_object_of_python(client):
    for image in (base64.b64encode(b"no picture").decode(), "!!!!"):
        answer = client.post("/v1/jobs", json={"kind": "video", "image": image, "frames": 1})
        assert answer.status_code == 422
        assert "object at 0x" not in answer.text
        assert "image" in answer.json()["error"]["message"]


def test_a_job_that_is_deleted_leaves_nothing(both, finished):
    client, runner = both
    job = finished(client, ask(client, prompt="a very private prompt")["id"])
    assert b"a very private prompt" in files_of(runner.folder)
    assert client.delete(f"/v1/jobs/{job['id']}").status_code == 204
    assert client.get(f"/v1/jobs/{job['id']}").status_code == 404
    assert client.get("/" + job["files"][0]).status_code == 404
    assert client.delete(f"/v1/jobs/{job['id']}").status_code == 404
    assert job["id"] not in [other["id"] for other in client.get("/v1/jobs").json()["jobs"]]
    assert not runner.place(job["id"]).exists()
    assert b"a very private prompt" not in files_of(runner.folder)


def test_a_running_job_is_cancelled_and_then_deleted(both, finished):
    client, runner = both
    running, waiting = ask(client, steps=900), ask(client, steps=900)
    with client.stream("GET", f"/v1/jobs/{running['id']}/events") as answer:
        for line in answer.iter_lines():
            if line == "event: step":
                break
    for job in (waiting, running):
        assert client.delete(f"/v1/jobs/{job['id']}").status_code == 204
        assert client.get(f"/v1/jobs/{job['id']}").status_code == 404
    assert runner.unfinished() == 0
    assert finished(client, ask(client)["id"])["state"] == "done"


def test_a_video_goes_on_after_the_picture_s_job_is_deleted(both, finished):
    client, _ = both
    drawn = finished(client, ask(client)["id"])
    video = client.post("/v1/jobs", json={"kind": "video", "image_job": drawn["id"], "frames": 5}).json()
    assert client.delete(f"/v1/jobs/{drawn['id']}").status_code == 204
    assert finished(client, video["id"])["state"] == "done"
    assert client.delete(f"/v1/jobs/{video['id']}").status_code == 204

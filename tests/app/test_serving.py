"""`segue serve` as a process: many clients at once, kill -9 in the middle, addresses."""

import base64
import io
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest
from PIL import Image

from segue.app.kept.store import Store
from segue.runtime.media.provenance import read_file

BUNDLE = "emoji"


def asked(seed, steps=1):
    return {"kind": "picture", "prompt": "a red heart", "seed": seed, "steps": steps, "width": 64, "height": 64}


def test_200_jobs_of_8_clients_are_each_done_or_refused(start, finished, tmp_path):
    with start(tmp_path, BUNDLE, queue=16) as (client, _):

        def ask(seed):
            answer = client.post("/v1/jobs", json=asked(seed))
            if answer.status_code == 429:
                return "refused", None
            assert answer.status_code == 202, answer.text
            return "accepted", answer.json()["id"]

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(200)))
        accepted = [identifier for state, identifier in answers if state == "accepted"]
        states = [finished(client, identifier)["state"] for identifier in accepted]
        assert states == ["done"] * len(accepted)
        assert len(accepted) >= 16
        assert len(client.get("/v1/jobs?limit=200").json()["jobs"]) == len(accepted)


def test_after_kill_9_every_accepted_job_is_finished_by_the_next_server(start, finished, tmp_path):
    with start(tmp_path, BUNDLE) as (client, process):
        accepted = [client.post("/v1/jobs", json=asked(seed, steps=30)).json()["id"] for seed in range(6)]
        finished(client, accepted[0])
        process.send_signal(signal.SIGKILL)
        process.wait()
    with start(tmp_path, BUNDLE) as (client, _):
        jobs = [finished(client, identifier) for identifier in accepted]
        assert [job["state"] for job in jobs] == ["done"] * 6
        pictures = [np.asarray(Image.open(client_file(client, job))) for job in jobs]
    assert len({picture.tobytes() for picture in pictures}) == 6


def client_file(client, job):
    return io.BytesIO(client.get("/" + job["files"][0]).content)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_the_server_and_keep_what_waits(start, finished, tmp_path, how):
    with start(tmp_path, BUNDLE) as (client, process):
        accepted = [client.post("/v1/jobs", json=asked(seed, steps=200)).json()["id"] for seed in range(2)]
        process.send_signal(how)
        assert process.wait(60) in (0, 130)
    with Store(tmp_path / "jobs.sqlite") as left:
        assert [left.get(identifier).attempts for identifier in accepted] == [0, 0]
    with start(tmp_path, BUNDLE) as (client, _):
        assert client.get(f"/v1/jobs/{accepted[1]}").json()["state"] in ("waiting", "running", "done")
        for identifier in accepted:
            client.post(f"/v1/jobs/{identifier}/cancel")
            assert finished(client, identifier)["state"] in ("cancelled", "done")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "lets other machines in"),
        (["emoji", "emoji"], "two bundles are called 'emoji'"),
        (["nothing-of-this-name"], "nothing-of-this-name"),
    ],
)
def test_servers_that_cannot_be_are_refused(tmp_path, options, message):
    command = [sys.executable, "-m", "segue", "serve", *options, "--data", str(tmp_path), "--port", "0"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode in (2, 3)
    assert message in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.slow
def test_a_video_goes_on_after_kill_9_and_is_the_same(start, finished, tmp_path, video_bundle):
    image = io.BytesIO()
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(image, "PNG")
    body = {"kind": "video", "image": base64.b64encode(image.getvalue()).decode(), "frames": 81}
    with start(tmp_path, video_bundle) as (client, process):
        job = client.post("/v1/jobs", json=body).json()
        with client.stream("GET", f"/v1/jobs/{job['id']}/events") as answer:
            next(line for line in answer.iter_lines() if line == "event: frames")
            process.send_signal(signal.SIGKILL)
            process.wait()
    with start(tmp_path, video_bundle) as (client, _):
        resumed = frames(client, finished(client, job["id"]))
        again = body | {"seed": job["request"]["seed"]}
        whole = frames(client, finished(client, client.post("/v1/jobs", json=again).json()["id"]))
    assert resumed.shape[0] == 81
    assert np.array_equal(resumed, whole)


def test_what_a_server_with_a_certificate_makes_is_signed(start, finished, tmp_path, video_bundle, certificate):
    keys = ["--certificate", str(certificate.chain), "--key", str(certificate.key)]
    with start(tmp_path, "emoji", video_bundle, options=keys) as (client, _):
        picture = finished(client, client.post("/v1/jobs", json=asked(1)).json()["id"])
        body = {"kind": "video", "image_job": picture["id"], "frames": 5}
        video = finished(client, client.post("/v1/jobs", json=body).json()["id"])
        for job in (picture, video):
            path = tmp_path / job["files"][0].rsplit("/", 1)[1]
            path.write_bytes(client.get("/" + job["files"][0]).content)
            said = read_file(path)
            assert said["signature"]["valid"]
            assert said["metadata"]["prompt"] == job["request"]["prompt"]


def frames(client, job):
    with av.open(client_file(client, job)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])

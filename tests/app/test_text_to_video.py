"""A server with a bundle that draws videos from text alone."""

import base64
import io

import av
import numpy as np
from PIL import Image


def test_a_video_job_needs_no_picture_if_the_bundle_draws_from_text(wan_ti2v_bundle, here, finished, tmp_path):
    with here(tmp_path, wan_ti2v_bundle) as (client, _):
        job = client.post("/v1/jobs", json={"kind": "video", "prompt": "dog", "frames": 5}).json()
        job = finished(client, job["id"])
        assert job["state"] == "done", job
        with av.open(io.BytesIO(client.get("/" + job["files"][0]).content)) as video:
            assert sum(1 for _ in video.decode(video=0)) == 5
        file = io.BytesIO()
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(file, "png")
        sent = {"kind": "video", "image": base64.b64encode(file.getvalue()).decode(), "frames": 5}
        job = finished(client, client.post("/v1/jobs", json=sent).json()["id"])
        assert job["state"] == "done", job


def test_another_bundle_still_needs_one(wan_i2v_bundle, here, tmp_path):
    with here(tmp_path, wan_i2v_bundle) as (client, _):
        answer = client.post("/v1/jobs", json={"kind": "video", "prompt": "dog", "frames": 5})
        assert answer.status_code == 422
        assert "a video needs one picture" in answer.json()["error"]["message"]

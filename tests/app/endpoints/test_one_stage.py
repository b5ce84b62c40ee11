"""Videos of one stage: jobs without a picture, and jobs with the picture that the video ends with."""

import base64
import io
import signal

import av
import numpy as np
import pytest

import segue
from segue.app.job_work import make_video
from segue.app.kept.feed import Feed
from segue.app.kept.inputs import Inputs, inputs_in, named
from segue.app.kept.store import RUNNING, Job
from segue.runtime.film import film
from segue.runtime.queue import CancelToken
from segue.runtime.videos.request import AnimationRequest
from support.input_pictures import drawing, hole, opened, png

FIRST, LAST = drawing(40, 40), 255 - drawing(60, 48)
LONG = 49  # frames: 6 windows of a tiny model


def sent(pixels):
    return base64.b64encode(png(pixels)).decode()


def ask(client, path="/v1/jobs", **values):
    return client.post(path, json={"kind": "video", "prompt": "waving", "frames": 9, "seed": 5, **values})


def both_sent(**values):
    return {"image": sent(FIRST), "last": "data:image/png;base64," + sent(LAST), **values}


def frames_in(data):
    with av.open(io.BytesIO(data)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


def frames_of(client, job):
    assert job["state"] == "done", job
    return frames_in(client.get("/" + job["files"][0]).content)


def filmed(bundle, place, **values):
    """Return the frames of a video as the runtime makes them, without a server."""
    with segue.open(bundle) as model:
        film(model, AnimationRequest(prompt="waving", seed=5, **{"frames": 9, **values}), place)
    return frames_in(place.read_bytes())


class TestTwoStages:
    """A bundle that needs a first picture and takes no last one."""

    @pytest.fixture(scope="class")
    def both(self, here, tmp_path_factory):
        with here(tmp_path_factory.mktemp("two"), "emoji", "emoji-motion") as (client, runner):
            yield client, runner

    def test_the_models_say_what_they_take(self, both):
        found = {model["id"]: model for model in both[0].get("/v1/models").json()["data"]}
        keys = ("takes_image", "takes_text_alone", "takes_last")
        assert [found["emoji"][key] for key in keys] == [True, True, False]
        assert [found["emoji-motion"][key] for key in keys] == [True, False, False]

    @pytest.mark.parametrize("path", ["/v1/jobs", "/v1/plan"])
    def test_a_last_picture_is_refused_in_words_before_it_is_accepted(self, both, path):
        client, runner = both
        answer = ask(client, path, **both_sent())
        assert answer.status_code == 422
        assert answer.json()["error"]["message"] == (
            "the bundle 'emoji-motion' of family swifti2v takes no last picture. Leave last out, or open a bundle of "
            "Wan 2.2's I2V-A14B."
        )
        assert client.get("/v1/jobs").json()["jobs"] == []
        assert not (runner.folder / "jobs").exists() or list((runner.folder / "jobs").iterdir()) == []

    def test_a_last_picture_is_refused_before_it_is_decoded(self, both):
        assert "takes no last picture" in ask(both[0], image=sent(FIRST), last="!!!!").json()["error"]["message"]

    def test_pictures_have_no_last_one(self, both):
        answer = both[0].post("/v1/jobs", json={"prompt": "pizza", "last": sent(LAST)})
        assert answer.status_code == 422
        assert "the key last is unknown" in answer.json()["error"]["message"]

    def test_the_request_of_a_job_names_its_picture(self, both, finished):
        client, _ = both
        job = ask(client, image=sent(FIRST), frames=5).json()
        assert job["request"]["image"] == "input.png"
        assert "last" not in job["request"]
        assert client.get(f"/v1/jobs/{job['id']}/files/last.png").status_code == 404
        assert finished(client, job["id"])["state"] == "done"

    def test_a_plan_of_a_video_may_name_lora_files_as_its_job_does(self, both):
        plain = ask(both[0], "/v1/plan").json()
        assert ask(both[0], "/v1/plan", loras=[{"file": "style.safetensors"}]).json() == plain


class TestKept:
    """The pictures of a job on disk."""

    def test_what_is_written_for_a_job_is_read_again(self, tmp_path):
        given = Inputs(FIRST, hole(40, 40), (), LAST)
        given.write(tmp_path / "job")
        assert given.names() == {"image": "input.png", "mask": "mask.png", "last": "last.png"}
        found = inputs_in(tmp_path / "job", given.names())
        assert np.array_equal(found.image, FIRST)
        assert np.array_equal(found.last, LAST)

    def test_the_picture_of_a_video_that_an_older_version_kept_is_found(self, tmp_path):
        Inputs(FIRST).write(tmp_path / "job")
        assert named(tmp_path / "job", "video", {"seed": 1}) == {"seed": 1, "image": "input.png"}
        assert named(tmp_path / "job", "picture", {"seed": 1}) == {"seed": 1}
        assert named(tmp_path / "none", "video", {"seed": 1}) == {"seed": 1}

    def test_a_video_of_an_older_version_is_made_as_it_was(self, tmp_path):
        Inputs(FIRST).write(tmp_path / "job")
        job = Job("0" * 32, "video", "emoji-motion", {"prompt": "waving", "seed": 5, "frames": 5}, RUNNING, 0.0)
        with segue.open("emoji-motion") as model:
            made = make_video(model, job, tmp_path / "job", Feed(), CancelToken(), True, None)
        assert made == ["video.mp4"]
        expected = filmed("emoji-motion", tmp_path / "expected.mp4", image=FIRST, frames=5)
        assert np.array_equal(frames_in((tmp_path / "job/video.mp4").read_bytes()), expected)


class TestLastPicture:
    """A bundle that takes the picture that a video ends with."""

    @pytest.fixture(scope="class")
    def both(self, here, wan_i2v_bundle, tmp_path_factory):
        with here(tmp_path_factory.mktemp("last"), wan_i2v_bundle) as (client, runner):
            yield client, runner

    def test_the_video_is_that_of_the_runtime_and_the_picture_is_kept(self, both, finished, wan_i2v_bundle, tmp_path):
        client, runner = both
        (model,) = client.get("/v1/models").json()["data"]
        assert (model["takes_image"], model["takes_text_alone"], model["takes_last"]) == (True, False, True)
        job = finished(client, ask(client, **both_sent()).json()["id"])
        made = frames_of(client, job)
        assert np.array_equal(made, filmed(wan_i2v_bundle, tmp_path / "a.mp4", image=FIRST, last=LAST))
        assert not np.array_equal(made, filmed(wan_i2v_bundle, tmp_path / "b.mp4", image=FIRST))
        assert (job["request"]["image"], job["request"]["last"]) == ("input.png", "last.png")
        (listed,) = client.get("/v1/jobs").json()["jobs"]
        assert listed["request"] == job["request"]
        kept = client.get(f"/v1/jobs/{job['id']}/files/last.png")
        assert np.array_equal(opened(kept.content), LAST)
        assert client.delete(f"/v1/jobs/{job['id']}").status_code == 204
        assert not runner.place(job["id"]).exists()

    def test_it_ends_a_video_of_the_picture_of_a_job(self, here, finished, wan_i2v_bundle, tmp_path):
        with here(tmp_path / "data", "emoji", wan_i2v_bundle) as (client, _):
            asked = {"prompt": "a red heart", "seed": 7, "width": 64, "height": 64}
            drawn = finished(client, client.post("/v1/jobs", json=asked).json()["id"])
            first = opened(client.get("/" + drawn["files"][0]).content)
            job = finished(client, ask(client, image_job=drawn["id"], last=sent(LAST)).json()["id"])
            made = frames_of(client, job)
        assert np.array_equal(made, filmed(wan_i2v_bundle, tmp_path / "a.mp4", image=first, last=LAST))

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"last": "!!!!"}, "last picture is not valid base64"),
            ({"last": base64.b64encode(b"no").decode()}, "the last picture that was sent cannot be read as a picture"),
            ({"frames": 1}, "a video of 1 frame has no last picture beside its first"),
            ({"image": None}, "a video needs one picture"),
            ({"image_job": "0" * 32}, "a video needs one picture"),
        ],
    )
    def test_what_cannot_be_met_is_refused_before_it_is_accepted(self, both, values, words):
        client, _ = both
        before = client.get("/v1/jobs").json()
        answer = ask(client, **both_sent(**values))
        assert answer.status_code == 422
        assert words in answer.json()["error"]["message"]
        assert client.get("/v1/jobs").json() == before

    def test_a_plan_takes_it_and_refuses_one_frame(self, both):
        client, _ = both
        assert ask(client, "/v1/plan", **both_sent()).json() == ask(client, "/v1/plan").json()
        answer = ask(client, "/v1/plan", **both_sent(frames=1))
        assert answer.status_code == 422
        assert "a video of 1 frame has no last picture" in answer.json()["error"]["message"]

    def test_a_job_that_kill_9_stopped_still_has_it(self, start, finished, wan_i2v_bundle, tmp_path):
        with start(tmp_path / "data", wan_i2v_bundle) as (client, process):
            job = ask(client, **both_sent(frames=LONG)).json()
            with client.stream("GET", f"/v1/jobs/{job['id']}/events") as answer:
                next(line for line in answer.iter_lines() if line == "event: frames")
                process.send_signal(signal.SIGKILL)
                process.wait()
        with start(tmp_path / "data", wan_i2v_bundle) as (client, _):
            made = frames_of(client, finished(client, job["id"]))
        expected = filmed(wan_i2v_bundle, tmp_path / "a.mp4", image=FIRST, last=LAST, frames=LONG)
        assert np.array_equal(made, expected)
        without = filmed(wan_i2v_bundle, tmp_path / "b.mp4", image=FIRST, frames=LONG)
        assert not np.array_equal(made[-8:], without[-8:])  # the last window alone sees it

    def test_a_cancelled_job_is_resumed_with_it(self, both, finished, wan_i2v_bundle, tmp_path):
        client, _ = both
        job = ask(client, **both_sent(frames=LONG)).json()
        with client.stream("GET", f"/v1/jobs/{job['id']}/events") as answer:
            next(line for line in answer.iter_lines() if line == "event: frames")
            client.post(f"/v1/jobs/{job['id']}/cancel")
        assert finished(client, job["id"])["state"] == "cancelled"
        client.post(f"/v1/jobs/{job['id']}/resume")
        made = frames_of(client, finished(client, job["id"]))
        expected = filmed(wan_i2v_bundle, tmp_path / "a.mp4", image=FIRST, last=LAST, frames=LONG)
        assert np.array_equal(made, expected)
        assert finished(client, job["id"])["request"]["last"] == "last.png"


class TestTextAlone:
    """A bundle that draws a video from text alone."""

    @pytest.fixture(scope="class")
    def client(self, here, wan_ti2v_bundle, tmp_path_factory):
        with here(tmp_path_factory.mktemp("alone"), wan_ti2v_bundle) as (client, _):
            yield client

    def test_the_model_says_so(self, client):
        (model,) = client.get("/v1/models").json()["data"]
        assert (model["takes_image"], model["takes_text_alone"], model["takes_last"]) == (True, True, False)

    def test_a_job_and_a_plan_need_no_picture(self, client, finished, wan_ti2v_bundle, tmp_path):
        assert ask(client, "/v1/plan").json()["peak"] > 0
        job = finished(client, ask(client).json()["id"])
        assert {"image", "last"}.isdisjoint(job["request"])
        assert np.array_equal(frames_of(client, job), filmed(wan_ti2v_bundle, tmp_path / "a.mp4"))
        assert client.get(f"/v1/jobs/{job['id']}/files/input.png").status_code == 404

    def test_a_job_may_have_one_all_the_same(self, client, finished, wan_ti2v_bundle, tmp_path):
        job = finished(client, ask(client, image=sent(FIRST)).json()["id"])
        assert job["request"]["image"] == "input.png"
        assert np.array_equal(frames_of(client, job), filmed(wan_ti2v_bundle, tmp_path / "a.mp4", image=FIRST))

    @pytest.mark.parametrize("values", [{}, {"image": sent(FIRST)}])
    def test_a_last_picture_is_refused_in_words(self, client, values):
        answer = ask(client, last=sent(LAST), **values)
        assert answer.status_code == 422
        assert "of family wan-ti2v takes no last picture" in answer.json()["error"]["message"]

    def test_a_job_without_a_picture_goes_on_after_kill_9(self, start, finished, wan_ti2v_bundle, tmp_path):
        with start(tmp_path / "data", wan_ti2v_bundle) as (client, process):
            job = ask(client, frames=LONG).json()
            with client.stream("GET", f"/v1/jobs/{job['id']}/events") as answer:
                next(line for line in answer.iter_lines() if line == "event: frames")
                process.send_signal(signal.SIGKILL)
                process.wait()
        with start(tmp_path / "data", wan_ti2v_bundle) as (client, _):
            made = frames_of(client, finished(client, job["id"]))
        assert np.array_equal(made, filmed(wan_ti2v_bundle, tmp_path / "a.mp4", frames=LONG))

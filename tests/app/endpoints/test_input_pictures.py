"""Jobs that begin with a picture: what is drawn, what is kept on disk, what is refused."""

import base64
import threading

import numpy as np
import pytest

import segue
from segue.app.kept.inputs import Inputs, inputs_in
from support.input_pictures import drawing, hole, opened, png

IMAGE, MASK = drawing(), hole()


@pytest.fixture(scope="module")
def both(here, tmp_path_factory):
    with here(tmp_path_factory.mktemp("inputs"), "emoji") as (client, runner):
        yield client, runner


@pytest.fixture(scope="module")
def client(both):
    return both[0]


def sent(pixels):
    return base64.b64encode(png(pixels)).decode()


def ask(client, path="/v1/jobs", **values):
    return client.post(path, json={"prompt": "a red heart", "seed": 7, **values})


def drawn(client, finished, **values):
    """Return a finished job and the pixels of its first picture."""
    answer = ask(client, **values)
    assert answer.status_code == 202, answer.text
    job = finished(client, answer.json()["id"])
    assert job["state"] == "done", job["error"]
    return job, opened(client.get("/" + job["files"][0]).content)


def test_a_job_with_a_mask_gives_the_picture_that_the_model_gives(client, finished):
    _, made = drawn(client, finished, image=sent(IMAGE), mask="data:image/png;base64," + sent(MASK), feather=2)
    with segue.open("emoji") as model:
        assert np.array_equal(made, model.generate("a red heart", seed=7, image=IMAGE, mask=MASK, feather=2))
    far = np.ones_like(MASK, bool)
    far[20:104, 4:94] = False  # beyond the soft edge
    assert np.array_equal(made[far], IMAGE[far])


def test_a_job_begins_with_a_picture_of_another_job(client, finished):
    first, image = drawn(client, finished)
    job, made = drawn(client, finished, image_job=first["id"], strength=0.4)
    with segue.open("emoji") as model:
        assert np.array_equal(made, model.generate("a red heart", seed=7, image=image, strength=0.4))
    assert client.delete(f"/v1/jobs/{first['id']}").status_code == 204
    assert np.array_equal(opened(client.get(f"/v1/jobs/{job['id']}/files/input.png").content), image)


def test_the_pictures_of_a_job_are_kept_with_it_and_go_with_it(both, finished):
    client, runner = both
    job, _ = drawn(client, finished, image=sent(IMAGE), mask=sent(MASK), strength=0.5)
    assert {name: job["request"][name] for name in ("image", "mask", "strength")} == {
        "image": "input.png", "mask": "mask.png", "strength": 0.5,
    }  # fmt: skip
    found = [opened(client.get(f"/v1/jobs/{job['id']}/files/{name}").content) for name in ("input.png", "mask.png")]
    assert np.array_equal(found[0], IMAGE)
    assert np.array_equal(found[1][..., 0], MASK)
    assert runner.place(job["id"]).stat().st_mode & 0o777 == 0o700
    assert client.delete(f"/v1/jobs/{job['id']}").status_code == 204
    assert not runner.place(job["id"]).exists()


def test_a_job_without_a_picture_is_as_before(client, finished):
    job, _ = drawn(client, finished)
    assert set(job["request"]) == {"prompt", "negative", "seed", "count", "previews"}
    assert client.get(f"/v1/jobs/{job['id']}/files/input.png").status_code == 404


def test_an_accepted_job_keeps_its_pictures_over_a_restart(here, finished, tmp_path):
    with here(tmp_path, "emoji") as (client, runner):
        runner._queues["emoji"].do(lambda model: threading.Event().wait(1))
        waiting = ask(client, image=sent(IMAGE), mask=sent(MASK)).json()
        assert waiting["state"] == "waiting"
    with here(tmp_path, "emoji") as (client, _):
        job = finished(client, waiting["id"])
        made = opened(client.get("/" + job["files"][0]).content)
    with segue.open("emoji") as model:
        assert np.array_equal(made, model.generate("a red heart", seed=7, image=IMAGE, mask=MASK))


def test_a_plan_counts_the_encoder_and_the_steps_that_run(client):
    plans = [
        ask(client, "/v1/plan", steps=4, **values).json()
        for values in ({}, {"strength": 0.5}, {"image": sent(IMAGE), "strength": 0.5}, {"mask": sent(MASK)})
    ]
    calls = [{phase["component"]: phase["calls"] for phase in plan["phases"]} for plan in plans]
    assert [one.get("vae_encoder", 0) for one in calls] == [0, 1, 1, 1]
    assert [one["transformer"] for one in calls] == [4, 2, 2, 4]


REFUSED = [
    ({"image": "!!!!"}, "image is not valid base64"),
    ({"image": base64.b64encode(b"no picture").decode()}, "the image that was sent cannot be read as a picture"),
    ({"image": sent(IMAGE), "image_job": "0" * 32}, "Send either image or image_job"),
    ({"image_job": "0" * 32}, "has no picture"),
    ({"image": sent(IMAGE), "mask": "!!!!"}, "mask is not valid base64"),
    ({"image": sent(IMAGE), "mask": sent(MASK[:64])}, "the mask has 128x64 pixels, and the picture 128x128"),
    ({"mask": sent(MASK)}, "mask was given without a picture to begin with"),
    ({"strength": 0.5}, "strength was given without a picture to begin with"),
    ({"image": sent(IMAGE), "strength": 0}, "strength = 0: it must be above 0"),
    ({"image": sent(IMAGE), "strength": 1.5}, "it must be at most 1"),
    ({"image": sent(IMAGE), "feather": 3}, "feather = 3 softens the edge of a mask"),
    ({"image": sent(IMAGE), "feather": 20_000}, "it must be at most 16384"),
    ({"references": [sent(IMAGE)]}, "emoji takes no reference pictures"),
    ({"references": ["x"] * 17}, "it must have at most 16 entries"),
]


@pytest.mark.parametrize(("values", "words"), REFUSED, ids=[row[1][:40] for row in REFUSED])
def test_what_cannot_be_met_is_refused_before_it_is_accepted(both, values, words):
    client, runner = both
    before = sorted(runner.place("x").parent.iterdir())
    answer = ask(client, **values)
    assert answer.status_code == 422
    assert words in answer.json()["error"]["message"]
    assert sorted(runner.place("x").parent.iterdir()) == before


def test_a_picture_that_is_likely_to_disappoint_is_told(client):
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    job = ask(client, image=sent(noise), strength=0.5).json()
    assert any("looks like a photograph" in line for line in job["warnings"])


def test_what_is_written_for_a_job_is_read_again(tmp_path):
    given = Inputs(IMAGE, MASK, (drawing(64, 96), drawing(96, 64)))
    given.write(tmp_path / "job")
    found = inputs_in(tmp_path / "job", given.names())
    assert np.array_equal(found.image, IMAGE)
    assert np.array_equal(found.mask, MASK)
    for one, other in zip(found.references, given.references, strict=True):
        assert np.array_equal(one, other)

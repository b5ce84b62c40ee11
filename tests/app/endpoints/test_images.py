"""OpenAI's image endpoint, driven by OpenAI's Python client: pictures, streams, formats, refusals."""

import base64
import dataclasses
import io
import json
import time

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

import segue


@pytest.fixture(scope="module")
def http(start, tmp_path_factory):
    """HTTP client of a server that draws emoji."""
    with start(tmp_path_factory.mktemp("openai"), "emoji") as (client, _):
        yield client


@pytest.fixture(scope="module")
def client(http):
    """OpenAI's client. It does not try again, so that a test sees each answer."""
    with openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0) as made:
        yield made


def opened(image):
    return Image.open(io.BytesIO(base64.b64decode(image)))


def pixels(image):
    return np.asarray(opened(image).convert("RGB"))


def decibels(one, other):
    return 10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2))


def ask(client, **values):
    """Generate with keys of Segue or keys that the client does not know."""
    return client.images.generate(prompt="a red heart", extra_body=values)


def test_pictures_are_those_that_the_model_draws(client):
    answer = client.images.generate(prompt="a red heart", n=3, response_format="b64_json", extra_body={"seed": 7})
    with segue.open("emoji") as model:
        expected = model.generate("a red heart", seed=7, count=3)
    assert np.array_equal(np.stack([pixels(one.b64_json) for one in answer.data]), expected)
    assert (answer.size, answer.output_format, answer.background) == ("128x128", "png", "opaque")
    assert abs(answer.created - time.time()) < 60
    assert (answer.seed, answer.warnings) == (7, [])


def test_without_a_seed_one_is_drawn_and_told(client):
    first, second = (ask(client) for _ in range(2))
    assert first.seed != second.seed
    again = ask(client, seed=first.seed)
    assert again.data[0].b64_json == first.data[0].b64_json
    assert second.data[0].b64_json != first.data[0].b64_json


def test_addresses_lead_to_the_files(client, http):
    answer = client.images.generate(
        prompt="a red heart", n=2, response_format="url", output_format="jpeg", extra_body={"seed": 7}
    )
    assert [one.b64_json for one in answer.data] == [None, None]
    found = [http.get(one.url) for one in answer.data]
    assert {one.headers["content-type"] for one in found} == {"image/jpeg"}
    drawn = ask(client, seed=7, n=2, output_format="jpeg")
    assert [base64.b64decode(one.b64_json) for one in drawn.data] == [one.content for one in found]
    job = http.get(f"/v1/jobs/{answer.job}").json()
    assert job["files"] == [f"v1/jobs/{answer.job}/files/picture-{number}.jpeg" for number in (1, 2)]


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_other_formats_are_near_the_png_and_compression_makes_them_smaller(client, kind):
    drawn = ask(client, seed=7).data[0].b64_json
    best, small = (
        client.images.generate(
            prompt="a red heart", output_format=kind, output_compression=level, extra_body={"seed": 7}
        )
        for level in (100, 30)
    )
    assert (best.output_format, opened(best.data[0].b64_json).format) == (kind, kind.upper())
    assert decibels(pixels(best.data[0].b64_json), pixels(drawn)) > 35
    assert len(small.data[0].b64_json) < len(best.data[0].b64_json) / 2


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_a_stream_sends_unfinished_pictures_and_then_the_picture(client, kind):
    with client.images.generate(
        prompt="a red heart", stream=True, partial_images=2, output_format=kind, extra_body={"seed": 7}
    ) as stream:
        events = list(stream)
    *partial, whole = events
    assert [event.type for event in partial] == ["image_generation.partial_image"] * 2
    assert [event.partial_image_index for event in partial] == [0, 1]
    assert whole.type == "image_generation.completed"
    for event in events:
        assert (event.size, event.output_format, event.background) == ("128x128", kind, "opaque")
        assert (opened(event.b64_json).format, event.quality) == (kind.upper(), "auto")
    assert whole.b64_json == ask(client, seed=7, output_format=kind).data[0].b64_json
    assert (whole.usage.total_tokens, whole.seed, whole.warnings) == (0, 7, [])
    far, near, end = (pixels(event.b64_json) for event in events)
    assert decibels(far, end) < decibels(near, end)  # each one is nearer to the picture


@pytest.mark.parametrize("partial", [None, 0, 3])
def test_a_stream_of_several_pictures_completes_each(client, partial):
    with client.images.generate(
        prompt="a red heart", stream=True, n=2, partial_images=partial, extra_body={"seed": 7}
    ) as stream:
        events = list(stream)
    names = [event.type.rpartition(".")[2] for event in events]
    assert names == (["partial_image"] * (partial or 0) + ["completed"]) * 2
    drawn = [event.b64_json for event in events if event.type == "image_generation.completed"]
    assert drawn == [one.b64_json for one in ask(client, seed=7, n=2).data]


def test_what_has_no_effect_is_accepted_told_and_not_stored(client, http):
    answer = client.images.generate(
        prompt="a red heart", quality="high", moderation="low", background="opaque", style=None, user="somebody",
        extra_body={"seed": 7, "safety_identifier": "hash"},
    )  # fmt: skip
    assert [line.split()[0] for line in answer.warnings] == ["quality", "moderation"]
    job = http.get(f"/v1/jobs/{answer.job}").json()
    assert job["request"] == {"prompt": "a red heart", "count": 1, "seed": 7}
    assert job["warnings"] == answer.warnings
    for background in ("auto", "opaque"):
        assert client.images.generate(prompt="pizza", background=background, quality="auto").warnings == []


def test_warnings_reach_the_client_in_the_answer_and_in_the_stream(client):
    prompt = "quarterly revenue spreadsheet " * 40
    answer = client.images.generate(prompt=prompt)
    assert any("expect a wrong result" in line for line in answer.warnings)
    assert any("its end was cut" in line for line in answer.warnings)
    with client.images.generate(prompt=prompt, stream=True) as stream:
        (whole,) = stream
    assert whole.warnings == answer.warnings


def test_steps_and_guidance_and_a_negative_prompt_are_honoured(client, http):
    answer = ask(client, seed=7, steps=2, guidance=1.5, negative="blue")
    with segue.open("emoji") as model:
        expected = model.generate("a red heart", seed=7, steps=2, guidance=1.5, negative="blue")
    assert np.array_equal(pixels(answer.data[0].b64_json), expected)
    job = http.get(f"/v1/jobs/{answer.job}").json()["request"]
    assert (job["steps"], job["guidance"], job["negative"]) == (2, 1.5, "blue")
    assert ask(client, seed=7).data[0].b64_json != answer.data[0].b64_json
    assert any("was made to draw without guidance" in line for line in answer.warnings)


def test_a_slash_at_the_end_of_an_endpoint_is_ignored(client, http):
    drawn = ask(client, seed=7).data[0].b64_json
    answer = http.post("/v1/images/generations/", json={"prompt": "a red heart", "seed": 7})
    assert answer.json()["data"][0]["b64_json"] == drawn
    assert http.get("/v1/models/").json() == http.get("/v1/models").json()
    assert http.get("/v1/models/emoji/").json()["id"] == "emoji"
    assert "cannot be read" in http.post("/v1/images/edits/", files={"image": b"x"}, data={"prompt": "pizza"}).text


REFUSED = [
    ({"background": "transparent"}, "background", "unsupported_value", "draws no transparency"),
    ({"style": "vivid"}, "style", "unsupported_parameter", "Describe the style in the prompt"),
    ({"complexity": "high"}, "complexity", "unsupported_parameter", "is not supported"),
    ({"frame_count": 4}, "frame_count", "unsupported_parameter", "POST /v1/jobs"),
    ({"frame_duration_ms": 90}, "frame_duration_ms", "unsupported_parameter", "POST /v1/jobs"),
    ({"svg": {"model": "x"}}, "svg", "unsupported_parameter", "png, jpeg or webp"),
    ({"input_fidelity": "high"}, "input_fidelity", "unsupported_parameter", "where strength says"),
    ({"mask": "x"}, "mask", "unsupported_parameter", "/v1/images/edits"),
    ({"image": "x"}, "image", "unsupported_parameter", "/v1/images/edits"),
    ({"prompt_rewriter": True}, "prompt_rewriter", "unsupported_parameter", "as it is"),
    ({"colour": "red"}, "colour", "unknown_parameter", "the key colour is unknown; known are prompt, model, n, size"),
    ({"n": 11}, "n", "invalid_value", "n = 11: it must be at most 10"),
    ({"n": 0}, "n", "invalid_value", "n = 0: it must be at least 1"),
    ({"n": "2"}, "n", "invalid_value", "n = '2': it must be a whole number"),
    ({"output_format": "gif"}, "output_format", "unsupported_value", "output_format = gif is not supported"),
    ({"output_format": "svg"}, "output_format", "unsupported_value", "draws pixels"),
    ({"output_format": "bmp"}, "output_format", "invalid_value", "it must be 'png', 'jpeg' or 'webp'"),
    ({"output_compression": 50}, "output_compression", "invalid_value", "a png keeps every pixel"),
    ({"output_compression": 101}, "output_compression", "invalid_value", "at most 100"),
    ({"partial_images": 2}, "partial_images", "invalid_value", "needs stream = true"),
    ({"partial_images": 4, "stream": True}, "partial_images", "invalid_value", "at most 3"),
    ({"stream": True, "response_format": "url"}, "response_format", "invalid_value", "not possible with stream"),
    ({"stream": "yes"}, "stream", "invalid_value", "it must be true or false"),
    ({"quality": "ultra"}, "quality", "invalid_value", "quality = 'ultra': it must be 'auto', 'low'"),
    ({"moderation": "high"}, "moderation", "invalid_value", "it must be 'auto' or 'low'"),
    ({"size": "huge"}, "size", "invalid_value", "size = 'huge' is not a size. Write width x height as in 192x128"),
    ({"size": "128"}, "size", "invalid_value", "is not a size"),
    ({"size": "1024x1024"}, "size", "invalid_value", "size 1024x1024 (width x height) is not possible"),
    ({"steps": 0}, "steps", "invalid_value", "steps = 0: it must be at least 1"),
    ({"guidance": -1}, "guidance", "invalid_value", "guidance = -1: it must be at least 0"),
    ({"negative_prompt": "x"}, "negative_prompt", "unknown_parameter", "known are prompt"),
    ({"seed": -1}, "seed", "invalid_value", "it must be at least 0"),
    ({"prompt": 5}, "prompt", "invalid_value", "prompt = 5: it must be a string"),
    ({"prompt": "x" * 100_001}, "prompt", "invalid_value", "it must have at most 100000 characters"),
]


@pytest.mark.parametrize(("values", "param", "code", "words"), REFUSED, ids=[str(row[0])[:40] for row in REFUSED])
def test_what_cannot_be_met_is_refused_by_name(client, values, param, code, words):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **values)
    error = caught.value
    assert (error.status_code, error.type, error.param, error.code) == (400, "invalid_request_error", param, code)
    assert words in error.body["message"]
    for other in ("program", "object at", "pattern", "Input should"):  # words for another reader
        assert other not in error.body["message"]


def test_a_prompt_that_is_missing_and_a_body_that_is_no_json_are_told(http):
    answer = http.post("/v1/images/generations", json={})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("prompt is missing. Add it")
    answer = http.post("/v1/images/generations", content=b'{"prompt": ', headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] is None
    assert "the body is not valid JSON at character" in answer.json()["error"]["message"]


def test_a_model_that_is_not_here_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(prompt="pizza", model="gpt-image-2")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    assert "Choose emoji" in caught.value.body["message"]


def test_models_are_listed_and_retrieved(client):
    (listed,) = client.models.list()
    assert (listed.id, listed.object, listed.owned_by) == ("emoji", "model", "segue")
    assert client.models.retrieve("emoji") == listed
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("dall-e-3")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    assert "there is no model 'dall-e-3'. Choose emoji" in caught.value.body["message"]


def test_variations_are_answered_with_what_the_server_does_instead(http):
    picture = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), np.uint8)).save(picture, "PNG")
    answer = http.post("/v1/images/variations", files={"image": picture.getvalue()})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unsupported_endpoint")
    assert "/v1/images/edits" in answer.json()["error"]["message"]


def test_other_endpoints_of_openai_are_not_found(client):
    with pytest.raises(openai.NotFoundError, match=r"no POST '/v1/chat/completions'. See /docs"):
        client.chat.completions.create(model="emoji", messages=[{"role": "user", "content": "hello"}])


def only_job(http):
    """Return the identifier of the one job; a busy server may take a while to make it."""
    end = time.monotonic() + 60
    while not (jobs := http.get("/v1/jobs").json()["jobs"]):
        assert time.monotonic() < end
        time.sleep(0.05)
    (job,) = jobs
    return job["id"]


def cancelled(http, identifier):
    end = time.monotonic() + 60
    while (state := http.get(f"/v1/jobs/{identifier}").json()["state"]) in ("waiting", "running"):
        assert time.monotonic() < end
        time.sleep(0.05)
    return state == "cancelled"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_cancels_its_job(start, tmp_path, stream):
    body = {"prompt": "a red heart", "n": 10, "stream": stream}
    with start(tmp_path, "emoji-teacher") as (http, _):
        if stream:
            with http.stream("POST", "/v1/images/generations", json=body | {"partial_images": 1}) as answer:
                assert next(answer.iter_lines()) == "event: image_generation.partial_image"
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post("/v1/images/generations", json=body, timeout=0.5)
        assert cancelled(http, only_job(http))


class TestInThisProcess:
    @pytest.fixture
    def local(self, here, tmp_path):
        with here(tmp_path, "emoji") as (client, runner):
            yield client, runner

    def test_a_job_that_fails_ends_its_stream_with_an_error(self, local, monkeypatch):
        def broken(*_, **__):
            raise segue.OutputError("the disk is full.")

        client, _ = local
        monkeypatch.setattr(segue.Model, "pictures", broken)
        body = {"prompt": "pizza", "stream": True}
        lines = client.post("/v1/images/generations", json=body).text.splitlines()
        assert lines[0] == "event: error"
        error = json.loads(lines[1].removeprefix("data: "))["error"]
        assert (error["message"], error["type"]) == ("the disk is full.", "server_error")
        answer = client.post("/v1/images/generations", json={"prompt": "pizza"})
        assert answer.status_code == 507
        assert answer.headers["x-should-retry"] == "false"  # a client would draw it twice more
        assert answer.json()["error"]["type"] == "server_error"

    def test_a_full_queue_is_openai_s_rate_limit(self, local):
        client, runner = local
        runner.limit = 0
        answer = client.post("/v1/images/generations", json={"prompt": "pizza"})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert (answer.json()["error"]["type"], answer.json()["error"]["code"]) == ("rate_limit_error", "queue_full")

    @pytest.mark.parametrize(("mapped", "warning"), [(True, "coarser than the picture"), (False, "no linear map")])
    def test_with_a_budget_partial_images_are_previews_in_full_size(self, local, monkeypatch, mapped, warning):
        client, runner = local
        model = runner.models["emoji"]
        monkeypatch.setattr(model, "budget", 2**34)
        if not mapped:
            content = dataclasses.replace(model.bundle.manifest, preview=None)
            monkeypatch.setattr(model, "bundle", dataclasses.replace(model.bundle, manifest=content))
        body = {"prompt": "pizza", "stream": True, "partial_images": 2}
        lines = client.post("/v1/images/generations", json=body).text.splitlines()
        events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data")]
        *partial, whole = events
        assert len(partial) == (2 if mapped else 0)
        assert all(pixels(one["b64_json"]).shape == (128, 128, 3) for one in partial)
        assert warning in whole["warnings"][0]

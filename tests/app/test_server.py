"""The server's endpoints: jobs, events, results, limits, OpenAI's images, errors."""

import asyncio
import base64
import io
import json
import re
import threading

import httpx
import numpy as np
import pytest
from PIL import Image

import segue
from segue.app import server
from segue.app.kept.feed import Feed
from segue.app.kept.store import Job, Store
from segue.errors import BusyError, OutputError, UsageError
from support.browser import CHROMIUM


@pytest.fixture(scope="module")
def tiny(exported, here, tmp_path_factory):
    with here(tmp_path_factory.mktemp("serve"), exported) as (client, runner):
        yield client, runner


@pytest.fixture(scope="module")
def client(tiny):
    return tiny[0]


def asked(**values):
    return {"kind": "picture", "prompt": "a red heart", "width": 64, "height": 64, "steps": 2, **values}


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def events_of(client, identifier, **headers):
    name, found = "", []
    with client.stream("GET", f"/v1/jobs/{identifier}/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            key, _, value = line.partition(": ")
            name = value if key == "event" else name
            if key == "data":
                found.append((name, json.loads(value)))
    return found


def test_a_job_gives_the_picture_that_the_model_gives(client, finished, exported):
    created = client.post("/v1/jobs", json=asked(seed=5, count=2))
    assert created.status_code == 202
    job = finished(client, created.json()["id"])
    assert job["state"] == "done"
    assert job["created"] <= job["started"] <= job["finished"]
    found = [pixels(client.get("/" + path).content) for path in job["files"]]
    with segue.open(exported) as model:
        expected = model.generate("a red heart", seed=5, count=2, size=64, steps=2)
    assert np.array_equal(np.stack(found), expected)


def test_events_tell_each_step_with_a_preview_and_end_with_the_files(client):
    job = client.post("/v1/jobs", json=asked(previews=True, steps=3)).json()
    found = events_of(client, job["id"])
    names = [name for name, _ in found]
    assert [values["done"] for name, values in found if name == "step"][-1] == 3
    assert "preview" in names
    assert names[-2:] == ["picture", "done"]
    preview = next(values["image"] for name, values in found if name == "preview")
    assert pixels(base64.b64decode(preview.partition(",")[2])).shape == (8, 8, 3)  # one pixel for each latent
    assert found[-1][1]["files"] == ["picture-1.png"]


def test_events_of_a_job_that_is_over_are_its_end(client, finished):
    job = finished(client, client.post("/v1/jobs", json=asked()).json()["id"])
    assert events_of(client, job["id"]) == [("done", {"files": ["picture-1.png"], "error": None})]


def test_a_cancelled_job_stops_within_one_step_and_resumes(tiny, finished):
    client, runner = tiny
    job = client.post("/v1/jobs", json=asked(steps=900)).json()
    steps, feed = [], runner._live[job["id"]].feed
    with client.stream("GET", f"/v1/jobs/{job['id']}/events") as answer:
        lines = answer.iter_lines()
        for line in lines:
            if line.startswith("data") and '"done"' in line:
                steps.append(json.loads(line[6:])["done"])
                if len(steps) == 1:
                    assert client.post(f"/v1/jobs/{job['id']}/cancel").status_code == 200
                    told = max(one.values["done"] for one in list(feed._kept) if one.name == "step")
    job = client.get(f"/v1/jobs/{job['id']}").json()
    assert job["state"] == "cancelled"
    assert max(steps) <= told + 1 < 900
    assert client.post(f"/v1/jobs/{job['id']}/resume").json()["state"] in ("waiting", "running")
    client.post(f"/v1/jobs/{job['id']}/cancel")
    assert finished(client, job["id"])["state"] == "cancelled"


def test_a_job_that_cannot_be_queued_again_stays_as_it_was(tiny, finished, monkeypatch):
    client, runner = tiny
    job = client.post("/v1/jobs", json=asked(steps=900)).json()
    client.post(f"/v1/jobs/{job['id']}/cancel")
    before = finished(client, job["id"])

    def full(*_):
        raise BusyError("the queue is full.", "Try again.")

    monkeypatch.setattr(runner._queues[job["bundle"]], "do", full)
    assert client.post(f"/v1/jobs/{job['id']}/resume").status_code >= 400
    assert client.get(f"/v1/jobs/{job['id']}").json() == before


def test_jobs_are_listed_newest_first_and_by_state(client, finished):
    first = finished(client, client.post("/v1/jobs", json=asked()).json()["id"])
    second = finished(client, client.post("/v1/jobs", json=asked()).json()["id"])
    listed = [job["id"] for job in client.get("/v1/jobs").json()["jobs"]]
    assert listed[:2] == [second["id"], first["id"]]
    assert all(job["state"] == "done" for job in client.get("/v1/jobs?state=done").json()["jobs"])


def test_a_full_queue_answers_429_and_keeps_what_it_accepted(exported, here, tmp_path, finished):
    with here(tmp_path, exported, limit=2) as (client, runner):
        gate = threading.Event()
        runner._queues[next(iter(runner.models))].do(lambda model: gate.wait(30))
        accepted = [client.post("/v1/jobs", json=asked()).json()["id"] for _ in range(1)]
        runner.limit = 1
        refused = client.post("/v1/jobs", json=asked())
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert "1 jobs are waiting or running" in refused.json()["error"]["message"]
        gate.set()
        assert [finished(client, one)["state"] for one in accepted] == ["done"]


def test_openai_clients_get_pictures_in_base64_or_as_addresses(client):
    body = {"prompt": "a red heart", "n": 2, "size": "64x64", "model": "tiny", "user": "somebody", "seed": 3}
    first = client.post("/v1/images/generations", json=body).json()
    assert [pixels(base64.b64decode(one["b64_json"])).shape for one in first["data"]] == [(64, 64, 3)] * 2
    again = client.post("/v1/images/generations", json=body | {"response_format": "url"}).json()
    assert pixels(client.get(again["data"][0]["url"]).content).tolist() == (
        pixels(base64.b64decode(first["data"][0]["b64_json"])).tolist()
    )
    assert first["size"] == "64x64"
    assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["tiny"]


def test_a_plan_is_given_before_anything_is_asked_for(client):
    found = client.post("/v1/plan", json=asked()).json()
    assert found["peak"] == max(phase["peak"] for phase in found["phases"])
    assert found["seconds"] > 0
    assert found["server"] > 2**20


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (asked(width=65), "size 65x64"),
        ({"kind": "picture", "prompt": "x", "width": 64}, "one is missing"),
        (asked(bundle="other"), "no bundle 'other' of this server"),
        (asked(steps=0), "steps = 0: it must be at least 1"),
        (asked(shape=3), "the key shape is unknown; known are kind, bundle, prompt"),
        (asked(prompt="\ud800"), "valid Unicode|unicode|surrogates"),
        ({"kind": "video", "image": ""}, "no bundle of this server makes a video"),
    ],
)
def test_what_cannot_be_met_is_refused_with_the_next_thing_to_do(client, body, message):
    answer = client.post("/v1/jobs", content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert re.search(message, answer.json()["error"]["message"])


@pytest.mark.parametrize("body", ["[]", '{"kind": "song"}'])
def test_a_body_of_another_kind_is_told_what_it_should_be(client, body):
    answer = client.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert "picture or video, sent as Content-Type: application/json" in answer.json()["error"]["message"]
    answer = client.post("/v1/jobs", content='{"prompt": "x"}')
    assert answer.status_code == 422
    assert "sent as Content-Type: application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/jobs/" + "0" * 32, "/v1/jobs/" + "0" * 32 + "/events", "/nothing"])
def test_what_is_not_there_is_404_in_the_same_form(client, path):
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"]
    assert answer.json()["error"]["type"] == "NotFound"


def test_files_of_jobs_are_the_only_files_that_are_given(client, finished):
    job = finished(client, client.post("/v1/jobs", json=asked()).json()["id"])
    for name in ("..%2F..%2Fjobs.sqlite", "input.png", "picture-2.png", "%2Fetc%2Fpasswd"):
        assert client.get(f"/v1/jobs/{job['id']}/files/{name}").status_code == 404


def test_a_defect_below_a_job_is_its_failure_and_the_next_job_runs(tiny, finished, monkeypatch):
    client, runner = tiny

    def broken(*_):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(segue.Model, "pictures", broken)
    job = finished(client, client.post("/v1/jobs", json=asked()).json()["id"])
    assert (job["state"], job["error"]["kind"]) == ("failed", "Defect")
    monkeypatch.undo()
    assert finished(client, client.post("/v1/jobs", json=asked()).json()["id"])["state"] == "done"
    assert runner.unfinished() == 0


class TestGuards:
    def test_other_names_of_this_machine_are_refused_without_a_token(self, client):
        answer = client.get("/v1/jobs", headers={"host": "evil.example:8421"})
        assert answer.status_code == 403

    def test_pages_of_other_origins_are_refused(self, client):
        answer = client.post("/v1/jobs", json=asked(), headers={"origin": "https://evil.example"})
        assert answer.status_code == 403

    def test_large_bodies_are_refused_whatever_they_announce(self, exported, here, tmp_path):
        with here(tmp_path, exported, largest=1000) as (client, _):
            assert client.post("/v1/jobs", content=b"x" * 2000).status_code == 413

            def chunks():
                for _ in range(20):
                    yield b" " * 100

            answer = client.post("/v1/jobs", content=chunks(), headers={"content-type": "application/json"})
            assert answer.status_code == 413

    def test_with_a_token_nothing_but_the_page_is_given_without_it(self, exported, here, tmp_path):
        with here(tmp_path, exported, token="secret") as (client, _):
            assert client.get("/").status_code == 200
            assert client.get("/v1/jobs").status_code == 401
            assert client.get("/v1/jobs", headers={"authorization": "Bearer wrong"}).status_code == 401
            assert client.get("/v1/jobs", headers={"authorization": "Bearer secret"}).status_code == 200
            assert client.post("/v1/session", json={"token": "wrong"}).status_code == 401
            assert client.post("/v1/session", json={"token": "secret"}).status_code == 204
            assert client.get("/v1/jobs").status_code == 200  # by the cookie
            assert "secret" not in client.cookies.values()
            odd = {"cookie": f'a={{"x":1}}; b=c d; segue-token={client.cookies["segue-token"]}'}
            client.cookies.clear()
            assert client.get("/v1/jobs", headers=odd).status_code == 200

    def test_beyond_this_machine_every_name_is_answered_to_who_has_the_token(self, exported, here, tmp_path):
        with here(tmp_path, exported, token="secret", local=False) as (client, _):
            secret = {"authorization": "Bearer secret"}
            assert client.get("/v1/jobs", headers=secret | {"host": "elsewhere"}).status_code == 200
            assert client.get("/v1/jobs", headers={"host": "elsewhere"}).status_code == 401

    def test_head_is_get_without_the_body(self, client):
        answer = client.head("/v1/models")
        assert answer.status_code == 200
        assert answer.content == b""


class TestVideos:
    @pytest.fixture(scope="class")
    def both(self, exported, video_bundle, here, tmp_path_factory):
        with here(tmp_path_factory.mktemp("videos"), exported, video_bundle) as (client, runner):
            yield client, runner

    @pytest.fixture
    def picture(self):
        data = io.BytesIO()
        Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(data, "PNG")
        return base64.b64encode(data.getvalue()).decode()

    def test_a_picture_that_is_sent_becomes_a_video(self, both, picture, finished):
        import av

        client, _ = both
        job = client.post("/v1/jobs", json={"kind": "video", "image": picture, "frames": 9}).json()
        job = finished(client, job["id"])
        assert job["state"] == "done", job
        with av.open(io.BytesIO(client.get("/" + job["files"][0]).content)) as video:
            assert sum(1 for _ in video.decode(video=0)) == 9

    def test_a_picture_that_a_job_drew_becomes_a_video(self, both, finished):
        client, _ = both
        drawn = finished(client, client.post("/v1/jobs", json=asked()).json()["id"])
        job = client.post("/v1/jobs", json={"kind": "video", "image_job": drawn["id"], "frames": 5}).json()
        assert finished(client, job["id"])["state"] == "done"

    def test_a_video_beyond_the_budget_is_refused_at_once(self, both, picture, monkeypatch):
        client, runner = both
        (name,) = (name for name, model in runner.models.items() if model.bundle.manifest.video is not None)
        monkeypatch.setattr(runner.models[name], "budget", 2**20)
        answer = client.post("/v1/jobs", json={"kind": "video", "image": picture, "frames": 9})
        assert answer.status_code == 422
        assert answer.json()["error"]["type"] == "BudgetError"
        assert "smallest budget that is enough is" in answer.json()["error"]["message"]

    def test_the_plan_of_a_video_grows_with_its_size_and_needs_no_image(self, both):
        client, _ = both
        small, large = (
            client.post("/v1/plan", json={"kind": "video", "frames": 17, "width": side, "height": 128}).json()
            for side in (64, 128)
        )
        assert {phase["component"] for phase in small["phases"]} >= {"transformer", "detail_transformer"}
        assert 0 < small["peak"] < large["peak"]

    def test_a_video_is_read_while_it_is_made(self, both, picture):
        import av

        client, _ = both
        job = client.post("/v1/jobs", json={"kind": "video", "image": picture, "frames": 41}).json()
        with client.stream("GET", f"/v1/jobs/{job['id']}/video") as answer:
            parts = answer.iter_bytes()
            data = next(parts)
            assert client.get(f"/v1/jobs/{job['id']}").json()["state"] == "running"
            data += b"".join(parts)
        assert data[4:8] == b"ftyp"
        with av.open(io.BytesIO(data)) as video:
            assert sum(1 for _ in video.decode(video=0)) == 41

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            ("§", "not valid base64"),
            (
                base64.b64encode(b"text").decode(),
                "the image that was sent cannot be read as a picture: its format is unknown. Name a PNG",
            ),
            (None, "needs one"),
        ],
    )
    def test_what_is_no_picture_is_refused(self, both, image, message):
        answer = both[0].post("/v1/jobs", json={"kind": "video", "image": image})
        assert answer.status_code == 422
        assert message in answer.json()["error"]["message"]


def test_the_page_is_given_with_all_that_it_asks_for(client):
    page = client.get("/").text
    for name in ("page.js", "page.css"):
        assert name in page
    for path in server.PAGE.iterdir():
        assert client.get(f"/{path.name}").content == path.read_bytes()


def test_readers_that_come_back_are_told_what_they_missed(client):
    client.post("/v1/jobs", json=asked(steps=60))  # the next job waits for it, so the reader is there when it begins
    job = client.post("/v1/jobs", json=asked(steps=3)).json()
    identifiers = []
    with client.stream("GET", f"/v1/jobs/{job['id']}/events") as answer:
        for line in answer.iter_lines():
            if line.startswith("id: "):
                identifiers.append(line[4:])
    assert len(set(identifiers)) == len(identifiers) >= 5
    assert len({one.partition("-")[0] for one in identifiers}) == 1
    feed = Feed()
    for number in range(4):
        feed.put("step", done=number)
    feed.put("done", last=True)

    async def read(identifier):
        return [told.number async for told in feed.read(feed.after(identifier))]

    assert asyncio.run(read(f"{feed.mark}-2")) == [3, 4]
    assert asyncio.run(read("another-200")) == asyncio.run(read(None)) == [0, 1, 2, 3, 4]


def test_a_second_server_on_the_same_directory_is_refused(tiny, exported, here):
    _, runner = tiny
    with pytest.raises(UsageError, match="another server keeps its jobs"), here(runner.folder, exported):
        pass


def test_a_cancellation_holds_when_the_server_dies_before_the_job_has_stopped(exported, here, tmp_path):
    store = Store(tmp_path / "jobs.sqlite")
    common = {"kind": "picture", "bundle": "tiny", "request": {"prompt": "x", "size": [64, 64]}, "created": 1.0}
    store.add(Job(id="a" * 32, state="running", cancelling=True, attempts=1, **common))
    store.add(Job(id="b" * 32, state="running", attempts=3, **common))
    store.add(Job(id="c" * 32, state="running", attempts=1, **common))
    store.close()
    with here(tmp_path, exported) as (client, _):
        states = {job["id"][0]: job["state"] for job in client.get("/v1/jobs").json()["jobs"]}
        assert (states["a"], states["b"]) == ("cancelled", "failed")
        assert states["c"] in ("waiting", "running", "done")
        assert "3 times" in client.get(f"/v1/jobs/{'b' * 32}").json()["error"]["message"]


def test_a_store_that_cannot_be_written_ends_the_job_and_frees_its_place(exported, here, tmp_path, monkeypatch):
    with here(tmp_path, exported) as (client, runner):
        gate = threading.Event()
        runner._queues["tiny"].do(lambda model: gate.wait(30))
        job = client.post("/v1/jobs", json=asked()).json()

        def full(*_, **__):
            raise OutputError("the disk is full")

        monkeypatch.setattr(runner.store, "change", full)
        feed = runner.feed(job["id"])
        gate.set()

        async def last():
            return [told async for told in feed.read()][-1]

        assert asyncio.run(last()).name == "failed"
        assert runner.unfinished() == 0


@pytest.mark.parametrize("kind", ["EPS", "PDF"])
def test_pictures_of_kinds_that_run_other_programs_are_refused(tmp_path, kind):
    from segue.runtime.media.read_image import read_image

    Image.new("RGB", (8, 8)).save(tmp_path / "picture", kind)
    with pytest.raises(UsageError, match="cannot be read as a picture"):
        read_image(tmp_path / "picture")


def test_a_job_without_a_kind_is_a_picture(client, finished):
    accepted = client.post("/v1/jobs", json={"prompt": "a red heart", "steps": 1})
    assert accepted.status_code == 202
    assert finished(client, accepted.json()["id"])["kind"] == "picture"
    assert client.post("/v1/jobs", json={"kind": "poem", "prompt": "x"}).status_code == 422
    assert client.post("/v1/jobs", json=["picture"]).status_code == 422


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (
            {"prompt": "x", "colour": "red"},
            "colour",
            "the key colour is unknown; known are kind, bundle, prompt",
        ),
        ({"prompt": "x", "steps": 10**6}, "steps", "steps = 1000000: "),
        ({"prompt": "x" * 10**6}, "prompt", "xxx...: "),
        ({}, "prompt", "prompt is missing. Add it"),
    ],
)
def test_a_body_that_does_not_fit_is_refused_with_the_key_its_value_and_what_to_do(client, body, param, message):
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == param
    assert message in answer.json()["error"]["message"]


def test_a_body_that_is_no_json_and_a_name_that_is_no_jobs_are_told_apart(client):
    answer = client.post("/v1/jobs", content=b'{"prompt": ', headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert "the body is not valid JSON at character" in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] is None
    assert client.get("/v1/jobs/nothing").status_code == 404
    assert "there is no job 'nothing'" in client.get("/v1/jobs/nothing").json()["error"]["message"]


class TestHealthAndDocs:
    def test_health_needs_no_token(self, exported, here, tmp_path):
        with here(tmp_path, exported, token="secret") as (client, _):
            assert client.get("/health").json()["status"] == "ok"
            assert client.get("/v1/models").status_code == 401

    def test_the_page_of_the_endpoints_is_whole_and_asks_no_other_host(self, exported, here, tmp_path):
        with here(tmp_path, exported, token="secret") as (client, _):
            page = client.get("/docs").text
            asked = re.findall(r"""(?:src|href)="([^"]+)"|url: ["']([^"']+)""", page)
            places = [httpx.URL(one or other) for one, other in asked]
            assert len(places) >= 3
            assert {place.host for place in places} <= {"", "127.0.0.1"}
            for place in places:
                assert client.get(place.path).status_code == 200
            schemes = client.get("/openapi.json").json()["components"]["securitySchemes"]
            assert [scheme["scheme"] for scheme in schemes.values()] == ["bearer"]

    @pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt install chromium)")
    def test_a_browser_shows_the_endpoints(self, browser, start, tmp_path):
        with start(tmp_path, "emoji") as (client, _):
            page, hosts = browser.new_page(), set()
            page.on("request", lambda request: hosts.add(httpx.URL(request.url).netloc))
            page.goto(f"{client.base_url}/docs")
            page.wait_for_selector(".opblock-summary-path >> nth=16")
            assert page.locator(".opblock").count() == 17
            assert hosts <= {client.base_url.netloc, b""}
            page.close()


def test_what_no_endpoint_does_is_told_in_words(client):
    answer = client.post("/v1/models", json={})
    assert answer.status_code == 405
    assert "no POST '/v1/models'. See /docs" in answer.json()["error"]["message"]
    answer = client.put("/v1/nothing")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unknown_url"

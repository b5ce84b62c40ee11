"""The page and its jobs: reloads, other tabs, the history, files, a server that goes away."""

import base64
import io

import httpx
import pytest
from PIL import Image

from support.browser import CHROMIUM, drop, opened, picture_of, status
from support.servers import wait

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt install chromium)")

LONG = 900  # steps of a job that runs until it is cancelled


def add(client, **values):
    """Submit a job and return it."""
    answer = client.post("/v1/jobs", json={"prompt": "pizza", "seed": 3, **values})
    assert answer.status_code == 202, answer.text
    return answer.json()


def running(page):
    page.wait_for_function("() => document.querySelector('#progress').value > 0")


def test_a_reload_goes_on_with_the_running_job_and_keeps_the_form(page):
    page.fill("#prompt", "rocket")
    page.fill("#seed", "11")
    page.click("#more summary")
    page.fill("#steps", str(LONG))
    page.click("#go")
    running(page)
    page.reload()
    running(page)
    assert page.text_content("#caption") == "rocket"
    assert [page.input_value(f"#{name}") for name in ("prompt", "seed", "steps")] == ["rocket", "11", str(LONG)]
    page.click("#stop")
    status(page, "cancelled")


def test_with_a_budget_a_preview_of_the_latents_stands_in_the_picture_s_place(browser, start, tmp_path):
    shown = "document.querySelector('#picture')"
    with (
        start(tmp_path, "emoji", options=("--budget", "1GiB")) as (client, _),
        opened(browser, client.base_url) as page,
    ):
        page.fill("#prompt", "rocket")
        page.click("#more summary")
        page.fill("#steps", str(LONG))
        page.click("#go")
        page.wait_for_function(f"() => {shown}.naturalWidth === 16")  # one pixel for each latent of 128 x 128
        assert page.get_attribute("#picture", "alt") == "rocket, unfinished"
        small = page.evaluate(f"{shown}.clientWidth")
        page.click("#stop")
        status(page, "cancelled")
        page.fill("#steps", "1")
        page.click("#go")
        status(page, "done")
        page.wait_for_function(f"() => {shown}.naturalWidth === 128")
        assert page.evaluate(f"{shown}.clientWidth") == small > 200


def test_another_tab_and_another_browser_follow_the_running_job_and_cancel_it(browser, page, site):
    job = add(site, prompt="rocket", steps=LONG)  # no tab has asked for it
    running(page)  # because a page looks at the list again and again
    with opened(browser, site.base_url) as other:
        running(other)
        assert other.input_value("#prompt") == "rocket"
        other.click("#stop")
        status(other, "cancelled")
    status(page, "cancelled")
    assert site.get(f"/v1/jobs/{job['id']}").json()["state"] == "cancelled"


def test_a_job_of_another_program_does_not_replace_what_the_user_has_drawn(page, site):
    page.fill("#prompt", "pizza")
    page.press("#prompt", "Enter")
    status(page, "done")
    job = add(site, prompt="rocket", steps=LONG)
    page.wait_for_selector("#history li.running")
    assert page.text_content("#caption") == "pizza"
    page.click("#history li.running .entry")
    running(page)
    assert page.text_content("#caption") == "rocket"
    site.post(f"/v1/jobs/{job['id']}/cancel")
    status(page, "cancelled")


def test_a_click_on_the_history_restores_all_that_was_asked_for(page, site):
    asked = {
        "bundle": "emoji-teacher", "prompt": "a blue rocket, noto", "seed": 12345, "steps": 2, "guidance": 2.5,
        "negative": "red", "count": 2, "width": 128, "height": 128,
    }  # fmt: skip
    wait(site, add(site, **asked)["id"])
    odd = wait(site, add(site, prompt="rocket", width=192, height=128, steps=1)["id"])
    assert odd["state"] == "done"
    page.reload()
    page.click("#history li >> nth=1 >> .entry")
    page.wait_for_function("() => document.querySelector('#prompt').value !== ''")
    for name in ("bundle", "prompt", "seed", "steps", "guidance", "negative", "count"):
        assert page.input_value(f"#{name}") == str(asked[name]), name
    assert page.input_value("#size") == "128x128"
    with page.expect_request("**/v1/jobs") as sent:
        page.click("#go")
    assert sent.value.post_data_json == asked | {"kind": "picture", "previews": True}
    status(page, "done")

    # made at a size that is not a trained one, by another program
    page.click("#history li:has(.title:text-is('rocket')) .entry")
    page.wait_for_function("() => document.querySelector('#prompt').value === 'rocket'")
    assert page.input_value("#size") == "192x128"
    assert page.text_content("#size option:checked") == "192 × 128, not trained"
    assert [page.input_value(f"#{name}") for name in ("bundle", "count", "steps")] == ["emoji", "", "1"]


def test_a_click_on_a_video_restores_its_picture_too(page, site):
    sent = base64.b64encode(picture_of("teal")).decode()
    body = {"kind": "video", "image": sent, "prompt": "waving", "frames": 5, "seed": 2}
    first = wait(site, site.post("/v1/jobs", json=body).json()["id"])
    page.reload()
    page.click("#history .entry")
    page.wait_for_selector("#source-picture:not([hidden])")
    page.wait_for_selector("#film:not([hidden])")
    assert [page.input_value(f"#{name}") for name in ("prompt", "frames", "seed")] == ["waving", "5", "2"]
    assert page.is_checked("[name=kind][value=video]")
    page.click("#go")
    page.wait_for_function("() => document.querySelectorAll('#history li.done').length === 2")
    status(page, "done")
    (again, _) = site.get("/v1/jobs").json()["jobs"]
    assert again["id"] != first["id"]
    files = [site.get(f"/v1/jobs/{job['id']}/files/input.png").content for job in (first, again)]
    assert Image.open(io.BytesIO(files[0])).getpixel((0, 0)) == (0, 128, 128)
    assert Image.open(io.BytesIO(files[0])).tobytes() == Image.open(io.BytesIO(files[1])).tobytes()


def test_the_file_is_downloaded_under_a_name_that_tells_it(page, site):
    job = wait(site, add(site, prompt="für Jörg 火", seed=4)["id"])
    page.reload()
    page.click("#history .entry")
    with page.expect_download() as started:
        page.click("#download")
    assert started.value.suggested_filename == "für-Jörg-火-4.png"
    data = started.value.path().read_bytes()
    assert data == site.get("/" + job["files"][0]).content


def test_a_job_is_deleted_by_a_second_click_only(page, site):
    jobs = [wait(site, add(site, prompt=prompt)["id"]) for prompt in ("pizza", "rocket", "robot")]
    page.reload()
    remove = page.locator("#history li >> nth=0 >> .remove")
    assert remove.get_attribute("aria-label") == "Delete robot"
    remove.press("Enter")
    assert "press again" in remove.get_attribute("aria-label")
    page.keyboard.press("Tab")  # which leaves the question
    assert remove.get_attribute("aria-label") == "Delete robot"
    assert site.get(f"/v1/jobs/{jobs[2]['id']}").status_code == 200
    remove.press("Enter")
    remove.press("Enter")
    page.wait_for_function("() => document.querySelectorAll('#history li').length === 2")
    assert page.evaluate("document.activeElement.textContent").startswith("rocket")  # the neighbour
    for path in (f"/v1/jobs/{jobs[2]['id']}", "/" + jobs[2]["files"][0]):
        assert site.get(path).status_code == 404

    page.keyboard.press("Enter")
    status(page, "done")
    page.press("#delete", "Enter")
    assert page.text_content("#delete") == "Delete?"
    page.press("#delete", "Enter")
    page.wait_for_selector("#empty:not([hidden])")
    assert page.evaluate("document.activeElement.id") == "prompt"
    assert [job["prompt"] for job in (one["request"] for one in site.get("/v1/jobs").json()["jobs"])] == ["pizza"]


def test_a_picture_of_the_user_is_chosen_or_dropped_and_animated(page, site):
    page.click("#kinds >> text=Video")
    page.set_input_files("#upload", {"name": "mine.png", "mimeType": "image/png", "buffer": picture_of("navy")})
    page.wait_for_selector("#source-picture:not([hidden])")
    assert page.text_content("#source-words") == "mine.png"
    assert page.is_checked("[name=kind][value=video]")
    page.fill("#frames", "5")
    page.click("#go")
    status(page, "done")
    (job,) = site.get("/v1/jobs").json()["jobs"]
    assert job["kind"] == "video"
    sent = Image.open(io.BytesIO(site.get(f"/v1/jobs/{job['id']}/files/input.png").content))
    assert (sent.size, sent.getpixel((0, 0))) == ((96, 80), (0, 0, 128))

    drop(page, "other.png", picture_of("red"))
    page.wait_for_function("() => document.querySelector('#source-words').textContent === 'other.png'")
    drop(page, "notes.txt", b"text", "text/plain")
    page.wait_for_function("() => document.querySelector('#form-words').textContent !== ''")
    assert page.text_content("#form-words") == "notes.txt is not a PNG, JPEG or WebP file. Choose one that is."


def test_a_video_without_a_picture_asks_for_one(page):
    page.click("#kinds >> text=Video")
    page.click("#go")
    assert page.text_content("#form-words") == "A video needs a first picture. Choose one."
    assert page.evaluate("document.activeElement.id") == "upload"


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_clips_in_the_history_play_silently_in_a_loop_unless_motion_is_unwanted(browser, site, motion):
    sent = base64.b64encode(picture_of("teal")).decode()
    wait(site, site.post("/v1/jobs", json={"kind": "video", "image": sent, "frames": 5}).json()["id"])
    with opened(browser, site.base_url, reduced_motion=motion) as page:
        page.wait_for_function("() => document.querySelector('#history video')?.readyState >= 2")
        clip = "document.querySelector('#history video')"
        assert page.evaluate(f"[{clip}.muted, {clip}.loop]") == [True, True]
        if motion == "reduce":
            assert page.evaluate(f"[{clip}.paused, {clip}.currentTime]") == [True, 0]
            assert page.evaluate("document.getAnimations().length") == 0
        else:
            page.wait_for_function(f"() => {clip}.currentTime > 0")


def test_the_page_waits_for_a_server_that_is_gone_and_goes_on(browser, start, tmp_path):
    with start(tmp_path, "emoji") as (client, _):
        port = client.base_url.port
        job = add(client, prompt="rocket", steps=LONG)
        manager = opened(browser, client.base_url, expected=["ERR_CONNECTION", "ERR_INCOMPLETE", "ERR_EMPTY"])
        page = manager.__enter__()
        running(page)
    page.wait_for_selector("#gone:not([hidden])")
    assert page.is_disabled("#go")
    page.click("#retry")  # which is too early
    assert page.is_visible("#gone")
    assert "Failed to fetch" not in page.inner_text("body")
    with start(tmp_path, "emoji", options=["--port", str(port)]) as (client, _):
        page.wait_for_selector("#gone", state="hidden")
        running(page)  # the server has continued the job, and the page follows it
        assert page.is_enabled("#go")
        page.click("#stop")
        status(page, "cancelled")
        assert client.get(f"/v1/jobs/{job['id']}").json()["state"] == "cancelled"
        manager.__exit__(None, None, None)


def wider(route):
    post = route.request.method == "POST"
    route.continue_(post_data={**route.request.post_data_json, "width": 65} if post else None)


def test_what_the_server_refuses_is_said_in_its_words(browser, site):
    with opened(browser, site.base_url, expected=["status of 422"]) as page:
        page.route("**/v1/jobs", wider)
        page.fill("#prompt", "pizza")
        with page.expect_response(lambda answer: answer.status == httpx.codes.UNPROCESSABLE_ENTITY) as refused:
            page.press("#prompt", "Enter")
        page.wait_for_function("() => document.querySelector('#form-words').textContent !== ''")
        assert page.text_content("#form-words") == refused.value.json()["error"]["message"]

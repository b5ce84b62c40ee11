"""The page makes videos of one stage: from text alone, and with the picture that the video ends with."""

import base64
from contextlib import contextmanager

import numpy as np
import pytest

from support.browser import CHROMIUM, drop, faults_of, opened, picture_of, sideways, status
from support.input_pictures import drawing, png
from support.input_pictures import opened as pixels
from support.servers import wait

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt install chromium)")

OPTIONAL = "If you like, drop a picture here, or choose one: PNG, JPEG or WebP."
NEEDED = "Drop a picture here, or choose one: PNG, JPEG or WebP."


@contextmanager
def taking(browser, site, turn=True, **options):
    """Yield the page, on which emoji-motion is said to be a model with `options` of /v1/models."""
    said = {name: options.pop(name) for name in ("takes_text_alone", "takes_last") if name in options}

    def answer(route):
        found = route.fetch()
        models = found.json()
        for one in models["data"]:
            if one["kind"] == "video":
                one |= said
        route.fulfill(response=found, json=models)

    with browser.new_context(**options) as context:
        page = context.new_page()
        page.route("**/v1/models", answer)
        page.goto(str(site.base_url))
        page.wait_for_selector("#plan-words:not(:empty)")
        if turn:
            page.click("#kinds >> text=Video")
        yield page


@pytest.fixture
def ending(browser, site):
    """The page with a model that takes a last picture, on its side for videos."""
    with taking(browser, site, takes_last=True) as page:
        yield page


def words(page, name):
    return page.text_content(f"#{name}-words")


def told(page, name, expected):
    """Wait until a field's words are these."""
    text = "([id, expected]) => document.getElementById(id).textContent === expected"
    page.wait_for_function(text, arg=[f"{name}-words", expected])


def choose(page, field, colour):
    """Choose a file with the field's own button."""
    upload = {"source": "#upload", "last": "#last-upload"}[field]
    page.set_input_files(upload, {"name": f"{colour}.png", "mimeType": "image/png", "buffer": picture_of(colour)})
    page.wait_for_function(
        f"(name) => document.querySelector('#{field}-words').textContent === name", arg=f"{colour}.png"
    )


def sent(page):
    """Press Animate; return the body of the request."""
    with page.expect_request("**/v1/jobs") as found:
        page.click("#go")
    return found.value.post_data_json


def bytes_of(address):
    return base64.b64decode(address.partition(",")[2])


class TestTextAlone:
    """A model that draws a video from text alone, as the page sees it."""

    @pytest.fixture
    def page(self, browser, site):
        with taking(browser, site, takes_text_alone=True) as page:
            yield page

    def test_it_asks_for_a_prompt_and_offers_a_first_picture(self, page):
        assert (page.text_content("#prompt-label"), page.text_content("#source-label")) == ("Prompt", "First picture")
        assert words(page, "source") == OPTIONAL
        assert page.text_content("#empty-words") == (
            "Type it as a prompt, choose a first picture if you like, and press Animate."
        )
        assert page.is_hidden("#last")
        page.fill("#prompt", "a dog runs")
        assert {"image", "last"}.isdisjoint(sent(page))
        page.wait_for_function("() => document.querySelector('#form-words').textContent !== ''")
        assert page.text_content("#form-words").startswith("a video needs one picture.")  # emoji-motion needs it

    def test_without_a_prompt_and_a_picture_it_asks_for_one(self, page):
        page.click("#go")
        assert page.text_content("#form-words") == "A video needs a prompt or a first picture. Choose one."
        assert page.evaluate("document.activeElement.id") == "prompt"

    def test_a_first_picture_is_sent_and_no_longer_once_it_is_removed(self, page, site):
        choose(page, "source", "navy")
        page.fill("#frames", "5")
        assert bytes_of(sent(page)["image"]) == picture_of("navy")
        status(page, "done")
        page.press("#unchoose", "Enter")
        assert words(page, "source") == OPTIONAL
        page.fill("#prompt", "a dog runs")
        assert "image" not in sent(page)

    def test_a_model_of_pictures_keeps_its_words(self, page):
        page.click("#kinds >> text=Picture")
        assert page.text_content("#source-label") == "Begin with a picture"
        assert words(page, "source") == OPTIONAL
        assert page.text_content("#prompt-label") == "Prompt"


def test_a_model_that_needs_a_first_picture_says_so(page):
    page.click("#kinds >> text=Video")
    assert words(page, "source") == NEEDED
    assert page.text_content("#prompt-label") == "Motion"
    assert page.is_hidden("#last")
    assert page.is_disabled("#last-upload")


def test_the_last_picture_is_offered_for_videos_only(ending):
    order = "[...document.querySelectorAll('#source, #last, #prompt-field')].map(({id}) => id)"
    assert (ending.is_visible("#last"), words(ending, "last")) == (True, OPTIONAL)
    assert ending.evaluate(order) == ["source", "last", "prompt-field"]
    for _ in range(2):
        ending.click("#kinds >> text=Picture")
        assert ending.is_hidden("#last")
        ending.click("#kinds >> text=Video")
        assert ending.evaluate(order) == ["source", "last", "prompt-field"]


def test_both_pictures_are_chosen_shown_sent_and_refused_in_the_server_s_words(ending):
    choose(ending, "source", "navy")
    choose(ending, "last", "teal")
    assert words(ending, "source") == "navy.png"  # each field keeps its own
    for field, colour in (("source", "navy"), ("last", "teal")):
        assert bytes_of(ending.get_attribute(f"#{field}-picture", "src")) == picture_of(colour)
        assert ending.is_visible(f"#{field}-picture")
    body = sent(ending)
    assert [bytes_of(body[name]) for name in ("image", "last")] == [picture_of("navy"), picture_of("teal")]
    ending.wait_for_function("() => document.querySelector('#form-words').textContent !== ''")
    assert "takes no last picture" in ending.text_content("#form-words")  # emoji-motion does not


def test_a_last_picture_is_dropped_on_its_field_and_any_other_place_takes_the_first(ending):
    drop(ending, "end.png", picture_of("teal"), place="#last .drop")
    told(ending, "last", "end.png")
    assert words(ending, "source") == NEEDED
    drop(ending, "begin.png", picture_of("navy"))
    told(ending, "source", "begin.png")
    assert words(ending, "last") == "end.png"
    drop(ending, "notes.txt", b"text", "text/plain", place="#last-words")
    ending.wait_for_function("() => document.querySelector('#form-words').textContent !== ''")
    assert ending.text_content("#form-words") == "notes.txt is not a PNG, JPEG or WebP file. Choose one that is."
    assert words(ending, "last") == "end.png"


def test_a_removed_last_picture_is_not_sent_and_the_focus_stays(ending):
    choose(ending, "source", "navy")
    choose(ending, "last", "teal")
    ending.press("#last-unchoose", "Enter")
    assert ending.evaluate("document.activeElement.id") == "last-upload"
    assert ending.is_hidden("#last-layers")
    assert (words(ending, "source"), words(ending, "last")) == ("navy.png", OPTIONAL)
    choose(ending, "last", "teal")  # the same file can be chosen again
    ending.press("#unchoose", "Enter")
    assert ending.evaluate("document.activeElement.id") == "upload"
    assert words(ending, "last") == "teal.png"
    choose(ending, "source", "navy")
    ending.press("#last-unchoose", "Enter")
    ending.fill("#frames", "5")
    assert "last" not in sent(ending)
    status(ending, "done")


def test_another_model_does_not_get_the_last_picture(browser, site):
    two = [{"id": "emoji-motion", "takes_last": True}, {"id": "other", "takes_last": False}]

    def answer(route):
        found = route.fetch()
        (video,) = (one for one in found.json()["data"] if one["kind"] == "video")
        route.fulfill(response=found, json={"object": "list", "data": [video | one for one in two]})

    with browser.new_context() as context:
        page = context.new_page()
        page.route("**/v1/models", answer)
        page.goto(str(site.base_url))
        page.wait_for_selector("#last:not([hidden])")
        choose(page, "source", "navy")
        choose(page, "last", "teal")
        page.select_option("#bundle", "other")
        assert page.is_hidden("#last")
        assert "last" not in sent(page)
        page.select_option("#bundle", "emoji-motion")
        assert words(page, "last") == "teal.png"
        assert bytes_of(sent(page)["last"]) == picture_of("teal")


def test_the_keyboard_and_a_screen_reader_find_each_field(ending):
    choose(ending, "source", "navy")
    choose(ending, "last", "teal")
    for name in ("First picture", "Last picture"):
        field = ending.get_by_role("group", name=name)
        assert field.get_by_role("button", name="Remove").is_visible()
        assert field.get_by_label("Choose a picture").count() == 1
    assert ending.get_by_role("img", name="The last picture of the video").is_visible()
    ending.focus("#upload")
    reached = []
    for _ in range(4):
        ending.keyboard.press("Tab")
        reached.append(ending.evaluate("document.activeElement.id"))
    assert reached == ["unchoose", "last-upload", "last-unchoose", "prompt"]
    ending.focus("#last-upload")
    ring = "getComputedStyle(document.querySelector('label[for=last-upload]')).outlineStyle"
    ending.keyboard.press("Tab")
    ending.keyboard.press("Shift+Tab")
    assert ending.evaluate(ring) == "solid"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_both_fields_fit_and_are_accessible(browser, site, width, theme):
    options = {"viewport": {"width": width, "height": 800}, "color_scheme": theme, "reduced_motion": "reduce"}
    with taking(browser, site, takes_last=True, **options) as page:
        assert (sideways(page), faults_of(page)) == ([[], 0], [])
        name = "a-very-long-name-without-any-space-" * 5 + ".png"
        for place, field in (("#last", "last"), ("#stage", "source")):
            drop(page, name, png(drawing(120, 200)), place=place)
            page.wait_for_selector(f"#{field}-picture")
        assert (sideways(page), faults_of(page)) == ([[], 0], [])
        first, last = (page.locator(f"#{field}-layers").bounding_box() for field in ("source", "last"))
        assert (first["width"], first["height"], first["x"]) == (last["width"], last["height"], last["x"])


class TestServer:
    """The page of a server with a model of one stage."""

    def test_a_click_on_the_history_restores_both_pictures(self, browser, start, wan_i2v_bundle, tmp_path):
        first, last = drawing(64, 96), 255 - drawing(80, 80)
        asked = {"kind": "video", "prompt": "waving", "frames": 9, "seed": 5}
        given = {name: base64.b64encode(png(one)).decode() for name, one in (("image", first), ("last", last))}
        with start(tmp_path, wan_i2v_bundle) as (client, _), opened(browser, client.base_url) as page:
            job = wait(client, client.post("/v1/jobs", json=asked | given).json()["id"])
            wait(
                client, client.post("/v1/jobs", json=asked | {"image": given["image"], "prompt": "plain"}).json()["id"]
            )
            page.reload()
            page.click("#history li:has(.title:text-is('waving')) .entry")
            page.wait_for_selector("#last-picture:visible")
            assert words(page, "last") == "the last picture of “waving”"
            assert "with a last picture" in page.text_content("#facts")
            page.wait_for_selector("#source-picture:visible")
            page.click("#go")
            page.wait_for_function("() => document.querySelectorAll('#history li.done').length === 3")
            status(page, "done")
            again = client.get("/v1/jobs").json()["jobs"][0]
            assert again["id"] != job["id"]
            for name, expected in (("input.png", first), ("last.png", last)):
                kept = pixels(client.get(f"/v1/jobs/{again['id']}/files/{name}").content)
                assert np.array_equal(kept, expected)
            videos = [client.get("/" + one["files"][0]).content for one in (job, again)]
            assert videos[0] == videos[1]

            page.click("#history li:has(.title:text-is('plain')) .entry")  # it had no last picture
            page.wait_for_selector("#last-layers", state="hidden")
            page.wait_for_function("() => document.querySelector('#prompt').value === 'plain'")
            assert "last picture" not in page.text_content("#facts")
            with page.expect_request("**/v1/jobs") as found:
                page.click("#go")
            assert "last" not in found.value.post_data_json
            status(page, "done")

    def test_a_prompt_alone_becomes_a_video_and_is_found_again(self, browser, start, wan_ti2v_bundle, tmp_path):
        with start(tmp_path, wan_ti2v_bundle) as (client, _), opened(browser, client.base_url) as page:
            page.fill("#prompt", "a dog runs")
            page.fill("#frames", "9")
            page.press("#prompt", "Enter")
            page.wait_for_selector("#film:not([hidden])")
            status(page, "done")
            assert "from text alone" in page.text_content("#facts")
            choose(page, "source", "navy")
            page.fill("#prompt", "a cat runs")
            page.press("#prompt", "Enter")
            page.wait_for_function("() => document.querySelectorAll('#history li.done').length === 2")
            status(page, "done")
            (pictured, alone) = client.get("/v1/jobs").json()["jobs"]
            assert ("image" in pictured["request"], "image" in alone["request"]) == (True, False)
            page.click("#history li:has(.title:text-is('a dog runs')) .entry")
            page.wait_for_selector("#source-layers", state="hidden")
            page.wait_for_function("() => document.querySelector('#prompt').value === 'a dog runs'")
            page.click("#go")
            page.wait_for_function("() => document.querySelectorAll('#history li.done').length === 3")
            status(page, "done")
            again = client.get("/v1/jobs").json()["jobs"][0]
            assert "image" not in again["request"]
            assert again["request"]["seed"] == alone["request"]["seed"]

    def test_a_waiting_video_from_text_has_no_picture_in_the_history(self, browser, start, wan_ti2v_bundle, tmp_path):
        with start(tmp_path, wan_ti2v_bundle) as (client, _), opened(browser, client.base_url) as page:
            jobs = [
                client.post("/v1/jobs", json={"kind": "video", "prompt": "a dog runs", "frames": 161}).json()["id"]
                for _ in range(2)
            ]
            page.wait_for_selector("#history li:nth-child(2)")
            assert page.locator("#history img").count() == 0  # nothing is asked for that is not there
            for job in reversed(jobs):
                client.post(f"/v1/jobs/{job}/cancel")
                wait(client, job)

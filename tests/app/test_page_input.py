"""The page begins with a picture: drop it, choose a strength, paint a mask, find both again in the history."""

import base64

import numpy as np
import pytest

import segue
from support import browser as browsers
from support.browser import CHROMIUM, faults_of, opened, picture_of, sideways, status
from support.input_pictures import drawing, png
from support.input_pictures import opened as pixels
from support.servers import wait

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt install chromium)")

IMAGE = drawing()


def drop(page, image=IMAGE, name="mine.png"):
    browsers.drop(page, name, png(image))
    page.wait_for_function("(name) => document.querySelector('#source-words').textContent === name", arg=name)


def draw(page, prompt="a red heart", **values):
    shown = "sessionStorage.getItem('segue-shown')"
    before = page.evaluate(shown)
    for name, value in ({"prompt": prompt, "seed": "7"} | values).items():
        page.fill(f"#{name}", value)
    page.press("#prompt", "Enter")
    page.wait_for_function(f"(before) => {shown} !== before", arg=before)
    status(page, "done")


def newest(site):
    """Return the newest job, and its picture."""
    job = site.get("/v1/jobs").json()["jobs"][0]
    return job, pixels(site.get("/" + job["files"][0]).content)


def mask_of(site, job):
    return pixels(site.get(f"/v1/jobs/{job['id']}/files/mask.png").content)[..., 0]


def paint(page, *points):
    """Open the canvas and draw a stroke with the mouse through points, in shares of its width and height."""
    if not page.is_visible("#mask"):
        page.click("#paint")
        page.wait_for_selector("#mask[open]")
    box = page.locator("#canvas").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:] or places:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def share(page):
    words = page.text_content("#mask-words")
    return 0 if words.startswith("Nothing") else int(words.split()[0])


def test_a_dropped_picture_is_drawn_anew_where_a_stroke_was_painted_and_nowhere_else(page, site):
    drop(page)
    assert page.is_visible("#source-picture")
    assert page.is_checked("[name=kind][value=picture]")  # no video was asked for
    paint(page, (0.3, 0.5), (0.7, 0.5))
    assert 3 <= share(page) <= 9
    page.click("#mask-done")
    assert page.is_visible("#source-mask")
    draw(page)
    job, made = newest(site)
    mask = mask_of(site, job)
    assert mask.shape == IMAGE.shape[:2]
    assert mask[64, 40] == mask[64, 64] == 255
    assert mask[:40].max() == mask[90:].max() == 0
    assert np.array_equal(made[mask == 0], IMAGE[mask == 0])
    assert not np.array_equal(made[mask == 255], IMAGE[mask == 255])
    assert np.array_equal(pixels(site.get(f"/v1/jobs/{job['id']}/files/input.png").content), IMAGE)
    assert job["request"]["strength"] == 1  # behind a mask all is redrawn, unless one chooses otherwise
    with segue.open("emoji") as model:
        assert np.array_equal(made, model.generate("a red heart", seed=7, image=IMAGE, mask=mask))
    assert "from a picture with a mask" in page.text_content("#facts")


def test_strength_says_how_much_is_drawn_anew(page, site):
    before = page.text_content("#plan-words")
    drop(page)
    assert page.text_content("#strength-words") == "0.60"
    page.focus("#strength")
    for _ in range(6):
        page.keyboard.press("ArrowLeft")
    assert page.text_content("#strength-words") == "0.30"
    page.click("#more summary")
    page.fill("#steps", "10")
    page.wait_for_function("(before) => document.querySelector('#plan-words').textContent !== before", arg=before)
    assert "vae encoder" in page.text_content("#phases")
    draw(page)
    job, made = newest(site)
    assert job["request"]["strength"] == 0.3
    assert "mask" not in job["request"]
    with segue.open("emoji") as model:
        assert np.array_equal(made, model.generate("a red heart", seed=7, steps=10, image=IMAGE, strength=0.3))


def test_erase_invert_and_clear_change_what_is_painted(page):
    drop(page)
    page.click("#paint")
    assert share(page) == 0
    page.fill("#brush", "50")
    paint(page, (0.5, 0.5))
    first = share(page)
    assert 18 <= first <= 21  # a disc with half the picture's side
    page.click("#erase")
    assert page.get_attribute("#erase", "aria-pressed") == "true"
    page.fill("#brush", "25")
    paint(page, (0.5, 0.5))
    assert 13 <= share(page) <= 16
    page.click("#invert")
    assert 84 <= share(page) <= 87
    page.click("#clear")
    assert share(page) == 0
    page.click("#mask-done")
    assert page.is_hidden("#source-mask")
    assert page.text_content("#paint") == "Paint a mask"


def test_the_keyboard_alone_paints_a_mask(page, site):
    drop(page)
    page.press("#paint", "Enter")
    assert page.evaluate("document.activeElement.id") == "canvas"
    page.keyboard.press("Space")
    one = share(page)
    assert one >= 1
    for key in ("ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
        page.keyboard.press("Space")
    assert share(page) > one
    page.keyboard.down("Space")  # held, it paints a line
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    page.keyboard.up("Space")
    line = share(page)
    assert line > one + 1
    reached = set()
    for _ in range(8):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"brush", "feather", "erase", "invert", "clear", "mask-done", "canvas"} <= reached
    page.keyboard.press("Escape")
    assert page.is_hidden("#mask")
    assert page.evaluate("document.activeElement.id") == "paint"
    draw(page)
    assert round(100 * float((mask_of(site, newest(site)[0]) / 255).mean())) == line


def test_a_finger_paints(browser, site):
    options = {"viewport": {"width": 390, "height": 800}, "has_touch": True, "is_mobile": True}
    with opened(browser, site.base_url, **options) as page:
        drop(page)
        page.tap("#paint")
        page.wait_for_selector("#mask[open]")
        box = page.locator("#canvas").bounding_box()
        touch = page.context.new_cdp_session(page)
        top = page.evaluate("scrollY")
        for kind, part in (("touchStart", 0.3), ("touchMove", 0.5), ("touchMove", 0.7), ("touchEnd", None)):
            place = {"x": box["x"] + box["width"] * 0.5, "y": box["y"] + box["height"] * (part or 0)}
            points = [] if part is None else [place]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        page.wait_for_function("() => !document.querySelector('#mask-words').textContent.startsWith('Nothing')")
        assert 3 <= share(page) <= 9
        assert page.evaluate("scrollY") == top  # the page did not scroll instead


def test_a_click_on_the_history_after_a_reload_restores_the_picture_and_its_mask(page, site):
    drop(page, drawing(200, 160))
    paint(page, (0.2, 0.2), (0.8, 0.2))
    page.fill("#feather", "3")
    page.click("#mask-done")
    page.focus("#strength")
    page.keyboard.press("ArrowLeft")
    draw(page)
    first, made = newest(site)
    assert (first["request"]["strength"], first["request"]["feather"]) == (0.95, 3)
    plain = wait(site, site.post("/v1/jobs", json={"prompt": "pizza", "seed": 1}).json()["id"])
    page.reload()
    page.wait_for_selector("#history li")
    page.click("#history li:has(.title:text-is('a red heart')) .entry")
    page.wait_for_selector("#source-mask:not([hidden])")
    page.wait_for_function("() => document.querySelector('#strength-words').textContent === '0.95'")
    assert page.input_value("#feather") == "3"
    draw(page)
    again, same = newest(site)
    assert again["id"] not in (first["id"], plain["id"])
    assert np.array_equal(same, made)
    assert np.array_equal(mask_of(site, again), mask_of(site, first))

    page.click("#history li:has(.title:text-is('pizza')) .entry")  # it had no picture
    page.wait_for_selector("#source-layers", state="hidden")
    draw(page, "pizza")
    assert "image" not in newest(site)[0]["request"]


def test_a_drawn_picture_is_changed_and_a_chosen_one_removed(page, site):
    draw(page, "pizza")
    _, first = newest(site)
    page.click("#change")
    page.wait_for_selector("#source-picture")
    assert page.text_content("#source-words") == "the picture of “pizza”"
    draw(page, "a red heart")
    job, _ = newest(site)
    assert np.array_equal(pixels(site.get(f"/v1/jobs/{job['id']}/files/input.png").content), first)
    page.press("#unchoose", "Enter")
    assert page.is_hidden("#source-layers")
    assert page.is_hidden("#beginning")
    assert page.evaluate("document.activeElement.id") == "upload"  # the button went away
    draw(page, "a red heart")
    assert "image" not in newest(site)[0]["request"]


def test_another_picture_has_no_mask_and_a_removed_mask_is_not_sent(page, site):
    drop(page)
    paint(page, (0.5, 0.5))
    page.click("#mask-done")
    drop(page, drawing(96, 96), "other.png")
    assert page.is_hidden("#source-mask")
    paint(page, (0.5, 0.5))
    page.click("#mask-done")
    page.press("#unmask", "Enter")
    assert page.evaluate("document.activeElement.id") == "paint"
    draw(page)
    job, _ = newest(site)
    assert "mask" not in job["request"]
    assert job["request"]["strength"] == 0.6


def test_each_kind_keeps_its_own_picture(page):
    drop(page)
    page.click("#kinds >> text=Video")
    assert page.is_hidden("#source-layers")
    assert page.is_hidden("#beginning")
    page.set_input_files("#upload", {"name": "film.png", "mimeType": "image/png", "buffer": picture_of("navy")})
    page.wait_for_function("() => document.querySelector('#source-words').textContent === 'film.png'")
    page.click("#kinds >> text=Picture")
    assert page.text_content("#source-words") == "mine.png"
    assert page.is_visible("#beginning")


def test_what_is_no_picture_is_told(page, site):
    browsers.drop(page, "notes.txt", b"text", "text/plain")
    page.wait_for_function("() => document.querySelector('#form-words').textContent !== ''")
    assert page.text_content("#form-words") == "notes.txt is not a PNG, JPEG or WebP file. Choose one that is."
    assert page.is_hidden("#source-layers")
    drop(page)
    assert page.text_content("#form-words") == ""


def test_a_mask_is_not_offered_for_a_picture_that_is_too_large(page):
    drop(page, np.zeros((4200, 4200, 3), np.uint8))
    page.click("#paint")
    page.wait_for_function("() => document.querySelector('#form-words').textContent !== ''")
    assert "more than 16 million pixels" in page.text_content("#form-words")
    assert page.is_hidden("#mask")


def test_a_mask_of_a_large_picture_has_its_size(page, site):
    drop(page, drawing(3000, 1500))
    paint(page, (0.5, 0.5))
    page.click("#mask-done")
    draw(page)
    mask = mask_of(site, newest(site)[0])
    assert mask.shape == (3000, 1500)
    assert (mask[1500, 750], mask[0, 0]) == (255, 0)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_the_picture_and_the_canvas_fit_and_are_accessible(browser, site, width, theme):
    options = {"viewport": {"width": width, "height": 800}, "color_scheme": theme, "reduced_motion": "reduce"}
    with opened(browser, site.base_url, **options) as page:
        drop(page, drawing(120, 200), "a-very-long-name-without-any-space-" * 5 + ".png")
        assert (sideways(page), faults_of(page)) == ([[], 0], [])
        paint(page, (0.2, 0.5), (0.8, 0.5))
        assert share(page) > 0
        assert (sideways(page), faults_of(page)) == ([[], 0], [])
        box, shown = (page.locator(f"#{name}").bounding_box() for name in ("canvas", "mask"))
        assert shown["height"] <= 800
        assert box["width"] / box["height"] == pytest.approx(200 / 120, rel=0.02)
        assert box["width"] >= 190  # large enough to paint on
        page.click("#mask-done")
        assert (sideways(page), faults_of(page)) == ([[], 0], [])


class TestReferences:
    """A model that draws from reference pictures, as the page sees it."""

    @pytest.fixture
    def page(self, browser, site):
        def taking(route):
            answer = route.fetch()
            found = answer.json()
            for one in found["data"]:
                one["references"] = 2
            route.fulfill(response=answer, json=found)

        with browser.new_context() as context:
            page = context.new_page()
            page.route("**/v1/models", taking)
            page.goto(str(site.base_url))
            page.wait_for_selector("#references:not([hidden])")
            yield page

    def test_references_are_chosen_shown_removed_and_sent(self, page):
        files = [{"name": f"{colour}.png", "mimeType": "image/png", "buffer": picture_of(colour)} for colour in (
            "red", "navy", "teal"
        )]  # fmt: skip
        page.set_input_files("#references-upload", files)
        page.wait_for_function("() => document.querySelector('#form-words').textContent !== ''")
        assert page.text_content("#form-words") == "The model takes 2 references. Choose fewer."
        page.set_input_files("#references-upload", files[:2])
        page.wait_for_selector("#references-list li >> nth=1")
        assert page.is_disabled("#references-upload")
        page.click("#references-list button >> nth=0")
        assert page.locator("#references-list li").count() == 1
        page.fill("#prompt", "a red heart")
        with page.expect_request("**/v1/jobs") as sent:
            page.click("#go")
        (given,) = sent.value.post_data_json["references"]
        assert base64.b64decode(given.partition(",")[2]) == files[1]["buffer"]
        page.wait_for_function("() => document.querySelector('#form-words').textContent !== ''")
        assert "takes no reference pictures" in page.text_content("#form-words")  # in the server's words

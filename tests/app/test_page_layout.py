"""The page's layout at four widths in two themes: nothing overflows, and axe-core finds nothing serious."""

import re

import pytest

from support.browser import CHROMIUM, THEMES, WIDTHS, faults_of, opened, sideways, status
from support.servers import wait

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt install chromium)")

SERVER = re.compile(r"/(v1/.*|health)$")
PROMPTS = ("W" * 1000, "woman astronaut medium skin tone " * 30, "woman astronaut: medium skin tone")


@pytest.fixture(scope="module")
def filled(served):
    """The client of a server whose history holds long prompts, a failed job, a clip and several pictures."""
    jobs = [{"prompt": text[:1000], "steps": 1} for text in PROMPTS] + [{"prompt": "pizza", "steps": 1, "count": 4}]
    made = [served.post("/v1/jobs", json=job).json() for job in jobs]
    made.append(served.post("/v1/jobs", json={"prompt": PROMPTS[0], "steps": 900}).json())
    served.post(f"/v1/jobs/{made[-1]['id']}/cancel")
    first = wait(served, made[0]["id"])
    clip = {"kind": "video", "image_job": first["id"], "frames": 5, "prompt": PROMPTS[0]}
    made.append(served.post("/v1/jobs", json=clip).json())
    for job in made:
        wait(served, job["id"])
    return served


@pytest.fixture(params=[(width, theme) for width in WIDTHS for theme in THEMES], ids=lambda one: f"{one[0]}-{one[1]}")
def page(request, browser, filled):
    width, theme = request.param
    options = {"viewport": {"width": width, "height": 800}, "color_scheme": theme, "reduced_motion": "reduce"}
    with opened(browser, filled.base_url, ["ERR_FAILED"], **options) as made:
        made.wait_for_selector("#examples button")
        yield made


def check(page):
    assert sideways(page) == [[], 0]
    assert faults_of(page) == []


def test_the_page_fits_and_is_accessible_in_every_state(page):
    assert page.locator("#history li").count() >= 6
    check(page)  # empty

    for entry in range(6):
        title = page.text_content(f"#history li >> nth={entry} >> .title")
        page.click(f"#history li >> nth={entry} >> .entry")  # fails if something lies above it
        page.wait_for_function("(text) => document.querySelector('#caption').textContent === text", arg=title)
        page.wait_for_function("(text) => document.querySelector('#prompt').value === text", arg=title)
        assert sideways(page) == [[], 0]
        if entry in (0, 1):  # a clip, and a job that was cancelled
            check(page)

    page.click("#kinds >> text=Picture")
    page.select_option("#bundle", "emoji-teacher")
    page.click("#more summary") if page.is_hidden("#steps") else None
    page.click("#plan-words")
    page.fill("#negative", PROMPTS[0])
    page.fill("#prompt", "")
    page.focus("#prompt")
    page.keyboard.type("cat")
    page.wait_for_selector("#names li")
    page.keyboard.press("ArrowDown")
    check(page)  # suggestions, all options, the open plan
    page.keyboard.press("Escape")
    page.press("#history li >> nth=0 >> .remove", "Enter")
    check(page)  # the question before something is deleted


def test_a_server_that_is_gone_is_told_within_the_layout(page):
    page.route(SERVER, lambda route: route.abort())
    page.click("#history li >> nth=1 >> .entry")
    page.wait_for_selector("#gone:not([hidden])")
    check(page)
    page.unroute(SERVER)
    page.wait_for_selector("#gone", state="hidden")


def test_the_page_stands_in_the_middle(page):
    left, right, width = page.evaluate(
        """() => {
        const box = document.querySelector("main").getBoundingClientRect();
        return [box.left, document.documentElement.clientWidth - box.right, box.width];
    }"""
    )
    assert abs(left - right) <= 1
    assert width <= 1664


def test_the_fields_of_a_row_stand_on_one_line(page):
    tops = page.eval_on_selector_all("#bundle, #size", "(all) => all.map((one) => one.getBoundingClientRect().top)")
    assert max(tops) - min(tops) < 1


def test_the_door_is_accessible(browser, start, tmp_path):
    with start(tmp_path, "emoji", options=["--token", "secret"]) as (client, _):
        for width in (320, 1280):
            page = browser.new_page(viewport={"width": width, "height": 700})
            page.goto(str(client.base_url))
            page.wait_for_selector("#door[open]")
            check(page)
            page.close()


def test_a_drawn_picture_is_in_the_window_of_a_phone(browser, filled):
    options = {"viewport": {"width": 390, "height": 800}, "reduced_motion": "reduce"}
    with opened(browser, filled.base_url, **options) as page:
        page.fill("#prompt", "pizza")
        page.press("#prompt", "Enter")
        status(page, "done")
        top = page.evaluate("document.querySelector('#status').getBoundingClientRect().top")
        assert 0 <= top < 800

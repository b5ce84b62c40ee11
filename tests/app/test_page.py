"""The web page in a real browser: type, watch progress, cancel, play, without a mouse, on a phone, in the dark."""

import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

# What the page has shown, in order: a picture may be unfinished for a few milliseconds only
WATCH = """
window.seen = [];
addEventListener("DOMContentLoaded", () => {
    const told = () => {
        const [picture, film, status] = ["picture", "film", "status"].map((id) => document.getElementById(id));
        const now = [picture.hidden ? "" : picture.alt, film.hidden ? "" : "film", status.textContent].join("|");
        if (window.seen.at(-1) !== now) window.seen.push(now);
    };
    new MutationObserver(told).observe(document.body, {subtree: true, childList: true, attributes: true});
});
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt install chromium)")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield made
        made.close()


@pytest.fixture(scope="module")
def address(start, video_bundle, tmp_path_factory):
    with start(tmp_path_factory.mktemp("page"), "emoji", video_bundle) as (client, _):
        yield str(client.base_url)


@pytest.fixture
def page(browser, address):
    context = browser.new_context()
    made = context.new_page()
    faults = []
    made.on("pageerror", lambda error: faults.append(str(error)))
    made.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    made.add_init_script(WATCH)
    made.goto(address)
    made.wait_for_selector("#plan rect")
    yield made
    context.close()
    assert not faults


def test_a_typed_prompt_becomes_a_picture_step_by_step_and_then_a_video(page):
    page.fill("#prompt", "a red heart")
    page.click("#draw button.main")
    page.wait_for_selector("#picture[alt='a red heart']")
    page.wait_for_function("() => document.querySelector('#status').textContent === 'done'")
    seen = page.evaluate("window.seen")
    assert any(one.startswith("a red heart, unfinished|") for one in seen), seen
    assert page.evaluate("document.querySelector('#progress').value") == 1
    assert page.evaluate("document.querySelector('#picture').naturalWidth") == 128

    assert page.text_content("#plan-words").startswith("A picture: at most ")
    page.fill("#frames", "161")
    page.press("#frames", "Tab")
    page.wait_for_function(
        "() => document.querySelector('#plan-words').textContent.startsWith('A video of 161 frames: ')"
    )
    page.click("#animate button.main")
    page.wait_for_selector("#film:not([hidden])")
    playing = (
        "document.querySelector('#film').currentTime > 0 && document.querySelector('#status').textContent !== 'done'"
    )
    page.wait_for_function(f"() => {playing}", polling=20)  # the video plays before it is finished
    page.wait_for_function("() => document.querySelector('#status').textContent === 'done'")
    assert page.locator("#history li").count() >= 2


def test_a_running_job_is_cancelled_by_its_button(page):
    page.route(
        "**/v1/jobs",
        lambda route: (
            route.continue_(post_data={**route.request.post_data_json, "steps": 900})
            if route.request.method == "POST"
            else route.continue_()
        ),
    )
    page.click("#draw button.main")
    page.wait_for_function("() => document.querySelector('#progress').value > 0")
    page.click("#stop")
    page.wait_for_function("() => document.querySelector('#status').textContent === 'cancelled'")
    assert page.is_disabled("#stop")
    page.click("#again")  # which goes on with the same job
    page.wait_for_selector("#again", state="hidden")
    page.wait_for_function("() => document.querySelector('#progress').value > 0")
    page.click("#stop")
    page.wait_for_selector("#again:not([hidden])")


def test_the_keyboard_alone_draws_a_picture(page):
    page.focus("#prompt")
    page.keyboard.press("Control+A")
    page.keyboard.type("pizza")
    page.keyboard.press("Enter")
    page.wait_for_selector("#picture[alt='pizza']")
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert {"bundle", "size", "seed", "dice", "Draw"} <= reached


def test_the_plan_follows_what_is_asked_for(page):
    before = page.text_content("#plan-words")
    page.select_option("#size", "256x256")
    page.wait_for_function("text => document.querySelector('#plan-words').textContent !== text", arg=before)
    assert "MiB" in page.text_content("#plan-words")


def test_a_phone_shows_everything_without_scrolling_sideways(browser, address):
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.goto(address)
    page.wait_for_selector("#plan rect")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(browser, address, scheme):
    page = browser.new_page(color_scheme=scheme)
    page.goto(address)
    ratio = page.evaluate(
        """() => {
        const light = (text) => {
            const parts = text.match(/[0-9.]+/g).slice(0, 3).map((part) => part / 255)
                .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
            return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
        };
        const pairs = [["body", "body"], ["header p", "body"], ["button.main", "button.main"]];
        return Math.min(...pairs.map(([ink, ground]) => {
            const found = [[ink, "color"], [ground, "backgroundColor"]]
                .map(([name, key]) => light(getComputedStyle(document.querySelector(name))[key])).sort();
            return (Math.max(...found) + 0.05) / (Math.min(...found) + 0.05);
        }));
    }"""
    )
    assert ratio >= 4.5  # WCAG 2.2, 1.4.3
    page.close()


def test_a_server_with_a_token_asks_for_it(browser, start, tmp_path):
    with start(tmp_path, "emoji", options=["--token", "secret"]) as (client, _):
        page = browser.new_page()
        page.goto(str(client.base_url))
        page.wait_for_selector("#door[open]")
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.querySelector('#door-words').textContent !== ''")
        page.fill("#token", "secret")
        page.keyboard.press("Enter")
        page.wait_for_selector("#plan rect")
        page.close()

"""The web page in a real browser: type, watch progress, cancel, play, without a mouse."""

import re

import pytest

from support.browser import CHROMIUM, opened, picture_of, status

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt install chromium)")


def draw(page, prompt):
    shown = "sessionStorage.getItem('segue-shown')"
    before = page.evaluate(shown)
    page.fill("#prompt", prompt)
    page.press("#prompt", "Enter")
    page.wait_for_function(f"(before) => {shown} !== before", arg=before)
    status(page, "done")


def test_a_typed_prompt_becomes_a_picture_step_by_step_and_then_a_video(page):
    draw(page, "a red heart")
    assert page.get_attribute("#picture", "alt") == "a red heart"
    seen = page.evaluate("window.seen")
    assert any(one.startswith("a red heart, unfinished|") for one in seen), seen
    assert any(one.endswith("step 2 of 4") for one in seen), seen
    assert page.evaluate("document.querySelector('#picture').naturalWidth") == 128

    page.click("#animate")
    assert page.input_value("#prompt") == "a red heart"
    page.wait_for_selector("#source-picture:not([hidden])")
    page.fill("#frames", "5")
    page.click("#go")
    page.wait_for_selector("#film:not([hidden])")
    status(page, "done")
    assert page.evaluate("document.querySelector('#film').loop")
    assert "5 frames" in page.text_content("#facts")
    assert page.locator("#history li").count() == 2


def test_a_video_plays_before_it_is_finished_and_then_goes_on(browser, start, video_bundle, tmp_path):
    film = "document.querySelector('#film')"
    with start(tmp_path, video_bundle) as (client, _), opened(browser, client.base_url) as page:
        assert page.is_hidden("#kinds")  # there is nothing to choose
        page.set_input_files("#upload", {"name": "mine.png", "mimeType": "image/png", "buffer": picture_of("teal")})
        page.wait_for_selector("#source-picture:not([hidden])")
        page.fill("#frames", "161")
        page.click("#go")
        page.wait_for_function(
            f"() => {film}.currentTime > 0 && document.querySelector('#status').textContent !== 'done'", polling=20
        )
        at = page.evaluate(f"{film}.currentTime")
        status(page, "done")
        page.wait_for_function(f"(at) => {film}.currentTime > at && {film}.src.endsWith('video.mp4')", arg=at)


def test_a_running_job_is_cancelled_by_its_button_and_goes_on_with_the_other(page):
    page.fill("#prompt", "a red heart")
    page.press("#prompt", "Tab")
    page.click("#more summary")
    page.fill("#steps", "900")
    page.click("#go")
    page.wait_for_function("() => document.querySelector('#progress').value > 0")
    page.focus("#stop")
    page.keyboard.press("Enter")
    status(page, "cancelled")
    assert page.is_disabled("#stop")
    assert page.evaluate("document.activeElement.id") == "go"  # the focus is not lost with the button
    page.click("#again")
    page.wait_for_selector("#again", state="hidden")
    page.wait_for_function("() => document.querySelector('#progress').value > 0")
    page.click("#stop")
    page.wait_for_selector("#again:not([hidden])")


def test_the_keyboard_alone_draws_a_picture_and_reaches_everything(page):
    page.focus("#prompt")
    page.keyboard.type("pizza")
    page.keyboard.press("Enter")
    status(page, "done")
    assert page.get_attribute("#picture", "alt") == "pizza"
    reached = set()
    for _ in range(28):
        page.keyboard.press("Tab")
        outlined = page.evaluate(
            """() => {
            const one = document.activeElement;
            const style = getComputedStyle(one.id === "upload" ? one.nextElementSibling : one);
            return [one.id || one.className, style.outlineStyle !== "none" || one.type === "radio"];
        }"""
        )
        reached.add(outlined[0])
        assert outlined[1] or outlined[0] == "", outlined
    assert {
        "theme", "upload", "bundle", "size", "count", "seed", "dice", "go", "download", "animate", "change", "keep",
        "delete", "entry", "remove",
    } <= reached  # fmt: skip


def test_names_are_suggested_while_one_types_and_chosen_with_the_keyboard(page):
    page.focus("#prompt")
    page.keyboard.type("pizz")
    page.wait_for_selector("#names li")
    assert page.get_attribute("#prompt", "aria-expanded") == "true"
    page.keyboard.press("ArrowDown")
    marked = page.get_attribute("#prompt", "aria-activedescendant")
    assert page.get_attribute(f"#{marked}", "aria-selected") == "true"
    assert page.text_content(f"#{marked}") == "pizza"
    page.keyboard.press("Enter")  # which takes the name and does not yet draw
    assert page.input_value("#prompt") == "pizza"
    assert page.is_hidden("#names")
    assert page.is_hidden("#about")

    page.keyboard.type(", no")
    page.wait_for_selector("#names li >> text=noto")
    page.click("#names li >> text=noto")
    assert page.input_value("#prompt") == "pizza, noto"
    page.keyboard.press("Control+A")
    page.keyboard.type("roc")
    page.wait_for_selector("#names li")
    page.keyboard.press("Escape")
    assert page.is_hidden("#names")
    assert page.input_value("#prompt") == "roc"


def test_the_empty_page_says_what_to_do_and_draws_an_example(page, site):
    assert page.is_visible("#empty-title")
    page.wait_for_selector("#examples button")
    example = page.text_content("#examples button")
    names = site.get("/v1/prompts", params={"bundle": "emoji", "query": "", "limit": 50}).json()["names"]
    assert example in names
    page.click("#examples button")
    status(page, "done")
    assert page.input_value("#prompt") == example
    assert page.is_hidden("#empty")


def test_what_is_probably_not_as_intended_is_said_beside_the_picture(page):
    draw(page, "quarterly revenue spreadsheet")
    assert "name" in page.text_content("#warnings li")
    draw(page, "pizza")
    assert page.locator("#warnings li").count() == 0


def test_without_a_seed_each_picture_is_another_one_and_its_seed_can_be_used_again(page):
    shown = []
    for _ in range(2):
        draw(page, "pizza")
        shown.append(re.search(r"seed (\d+)", page.text_content("#facts"))[1])
    assert shown[0] != shown[1]
    assert page.input_value("#seed") == ""
    page.click("#keep")
    assert page.input_value("#seed") == shown[1]
    draw(page, "pizza")
    assert f"seed {shown[1]}" in page.text_content("#facts")
    page.click("#dice")
    assert page.input_value("#seed") == ""


def test_only_what_the_model_can_do_is_offered(page, site):
    models = {model["id"]: model for model in site.get("/v1/models").json()["data"]}
    page.click("#more summary")
    for name in ("emoji", "emoji-teacher"):
        page.select_option("#bundle", name)
        offered = page.eval_on_selector_all("#size option", "(all) => all.map((one) => one.value)")
        assert offered == [f"{width}x{height}" for width, height in models[name]["sizes"]] == ["128x128"]
        assert page.is_visible("#guidance") == models[name]["guided"] == (name == "emoji-teacher")
        assert page.is_visible("#negative") == models[name]["negative"] == (name == "emoji-teacher")
        assert page.is_visible("#steps")
        assert page.is_hidden("#frames")
    page.click("#kinds >> text=Video")
    assert page.is_visible("#frames")
    for name in ("steps", "guidance", "count"):
        assert page.is_hidden(f"#{name}")


def test_several_pictures_of_a_job_are_shown_to_choose_one(page):
    page.fill("#count", "3")
    page.fill("#seed", "7")
    draw(page, "pizza")
    assert page.locator("#strip button").count() == 3
    assert page.get_attribute("#strip button >> nth=0", "aria-pressed") == "true"
    page.click("#strip button >> nth=1")
    assert page.get_attribute("#strip button >> nth=1", "aria-pressed") == "true"
    assert page.get_attribute("#picture", "src").endswith("picture-2.png")
    assert page.get_attribute("#download", "download") == "pizza-7-2.png"


def test_the_plan_is_one_quiet_line_that_opens_and_follows_the_form(page):
    before = page.text_content("#plan-words")
    assert re.fullmatch(r"the model takes at most [\d,]+ MiB, about [\d.]+ s", before)
    assert page.is_hidden("#phases")
    page.click("#plan-words")
    assert "transformer" in page.text_content("#phases")
    page.fill("#count", "16")
    page.wait_for_function("text => document.querySelector('#plan-words').textContent !== text", arg=before)


@pytest.mark.parametrize("system", ["light", "dark"])
def test_the_other_theme_is_kept_and_the_system_s_own_is_followed(browser, site, system):
    other = {"light": "dark", "dark": "light"}[system]
    ground = "getComputedStyle(document.body).backgroundColor"
    with opened(browser, site.base_url, color_scheme=system) as page:
        first = page.evaluate(ground)
        page.click("#theme")
        assert page.get_attribute("#theme", "aria-pressed") == str(other == "dark").lower()
        second = page.evaluate(ground)
        assert second != first
        page.reload()
        assert page.evaluate(ground) == second
        page.click("#theme")
        assert page.evaluate("localStorage.length") == 0
        page.emulate_media(color_scheme=other)
        assert page.evaluate(ground) == second


def test_a_browser_asks_whether_a_file_of_the_page_has_changed(site):
    first = site.get("/form.js")
    assert first.headers["cache-control"] == "no-cache"
    again = site.get("/form.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


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
        page.wait_for_selector("#plan-words:not(:empty)")
        draw(page, "pizza")
        page.close()

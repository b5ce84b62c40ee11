"""Chromium for the tests of the page: opened pages that report every fault of their console."""

import base64
import io
import shutil
from contextlib import contextmanager

from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
WIDTHS = (320, 390, 1280, 2560)
THEMES = ("light", "dark")

# What the page has shown, in order: a picture may be unfinished for a few milliseconds only
WATCH = """
window.seen = [];
addEventListener("DOMContentLoaded", () => {
    const told = () => {
        const [picture, film, status, steps] = ["picture", "film", "status", "steps-done"]
            .map((id) => document.getElementById(id));
        const now = [picture.hidden ? "" : picture.alt, film.hidden ? "" : "film", status.textContent,
            steps.textContent].join("|");
        if (window.seen.at(-1) !== now) window.seen.push(now);
    };
    new MutationObserver(told).observe(document.body, {subtree: true, childList: true, attributes: true});
});
"""

DROP = """([place, name, kind, data]) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const carried = new DataTransfer();
    carried.items.add(new File([bytes], name, {type: kind}));
    document.querySelector(place).dispatchEvent(
        new DragEvent("drop", {dataTransfer: carried, bubbles: true, cancelable: true}));
}"""


@contextmanager
def launched():
    """Yield Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield made
        made.close()


@contextmanager
def opened(browser, address, expected=(), **options):
    """Yield the page at an address in a new context, once it has begun; at its end, check that it had no faults.

    `expected`: parts of messages that the console may hold. `options` are those of a context.
    """
    context = browser.new_context(**options)
    page, faults = context.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type in ("error", "warning") else None)
    page.add_init_script(WATCH)
    page.goto(str(address))
    page.wait_for_selector("#plan-words:not(:empty)")
    try:
        yield page
    finally:
        context.close()
    assert [fault for fault in faults if not any(part in fault for part in expected)] == []


def picture_of(colour):
    """Return the bytes of a PNG file in one colour."""
    data = io.BytesIO()
    Image.new("RGB", (96, 80), colour).save(data, "PNG")
    return data.getvalue()


def drop(page, name, data, kind="image/png", place="#stage"):
    """Drop a file on an element of the page."""
    page.evaluate(DROP, [place, name, kind, base64.b64encode(data).decode()])


def status(page, words):
    """Wait until the page's status line says these words."""
    page.wait_for_function("(words) => document.querySelector('#status').textContent === words", arg=words)


def sideways(page):
    """Return what reaches over the right or left edge of the window, and how far the page scrolls sideways."""
    return page.evaluate(
        """() => {
        const [width, found] = [document.documentElement.clientWidth, []];
        for (const one of document.body.querySelectorAll("*")) {
            const box = one.getBoundingClientRect();
            const seen = box.width > 1 && one.checkVisibility() && !one.closest(".unseen");
            if (seen && (box.right > width + 1 || box.left < -1)) found.push(one.id || one.className || one.tagName);
        }
        return [found, document.documentElement.scrollWidth - width];
    }"""
    )


def faults_of(page):
    """Return what axe-core finds serious or critical: a rule and the elements, one string each."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {[node['target'] for node in one['nodes']]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]

"""Pictures of the web page for the docs, at four widths in two themes: docs/images/page-WIDTH-THEME.webp.

    python docs/hooks/page_pictures.py

It starts a server with the shipped bundles in a temporary directory. Chromium and the extra `dev` must be installed.
"""

import io
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

IMAGES = Path(__file__).parents[1] / "images"
SIZES = {320: 1150, 390: 1150, 1280: 840, 2560: 900}  # width of the window: its height
THEMES = ("light", "dark")
DRAWN = (
    {"prompt": "rocket", "seed": 3},
    {"prompt": "pizza", "seed": 7},
    {"prompt": "robot", "seed": 1},
    {"prompt": "sunflower", "seed": 2},
    {"prompt": "woman astronaut: medium skin tone", "seed": 0},
    {"prompt": "grinning cat", "seed": 5},
)
SHOWN = {"prompt": "a red heart", "seed": 7}


def finish(client: httpx.Client, body: dict) -> dict:
    """Submit a job; return it when it is over."""
    job = client.post("/v1/jobs", json=body).raise_for_status().json()
    with client.stream("GET", f"/v1/jobs/{job['id']}/events") as events:
        for _ in events.iter_lines():
            pass
    return client.get(f"/v1/jobs/{job['id']}").json()


def take(browser: Browser, address: str, width: int, theme: str) -> Path:
    """Write the picture of the page with its newest job; return the file."""
    context = browser.new_context(
        viewport={"width": width, "height": SIZES[width]}, color_scheme=theme, reduced_motion="reduce"
    )  # fmt: skip
    page = context.new_page()
    page.goto(address)
    page.click("#history .entry")
    page.wait_for_function("() => document.querySelector('#status').textContent === 'done'")
    page.wait_for_function("() => [...document.querySelectorAll('#history video')].every((one) => one.readyState > 1)")
    page.wait_for_selector("#plan-words:not(:empty)")
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    page.wait_for_timeout(500)  # for the first frames of the clips
    image = Image.open(io.BytesIO(page.screenshot()))
    context.close()
    path = IMAGES / f"page-{width}-{theme}.webp"
    image.convert("RGB").save(path, "WEBP", quality=82, method=6)
    return path


def main() -> None:
    """Write all pictures and print their bytes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "segue", "serve", "--data", folder, "--port", "0", "--json"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = json.loads(server.stdout.readline())["address"]
            with httpx.Client(base_url=address, timeout=300) as client:
                jobs = [finish(client, body) for body in DRAWN]
                clip = {"kind": "video", "image_job": jobs[-1]["id"], "prompt": "grinning cat", "frames": 17}
                finish(client, clip)
                finish(client, SHOWN)
            with sync_playwright() as playwright:
                program = shutil.which("chromium") or shutil.which("chromium-browser")
                browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
                paths = [take(browser, address, width, theme) for width in SIZES for theme in THEMES]
                browser.close()
        finally:
            server.kill()
            server.wait()
    for path in paths:
        print(f"{path.name}: {path.stat().st_size} bytes")
    print(f"together: {sum(path.stat().st_size for path in paths)} bytes")


if __name__ == "__main__":
    main()

"""The site: it builds, names what the program has, and asks no other host for anything."""

import functools
import http.server
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from shutil import which

import click
import pytest

import segue
from segue.cli import cli

ROOT = Path(__file__).parents[2]
LOADED = {"script": ("src",), "link": ("href",), "img": ("src", "srcset"), "source": ("src", "srcset"),
          "video": ("src", "poster"), "iframe": ("src",), "object": ("data",), "use": ("href",)}  # fmt: skip
FOREIGN = re.compile(r"(?:[a-z]+:)?//", re.IGNORECASE)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Directory of the built site."""
    made = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(made)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stdout + run.stderr
    return made


class Page(HTMLParser):
    """A page's text, its headings, and what a browser loads with it."""

    def __init__(self, path):
        super().__init__()
        self.loaded, self.texts, self.headings, self._in = [], [], [], []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        if not (tag == "link" and named.get("rel") in ("canonical", "prev", "next")):  # named, not loaded
            self.loaded += [named[key] for key in LOADED.get(tag, ()) if named.get(key)]
        self.loaded += re.findall(r"url\(['\"]?([^'\")]+)", named.get("style") or "")
        if re.fullmatch(r"h\d", tag):
            self.headings.append("")
        if tag not in ("br", "hr", "img", "input", "link", "meta", "source", "path", "use"):
            self._in.append(tag)

    def handle_endtag(self, tag):
        while self._in and self._in.pop() != tag:
            pass

    def handle_data(self, data):
        if {"script", "style"} & set(self._in):
            if "style" in self._in:
                self.loaded += re.findall(r"(?:url\(|@import\s*)['\"]?([^'\")]+)", data)
            return
        self.texts.append(data)
        if any(re.fullmatch(r"h\d", tag) for tag in self._in):
            self.headings[-1] += data

    @property
    def titles(self):
        return [" ".join(heading.split()).strip("¶ ") for heading in self.headings]

    @property
    def text(self):
        return " ".join("".join(self.texts).split())


def test_every_page_of_the_docs_is_in_the_site(site):
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    assert len(pages) > 25
    for page in pages:
        place = page.parent / "index.html" if page.stem == "index" else page.with_suffix("") / "index.html"
        assert (site / place).is_file(), place
    assert not (site / "hooks").exists()


def test_a_page_loads_nothing_from_another_host(site):
    wrong = []
    for path in site.rglob("*.html"):
        wrong += [f"{path.relative_to(site)}: {what}" for what in Page(path).loaded if FOREIGN.match(what)]
    for path in site.rglob("*.css"):
        found = re.findall(r"(?:url\(|@import\s*)['\"]?([^'\");]+)", path.read_text("utf-8"))
        wrong += [f"{path.relative_to(site)}: {what}" for what in found if FOREIGN.match(what)]
    assert not wrong


def test_a_resource_of_another_host_would_be_found(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        '<link rel="stylesheet" href="//fonts.example/a.css"><script src="https://cdn.example/a.js"></script>'
        '<style>@import "https://css.example/b.css"; p { background: url(http://img.example/c.png) }</style>'
        '<img src="../d.png" style="background: url(\'https://style.example/e.png\')">'
    )
    loaded = Page(page).loaded
    assert [what for what in loaded if FOREIGN.match(what)] == [
        "//fonts.example/a.css", "https://cdn.example/a.js", "https://css.example/b.css", "http://img.example/c.png",
        "https://style.example/e.png",
    ]  # fmt: skip
    assert "../d.png" in loaded


def test_the_reference_heads_every_public_name_as_a_program_writes_it(site):
    headings = [title.split()[0] for title in Page(site / "reference/index.html").titles]  # then: "dataclass"
    named = [name for name in ("open", *segue.__all__) if name != "__version__"]
    assert [name for name in named if f"segue.{name}" not in headings] == []
    assert not [heading for heading in headings if heading.startswith("segue.runtime")]


def test_the_reference_shows_what_open_takes(site):
    text = Page(site / "reference/index.html").text
    assert re.search(r"segue\.open ¶ open ?\( ?name_or_path: str", text), text[:2000]
    assert "budget: int | str | None = None" in text


def walk(group, context):
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        with click.Context(command, info_name=name, parent=context) as own:
            yield command, own
            if isinstance(command, click.Group):
                yield from walk(command, own)


def test_the_page_of_commands_has_every_command_option_and_example(site):
    page = Page(site / "commands/index.html")
    headings = page.titles
    missing, shown = [], 0
    with click.Context(cli, info_name="segue") as context:
        for command, own in walk(cli, context):
            if command.hidden:
                continue
            shown += 1
            missing += [own.command_path] if own.command_path not in headings else []
            for param in command.params:
                if getattr(param, "hidden", False):
                    continue
                names = [param.name.upper()] if isinstance(param, click.Argument) else param.opts + param.secondary_opts
                missing += [f"{own.command_path} {name}" for name in names if name.upper() not in page.text.upper()]
            examples = [line.strip() for line in (command.help or "").splitlines() if line.strip().startswith("segue ")]
            missing += [line for line in examples if " ".join(line.split()) not in page.text]
    assert shown > 20
    assert missing == []
    assert "the budget is too small" in page.text
    assert "\b" not in page.text


def test_the_hidden_stays_hidden():
    commands = load_hook("commands")
    options = [click.Option(["--old"], hidden=True), click.Option(["--new"], help="a|b")]
    seen, gone = click.Command("seen", help="Draw <b>.", params=options), click.Command("gone", hidden=True)
    group = click.Group("segue", commands={"seen": seen, "gone": gone})
    with click.Context(group, info_name="segue") as context:
        text = "\n".join(commands.sections(group, context))
    assert "## segue seen" in text
    assert r"Draw \<b\>." in text
    assert "| `--new TEXT` | a&#124;b |" in text
    assert "--old" not in text
    assert "gone" not in text


def load_hook(name):
    spec = importlib.util.spec_from_file_location(f"hook_{name}", ROOT / f"docs/hooks/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("origin", "page"),
    [
        ("https://git.example.org/team/segue.git\n", "https://git.example.org/team/segue"),
        ("https://me:secret@git.example.org/team/segue", "https://git.example.org/team/segue"),
        ("git@git.example.org:team/segue.git", "https://git.example.org/team/segue"),
        ("ssh://git@git.example.org/team/segue/", "https://git.example.org/team/segue"),
        ("/srv/git/segue", None), ("file:///srv/git/segue", None), ("", None),
    ],
)  # fmt: skip
def test_the_repository_is_the_origin_of_the_clone_without_credentials(origin, page):
    assert load_hook("package").page_of(origin) == page


def test_the_start_page_shows_a_picture(site):
    loaded = Page(site / "index.html").loaded
    assert "images/emoji-prompts.png" in loaded
    assert (site / "images/emoji-prompts.png").stat().st_size > 10_000


def test_code_is_highlighted_when_the_site_is_built(site):
    embed = (site / "guide/embed/index.html").read_text()
    assert '<span class="kn">import</span>' in embed
    assert "highlight.js" not in embed
    assert '<span class="s2">"a red heart"</span>' in (site / "guide/first-picture/index.html").read_text()


def test_the_search_finds_words_of_the_pages(site):
    index = json.loads((site / "search/search_index.json").read_text())
    texts = {entry["location"]: entry["text"] for entry in index["docs"]}
    assert len(texts) > 150
    assert any("SEGUE_DEBUG" in text for text in texts.values())


@pytest.fixture
def served(site):
    """Address of the built site on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_browser_that_reads_and_searches_asks_only_this_host_in_light_and_dark(served):
    playwright = pytest.importorskip("playwright.sync_api")
    path = which("chromium") or which("chromium-browser") or which("google-chrome")
    if path is None:
        pytest.skip("no Chromium")
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(color_scheme="light")
        asked, failed = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(f"{served}/guide/embed/")
        light = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.emulate_media(color_scheme="dark")
        page.wait_for_selector("body[data-md-color-scheme=slate]")
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.locator(".md-search__input").first.click()
        page.keyboard.type("smallest budget")
        page.wait_for_selector(".md-search-result__item")
        found = page.locator(".md-search-result__item").first.inner_text()
        page.set_viewport_size({"width": 320, "height": 640})
        page.goto(f"{served}/reference/")
        wide = page.evaluate("document.documentElement.scrollWidth")
        browser.close()
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith(served) and not url.startswith(("data:", "blob:"))] == []
    assert failed == []
    assert light == "rgb(255, 255, 255)"
    assert sum(map(int, re.findall(r"\d+", dark)[:3])) < 200
    assert "budget" in found.lower()
    assert wide <= 320

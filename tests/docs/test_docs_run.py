"""The code of the documents runs as it is written: page by page, in the order in which it stands there."""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from segue.export.checkpoint.read import Settings
from segue.runtime.media.png import write_png
from support import hub
from support.single_files import write_single, write_variant
from support.traces import write_command

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "examples/desktop/README.md"]
STUDENT = "byliutao/stable-diffusion-3-medium-turbo"
CODE = re.compile(r"^```(python|sh)\n(.*?)^```$|((?:^    [^\n]*\n)+)", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(segue|pip|python|pytest|torchrun|pyinstaller|dist/segue-desktop) ?")
ELSEWHERE = {  # what no test can run on two cores within minutes, and where it is run instead
    r"pip install .*|pytest.*": "the environment of the tests; .ci/run runs README's two lines in new ones",
    r"segue data .*": "fetches gigabytes: tests/training/data, tests/training/metrics",
    r"segue train (?!.*--dry-run).*|torchrun .*": "hours: tests/training trains small recipes",
    r"segue (encode|pairs) .*": "half an hour: tests/training/cdm/data",
    r"segue eval .*": "half an hour, and wants `segue data metrics`: tests/training/evaluation",
    r"segue compare .*": "wants `segue data metrics`: tests/runtime/diagnostics/test_compare.py",
    r"python benchmarks/.*": "hours",
    r"python tests/.*": "prints figures that tests/runtime/sampling bounds",
    r"segue import .*|segue render ./mine .*": "want a graph of your own: tests/export/test_own_graph.py",
    r"segue (export|render|plan) \S*(runs/|my-emoji).*": "what the training above gives",
    r"segue build .*--(sm|device) .*|.* --target tensorrt-rtx.*": "minutes: tests/engines/tensorrt/test_build.py",
    r".* --target ort-cuda|.* --kind fp8|.* --engines": "a GPU's: tests/export/quantize, tests/runtime/diagnostics",
    r"segue export .* --tiny-decoder .*": "wants a published decoder: tests/export/families/test_tiny_decoder.py",
    r"segue (export|animate) .*(Wan|wan).*": "want published weights: tests/export/families/wan, tests/runtime/videos",
    r"segue (export|animate) .*small-motion.*": "minutes: tests/bundles/test_stage_one.py",
    r"pyinstaller .*|dist/.*|python examples/desktop/.*": "tests/examples/test_desktop.py",
}


def code_of(page):
    """Yield (kind, text) of the code of a page: programs, shell blocks, and commands one by one."""
    for kind, fenced, indented in CODE.findall(page.read_text()):
        if fenced:
            yield kind, fenced
            continue
        lines = re.sub(r"\\\n +", "", indented).splitlines()
        for line in lines if COMMAND.match(lines[0].strip()) else []:
            for part in re.split(r" && |; ", re.sub(r"(^| +)# .*", "", line).strip()):
                yield "command", part


def elsewhere(command):
    return [pattern for pattern in ELSEWHERE if re.fullmatch(pattern, command)]


WITH_CODE = [page for page in PAGES if any(kind != "command" or not elsewhere(text) for kind, text in code_of(page))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_checkpoint):
    """A directory with what the pages' commands are given, and what they leave to one another."""
    made = tmp_path_factory.mktemp("pages")
    (made / "CHECKPOINT").symlink_to(tiny_checkpoint)
    write_single(tiny_checkpoint, made / "model.safetensors")
    write_variant(tiny_checkpoint, made / "published")
    module = "lora_unet_joint_blocks_0_x_block_attn_proj"
    halves = {f"{module}.lora_down.weight": np.ones((2, 32)), f"{module}.lora_up.weight": np.ones((32, 2))}
    save_file({name: value.astype(np.float32) for name, value in halves.items()}, made / "style.safetensors")
    (made / "jobs.jsonl").write_text('{"id": "pizza", "prompt": "pizza", "size": "96x64"}\n')
    write_png(made / "picture.png", np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8), {})
    return made


@pytest.fixture(scope="module")
def command(tmp_path_factory, request):
    """A directory with the command `segue`, whose exports take the traces that other tests have made."""
    made = tmp_path_factory.mktemp("bin")
    write_command(request.config, made)
    return made


@pytest.fixture(scope="module")
def student_hub(tmp_path_factory):
    """Environment in which hf: finds a tiny checkpoint with the layout of the model that the recipe names."""
    made = tmp_path_factory.mktemp("hub")
    with hub.hub(STUDENT, hub.build_student(made / "student")) as address:
        yield {"HF_ENDPOINT": address, "HF_HOME": str(made / "home"), "HF_HUB_DISABLE_XET": "1"}


@pytest.fixture(scope="module")
def done():
    """The commands that a page has run; another page that gives them relies on what they left."""
    return set()


LONG = ("docs/guide/first-picture.md", "docs/guide/memory.md", "docs/guide/train.md")


def is_slow(page):
    """Return whether the page's commands take long, make a bundle, or use one that another page made."""
    return str(page.relative_to(ROOT)) in LONG or any(
        re.search("my-bundle|segue quantize|segue export hf:", text) for _, text in code_of(page)
    )


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=str(page.relative_to(ROOT)), marks=[pytest.mark.slow] if is_slow(page) else [])
        for page in WITH_CODE
    ],
)
def test_the_code_of_a_page_runs(page, folder, command, done, monkeypatch, request):
    monkeypatch.setenv("PATH", f"{command}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))  # not the user's
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / "data"))
    if any(f"hf:{STUDENT}" in text for _, text in code_of(page)):
        for name, value in request.getfixturevalue("student_hub").items():
            monkeypatch.setenv(name, value)
    server, port = None, None
    try:
        for kind, text in code_of(page):
            if kind == "command" and (elsewhere(text) or text in done):
                continue
            if text == "segue serve":
                serve = [sys.executable, "-m", "segue", "serve", "--port", "0", "--json"]
                server = subprocess.Popen(serve, cwd=folder, stdout=subprocess.PIPE, text=True)
                (port,) = re.findall(r":(\d+)", server.stdout.readline())
                continue
            if port:
                text = text.replace("8421", port)  # which may be taken here
            how = [sys.executable, "-c"] if kind == "python" else ["bash", "-euc"]
            run = subprocess.run([*how, text], cwd=folder, capture_output=True, text=True, timeout=560)
            assert run.returncode == 0, f"{text}\n{run.stdout}{run.stderr}"
            done.add(text)
    finally:
        if server:
            server.kill()
            server.wait()


def test_every_line_that_is_run_elsewhere_is_in_a_page():
    found = {
        pattern for page in PAGES for kind, text in code_of(page) if kind == "command" for pattern in elsewhere(text)
    }
    assert found == set(ELSEWHERE)


def test_the_settings_that_the_page_on_export_shows_are_the_defaults():
    (shown,) = re.findall(
        r"^    ({\"t5_tokens.*?}})$", (ROOT / "docs/guide/export.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert json.loads(shown) == json.loads(json.dumps(asdict(Settings())))

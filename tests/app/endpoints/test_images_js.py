"""OpenAI's image endpoint, driven by OpenAI's JavaScript client in Node.js."""

import base64
import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import segue
from support.input_pictures import drawing, hole, png, with_hole

IMAGE, MASK = drawing(), hole()
VERSION = "7.55.0"
INTEGRITY = "sha512-0r4snVSRN46m4wL2vXCW5Xw6CKGPbdNI8t79KZOpe8GKKPmhL8peDXN8YOY/2ipsOVWSfsP/vgkLjTmWB+kMug=="
NODE = 20  # the oldest version that runs this client
PACKAGE = {"name": "tests", "dependencies": {"openai": VERSION}}
LOCK = {
    "name": "tests", "lockfileVersion": 3, "requires": True,
    "packages": {
        "": PACKAGE,
        "node_modules/openai": {
            "version": VERSION, "integrity": INTEGRITY,
            "resolved": f"https://registry.npmjs.org/openai/-/openai-{VERSION}.tgz",
        },
    },
}  # fmt: skip
SCRIPT = Path(__file__).with_name("openai_sdk.mjs")


@pytest.fixture(scope="module")
def folder(request):
    """Directory with the client, fetched once and kept in pytest's cache."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Node.js is not installed (Debian: apt install nodejs npm)")
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(node.removeprefix("v").partition(".")[0]) < NODE:
        pytest.skip(f"OpenAI's client needs Node.js {NODE}, and this is {node}")
    kept = Path(request.config.cache.mkdir(f"openai-js-{VERSION}"))
    if not (kept / "whole").exists():
        (kept / "package.json").write_text(json.dumps(PACKAGE))
        (kept / "package-lock.json").write_text(json.dumps(LOCK))
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        try:
            found = subprocess.run(command, cwd=kept, capture_output=True, text=True, timeout=120)
        except subprocess.TimeoutExpired:
            pytest.skip("the registry of npm does not answer")
        if found.returncode:
            pytest.skip(f"npm cannot fetch OpenAI's client: {found.stderr[-200:]}")
        (kept / "whole").touch()
    return kept


@pytest.fixture(scope="module")
def told(folder, start, tmp_path_factory):
    """What the script prints."""
    with start(tmp_path_factory.mktemp("js"), "emoji") as (client, _):
        given = tmp_path_factory.mktemp("given")
        for name, pixels in {"image": IMAGE, "mask": with_hole(IMAGE, MASK)}.items():
            (given / f"{name}.png").write_bytes(png(pixels))
        files = [str(given / "image.png"), str(given / "mask.png")]
        command = ["node", "--input-type=module", "-", f"{client.base_url}/v1", *files]
        found = subprocess.run(command, cwd=folder, input=SCRIPT.read_text("utf-8"), capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def opened(image):
    return Image.open(io.BytesIO(base64.b64decode(image)))


def test_models_are_listed_and_retrieved(told):
    assert (told["listed"], told["retrieved"]) == (["emoji"], "emoji")


def test_pictures_are_those_that_the_model_draws(told):
    with segue.open("emoji") as model:
        expected = model.generate("a red heart", seed=7, count=2)
    drawn = [np.asarray(opened(one["b64_json"]).convert("RGB")) for one in told["pictures"]["data"]]
    assert np.array_equal(np.stack(drawn), expected)
    assert (told["pictures"]["seed"], told["pictures"]["warnings"]) == (7, [])


def test_the_client_parses_the_stream(told):
    *partial, whole = told["events"]
    assert [(event["type"], event["index"]) for event in partial] == [
        ("image_generation.partial_image", 0),
        ("image_generation.partial_image", 1),
    ]
    assert (whole["type"], whole["usage"]["total_tokens"]) == ("image_generation.completed", 0)
    assert whole["image"] == told["formats"]["png"]
    assert [opened(event["image"]).size for event in partial] == [(128, 128)] * 2


def test_a_picture_is_changed_behind_a_mask(told):
    with segue.open("emoji") as model:
        expected = model.generate("a red heart", seed=7, image=IMAGE, mask=MASK, feather=2)
    (drawn,) = told["edited"]["data"]
    assert np.array_equal(np.asarray(opened(drawn["b64_json"]).convert("RGB")), expected)
    assert [event["type"] for event in told["edits"]] == ["image_edit.partial_image", "image_edit.completed"]
    assert told["edits"][-1]["image"] == drawn["b64_json"]


def test_each_format_is_given(told):
    assert {name: opened(image).format.lower() for name, image in told["formats"].items()} == {
        "png": "png", "jpeg": "jpeg", "webp": "webp",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("param", "kind", "status", "code"),
    [
        ("style", "BadRequestError", 400, "unsupported_parameter"),
        ("n", "BadRequestError", 400, "invalid_value"),
        ("background", "BadRequestError", 400, "unsupported_value"),
        ("model", "NotFoundError", 404, "model_not_found"),
    ],
)
def test_refusals_have_the_client_s_own_errors(told, param, kind, status, code):
    found = told["refusals"][param]
    assert (found["kind"], found["status"], found["param"], found["code"]) == (kind, status, param, code)
    assert found["type"] == "invalid_request_error"
    assert param in found["message"]

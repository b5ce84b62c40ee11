"""`segue animate` with bundles of one stage: a kill in the middle, a last picture, and text without a picture."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from segue.runtime.media.provenance import read_file


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    rows, columns = np.mgrid[:100, :80]
    Image.fromarray(np.stack([2 * rows, 3 * columns, rows + columns], -1).astype(np.uint8)).save(path)
    return path


def command(*arguments):
    return [sys.executable, "-m", "segue.cli", "animate", *map(str, arguments), "--threads", "1"]


def run(*arguments, code=0):
    done = subprocess.run(command(*arguments), capture_output=True, timeout=300)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
    return done


def killed(*arguments, frames):
    """Kill the command after so many frames."""
    process = subprocess.Popen([*command(*arguments), "--json"], stdout=subprocess.PIPE)
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "frames" and event["done"] >= frames:
            break
    process.kill()
    process.communicate()


@pytest.mark.parametrize("frames", [1, 13])
def test_a_killed_video_goes_on_and_is_the_same_to_the_byte(wan_i2v_bundle, picture, tmp_path, frames):
    wanted = (wan_i2v_bundle, picture, "--last", picture, "--frames", 25, "--prompt", "dog", "--seed", 5)
    run(*wanted, "-o", tmp_path / "whole.mp4")
    out = tmp_path / "out.mp4"
    killed(*wanted, "-o", out, frames=frames)
    assert not out.exists()
    assert (tmp_path / ".out.mp4.journal/done.jsonl").read_text().count("motion-") >= 1
    done = run(*wanted, "-o", out)
    assert b"Continuing an earlier run" in done.stderr
    assert out.read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert not (tmp_path / ".out.mp4.journal").exists()
    assert read_file(out)["metadata"]["last_sha256"] == read_file(out)["metadata"]["image_sha256"]


def test_another_last_picture_is_another_video(wan_i2v_bundle, picture, tmp_path):
    out = tmp_path / "out.mp4"
    killed(wan_i2v_bundle, picture, "--frames", 25, "--seed", 5, "-o", out, frames=5)
    done = run(wan_i2v_bundle, picture, "--last", picture, "--frames", 25, "--seed", 5, "-o", out, code=2)
    assert b"another last picture" in done.stderr


def test_a_text_alone_becomes_a_video_if_the_bundle_draws_from_text(wan_ti2v_bundle, picture, tmp_path):
    run(wan_ti2v_bundle, "-o", tmp_path / "out.mp4", "--prompt", "dog", "--frames", 5, "--seed", 1)
    metadata = read_file(tmp_path / "out.mp4")["metadata"]
    assert (metadata["prompt"], metadata["frames"], metadata["image_sha256"]) == ("dog", 5, None)
    done = run(wan_ti2v_bundle, picture, "--last", picture, "-o", tmp_path / "last.mp4", code=2)
    assert b"of family wan-ti2v takes no last picture" in done.stderr


def test_a_bundle_that_needs_a_picture_says_so(wan_i2v_bundle, tmp_path):
    done = run(wan_i2v_bundle, "-o", tmp_path / "out.mp4", "--prompt", "dog", code=2)
    assert b"PICTURE is missing. Write: segue animate" in done.stderr

"""`segue animate` as a program: files that grow, a kill in the middle, frames on standard output."""

import json
import signal
import subprocess
import sys

import av
import numpy as np
import pytest
from PIL import Image

HEIGHT, WIDTH = 128, 64


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    rows, columns = np.mgrid[:100, :80]
    Image.fromarray(np.stack([2 * rows, 3 * columns, rows + columns], -1).astype(np.uint8)).save(path)
    return path


def command(*arguments):
    return [sys.executable, "-m", "segue.cli", "animate", *map(str, arguments), "--threads", "1"]


def run(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, timeout=300)


def frames_of(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_a_picture_becomes_an_mp4_of_the_frames_that_were_asked_for(video_bundle, picture, tmp_path):
    out = tmp_path / "out.mp4"
    done = run(video_bundle, picture, "-o", out, "--frames", 7, "--prompt", "dog")
    assert done.returncode == 0, done.stderr
    assert b"Warning: the number of frames must be 4k + 1; 7 was rounded up to 9." in done.stderr
    assert b"9 frames in" in done.stdout
    frames = frames_of(out)
    assert len(frames) == 9
    assert frames[0].shape == (HEIGHT, WIDTH, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_standard_output_carries_nothing_but_frames(video_bundle, picture, tmp_path):
    done = run(video_bundle, picture, "-o", "-", "--frames", 5)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) == 5 * HEIGHT * WIDTH * 3


def test_a_killed_animation_plays_so_far_and_goes_on_to_the_same_frames(video_bundle, picture, tmp_path):
    wanted = ("--frames", 33, "--seed", 5)
    whole = run(video_bundle, picture, "-o", "-", *wanted).stdout
    out = tmp_path / "out.mp4"
    process = subprocess.Popen(command(video_bundle, picture, "-o", out, *wanted, "--json"), stdout=subprocess.PIPE)
    for line in process.stdout:
        if json.loads(line)["event"] == "frames":
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    assert 0 < len(frames_of(tmp_path / "out.part.mp4")) < 33
    frames = tmp_path / "frames"
    (tmp_path / ".out.mp4.journal").rename(tmp_path / ".frames.journal")
    done = run(video_bundle, picture, "-o", frames, *wanted, "--resume")
    assert done.returncode == 0, done.stderr
    found = [np.asarray(Image.open(path)).tobytes() for path in sorted(frames.iterdir())]
    assert b"".join(found) == whole


def test_ctrl_c_says_how_to_go_on(video_bundle, picture, tmp_path):
    process = subprocess.Popen(
        command(video_bundle, picture, "-o", tmp_path / "out.mp4", "--frames", 129, "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a parent in the background ignores it
    )
    while json.loads(process.stdout.readline())["event"] != "frames":
        pass
    process.send_signal(signal.SIGINT)
    told, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert b"Stopped. Run the same command with --resume" in told.splitlines()[-1]
    assert (tmp_path / ".out.mp4.journal").is_dir()
    again = run(video_bundle, picture, "-o", tmp_path / "out.mp4", "--frames", 5)
    assert b"finished pieces of an earlier run are deleted. Use --resume to continue" in again.stderr


def test_a_video_that_is_done_is_not_gone_on_with(video_bundle, picture, tmp_path):
    wanted = (video_bundle, picture, "-o", tmp_path / "out.mp4", "--frames", 5)
    assert run(*wanted).returncode == 0
    done = run(*wanted, "--resume")
    assert done.returncode == 2
    assert b"Leave --resume out to make it again" in done.stderr


def test_a_directory_that_is_not_there_is_not_made(video_bundle, picture, tmp_path):
    done = run(video_bundle, picture, "-o", tmp_path / "nowhere/out.mp4", "--frames", 5)
    assert done.returncode == 6
    assert b"Make it first" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.png", "-o", "out.mp4"), b"missing.png cannot be read as a picture"),
        (("picture", "-o", "out.avi"), b"is not a video format"),
        (("picture", "-o", "-", "--resume"), b"Name a file"),
        (("picture", "-o", "out.mp4", "--resume"), b"no journal to resume"),
        (("picture", "-o", "out.mp4", "--size", "100"), b"multiples of 32"),
    ],
)
def test_what_cannot_be_animated_leaves_with_exit_code_2(video_bundle, picture, tmp_path, arguments, message):
    done = subprocess.run(
        command(video_bundle, *[picture if a == "picture" else a for a in arguments]),
        capture_output=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert b"Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []

"""`segue animate` as a program: files that grow, a kill in the middle, runs that go on, frames on standard output."""

import itertools
import json
import os
import signal
import subprocess
import sys

import av
import numpy as np
import pytest
from PIL import Image

from segue.runtime.media.provenance import read_file

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


def killed(*arguments):
    """Kill the command after its first frames."""
    process = subprocess.Popen([*command(*arguments), "--json"], stdout=subprocess.PIPE)
    for line in process.stdout:
        if json.loads(line)["event"] == "frames":
            break
    process.kill()
    process.communicate()


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
    killed(video_bundle, picture, "-o", out, *wanted)
    assert not out.exists()
    assert 0 < len(frames_of(tmp_path / "out.part.mp4")) < 33
    frames = tmp_path / "frames"
    (tmp_path / ".out.mp4.journal").rename(tmp_path / ".frames.journal")
    done = run(video_bundle, picture, "-o", frames, *wanted)
    assert done.returncode == 0, done.stderr
    assert b"Continuing an earlier run" in done.stderr
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
    assert b"Stopping after this step" in errors
    assert b"Stopped. Run the same command again to continue" in told.splitlines()[-1]
    assert (tmp_path / ".out.mp4.journal").is_dir()


def test_an_unfinished_video_of_other_arguments_is_kept_until_it_is_begun_anew(video_bundle, picture, tmp_path):
    out = tmp_path / "out.mp4"
    killed(video_bundle, picture, "-o", out, "--frames", 33, "--seed", 5)
    other = run(video_bundle, picture, "-o", out, "--frames", 33, "--seed", 6, "--prompt", "dog")
    assert other.returncode == 2
    assert b"has begun" in other.stderr
    assert b"with prompt '', not 'dog' and with seed 5, not 6." in other.stderr
    assert b"add --anew to start over" in other.stderr
    assert (tmp_path / ".out.mp4.journal/motion-0.npy").is_file()
    again = run(video_bundle, picture, "-o", out, "--frames", 5, "--seed", 6, "--anew")
    assert again.returncode == 0, again.stderr
    assert len(frames_of(out)) == 5


def test_a_video_without_a_seed_goes_on_with_the_seed_that_it_began_with(video_bundle, picture, tmp_path):
    out = tmp_path / "out.mp4"
    killed(video_bundle, picture, "-o", out, "--frames", 33)
    seed = json.loads((tmp_path / ".out.mp4.journal/job.json").read_text())["seed"]
    done = run(video_bundle, picture, "-o", out, "--frames", 33)
    assert done.returncode == 0, done.stderr
    assert read_file(out)["metadata"]["seed"] == seed
    assert f"The seed was {seed}.".encode() in done.stderr
    again = run(video_bundle, picture, "-o", out, "--frames", 33, "--json")
    assert json.loads(again.stdout.splitlines()[-1])["seed"] == seed


@pytest.mark.parametrize("options", [(), ("--no-metadata",)])
@pytest.mark.parametrize("name", ["out.mp4", "out.webp", "frames"])
def test_a_finished_video_is_told_and_left_alone(video_bundle, picture, tmp_path, name, options):
    wanted = (video_bundle, picture, "-o", tmp_path / name, "--frames", 5, *options)
    assert run(*wanted).returncode == 0
    made = sorted(tmp_path.rglob("*"))
    before = [path.stat().st_mtime_ns for path in made]
    for more in ((), ("--resume",)):
        done = run(*wanted, *more)
        assert done.returncode == 0, done.stderr
        assert b"is finished already: 5 frames, seed " in done.stdout
    assert sorted(tmp_path.rglob("*")) == made
    assert [path.stat().st_mtime_ns for path in made] == before


def test_other_arguments_or_anew_make_a_finished_video_again(video_bundle, picture, tmp_path, certificate):
    out = tmp_path / "out.mp4"
    wanted = (video_bundle, picture, "-o", out, "--frames", 5)
    assert run(*wanted, "--seed", 1).returncode == 0
    keys = ("--certificate", certificate.chain, "--key", certificate.key)
    for more, seed in (
        (("--seed", 2), 2),
        (("--seed", 2, "--fps", 5), 2),
        (("--seed", 2, "--anew"), 2),
        (("--seed", 2, *keys), 2),
    ):
        done = run(*wanted, *more)
        assert done.returncode == 0, done.stderr
        assert b"5 frames in" in done.stdout
        assert read_file(out)["metadata"]["seed"] == seed
    assert read_file(out)["metadata"]["fps"] != 5
    assert read_file(out)["signature"]["valid"]
    assert b"is finished already" in run(*wanted, "--seed", 2, *keys).stdout
    assert b"5 frames in" in run(*wanted, "--seed", 2).stdout  # without a signature it is another file
    out.write_bytes(b"something else")
    assert b"5 frames in" in run(*wanted, "--seed", 2).stdout


def test_a_record_of_another_file_is_no_record(video_bundle, picture, tmp_path):
    wanted = (video_bundle, picture, "-o", tmp_path / "out.webp", "--frames", 5, "--seed", 1)
    assert run(*wanted).returncode == 0
    assert (tmp_path / ".out.webp.made.json").is_file()
    (tmp_path / "out.webp").write_bytes(b"something else")
    assert b"5 frames in" in run(*wanted).stdout
    (tmp_path / ".out.webp.made.json").write_text("[]")
    assert b"5 frames in" in run(*wanted).stdout


def test_the_journal_of_a_video_that_was_finished_before_a_kill_is_removed(video_bundle, picture, tmp_path):
    out = tmp_path / "out.mp4"
    wanted = (video_bundle, picture, "-o", out, "--frames", 33, "--seed", 1)
    killed(*wanted)
    os.rename(tmp_path / ".out.mp4.journal", tmp_path / "kept")
    assert run(*wanted).returncode == 0
    os.rename(tmp_path / "kept", tmp_path / ".out.mp4.journal")
    assert b"is finished already" in run(*wanted).stdout
    assert {path.name for path in tmp_path.iterdir()} == {"out.mp4"}


def test_progress_tells_how_much_of_the_whole_video_is_done(video_bundle, picture, tmp_path):
    wanted = (video_bundle, picture, "-o", tmp_path / "out.mp4", "--frames", 33, "--seed", 1)
    done = run(*wanted, "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    shares = [event["share"] for event in events if event["event"] == "progress"]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert 0.9 < shares[-1] <= 1
    assert max(after - before for before, after in itertools.pairwise(shares)) < 0.3
    tasks = {event["task"] for event in events if event["event"] == "progress"}
    assert tasks == {f"window {w}: {stage}" for w in (0, 1) for stage in ("motion", "reference", "detail")} | {
        "window 0: text"
    }


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
        (("picture", "-o", "-", "--json"), b"Name a file"),
        (("-o", "out.mp4"), b"PICTURE is missing. Write: segue animate"),
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

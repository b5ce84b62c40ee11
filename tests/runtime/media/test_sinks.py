import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from segue.errors import OutputError, UsageError
from segue.runtime.media import sinks

HEIGHT, WIDTH, FPS = 48, 64, 12.0


def frames(count: int) -> np.ndarray:
    """Return frames whose brightness tells their number."""
    grey = np.linspace(30, 220, count).astype(np.uint8)
    return np.broadcast_to(grey[:, None, None, None], (count, HEIGHT, WIDTH, 3)).copy()


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def hand_over(place: Path, given: Sequence[np.ndarray] | np.ndarray, size: int = 4) -> None:
    with sinks.find_sink(place)(place, FPS, HEIGHT, WIDTH) as write:
        for start in range(0, len(given), size):
            write(np.stack(given[start : start + size]))


def test_an_mp4_holds_every_frame_at_its_rate_in_plain_h264(tmp_path: Path) -> None:
    given = frames(13)
    hand_over(tmp_path / "a.mp4", given)
    found = decoded(tmp_path / "a.mp4")
    assert found.shape == given.shape
    assert np.abs(found.astype(int) - given).max() <= 3
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == FPS
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_colours_come_back(tmp_path: Path) -> None:
    given = np.zeros((5, HEIGHT, WIDTH, 3), np.uint8)
    given[:, :, :32] = 200, 30, 40
    given[:, :, 32:] = 20, 60, 220
    hand_over(tmp_path / "a.mp4", given)
    found = decoded(tmp_path / "a.mp4")
    for x, colour in ((10, (200, 30, 40)), (54, (20, 60, 220))):
        assert np.abs(found[:, 24, x].astype(int) - colour).max() <= 4


def test_an_mp4_whose_writer_was_killed_plays_up_to_there(tmp_path: Path) -> None:
    program = f"""
import time
import numpy as np
from pathlib import Path
from segue.runtime.media.sinks import mp4
with mp4(Path({str(tmp_path / "a.mp4")!r}), {FPS}, {HEIGHT}, {WIDTH}) as write:
    for i in range(3):
        write(np.full((4, {HEIGHT}, {WIDTH}, 3), 60 * i + 60, np.uint8))
    print("there", flush=True)
    time.sleep(60)
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "there\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert os.listdir(tmp_path) == ["a.part.mp4"]
    found = decoded(tmp_path / "a.part.mp4")
    assert len(found) >= 11
    assert np.abs(found[8:, 24, 32, 0].astype(int) - 180).max() <= 3


def test_a_run_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("old")
    mixed = [*frames(6), np.zeros((2, 2, 3), np.uint8)]
    with pytest.raises(UsageError, match="2, 2, 3"):
        hand_over(tmp_path / "a.mp4", mixed, size=1)
    assert (tmp_path / "a.mp4").read_text() == "old"
    assert len(decoded(tmp_path / "a.part.mp4")) >= 5


def test_a_webp_repeats_and_holds_every_frame(tmp_path: Path) -> None:
    given = frames(9)
    hand_over(tmp_path / "a.webp", given)
    with Image.open(tmp_path / "a.webp") as picture:
        assert picture.n_frames == 9
        assert picture.info["loop"] == 0
        picture.seek(8)
        assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - given[8]).max() <= 6
    assert os.listdir(tmp_path) == ["a.webp"]


def test_png_files_are_the_frames_to_the_bit(tmp_path: Path) -> None:
    given = np.random.default_rng(0).integers(0, 256, (5, HEIGHT, WIDTH, 3), np.uint8)
    hand_over(tmp_path / "a", given)
    names = sorted(os.listdir(tmp_path / "a"))
    assert names == [f"frame-0000{i}.png" for i in range(1, 6)]
    assert all(np.array_equal(np.asarray(Image.open(tmp_path / "a" / n)), f) for n, f in zip(names, given, strict=True))
    with pytest.raises(OutputError, match="exists"):
        hand_over(tmp_path / "a", given)


def test_raw_frames_go_to_standard_output(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    given = frames(5)
    hand_over(Path("-"), given)
    assert capsysbinary.readouterr().out == given.tobytes()


def test_a_place_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.webp"):
        with pytest.raises(OutputError, match="cannot be written"):
            hand_over(tmp_path / "none" / name, frames(2))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("a.avi", frames(1), r"ends in \.avi"),
        ("a.mp4", frames(1)[:, :, :63], r"got uint8 \[1, 48, 63, 3\]"),
        ("a", frames(1).astype(np.float32), "got float32"),
    ],
)
def test_what_is_no_video_is_refused(tmp_path: Path, name: str, given: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        hand_over(tmp_path / name, given)


def test_h264_of_an_odd_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="even sizes, got 63 x 48"), sinks.mp4(tmp_path / "a.mp4", FPS, 48, 63):
        pass

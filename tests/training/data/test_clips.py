"""Clips from two little packages in place of the pinned ones."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segue.errors import TrainingError
from segue.training.data import clips
from segue.training.data.packages import Package

RED, CLEAR = (200, 0, 0, 255), (0, 0, 0, 0)


def animation(path: Path, count: int) -> None:
    """Write a square that moves to the right by ten pixels a frame."""
    frames = []
    for i in range(count):
        frame = Image.new("RGBA", (256, 256), CLEAR)
        frame.paste(RED, (10 * i, 100, 10 * i + 60, 160))
        frames.append(frame)
    path.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=42, loop=0, quality=100)


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    animation(tmp_path / "a/package/assets/1f600.webp", 9)
    animation(tmp_path / "a/package/assets/2764-fe0f.webp", 1)
    animation(tmp_path / "b/package/assets/1f98b.webp", 4)
    animation(tmp_path / "b/package/assets/1f9ff.webp", 4)
    names = {
        "1F600": ("grinning face", (), 0),
        "1F98B": ("butterfly", (), 3),
        "2764": ("red heart", (), 0),
    }
    folders = {"@lobehub/fluent-emoji-anim-1": "a", "@lobehub/fluent-emoji-anim-2": "b"}

    def fetch(package: Package, cache: Path) -> Path:
        return tmp_path / folders.get(package.name, "none")

    monkeypatch.setattr(clips, "fetch", fetch)
    monkeypatch.setattr(clips, "names_of", lambda package: names)
    told: list[int] = []
    assert clips.prepare(tmp_path / "out", tmp_path, told.append) == 2
    assert told == [1, 2]
    return tmp_path / "out"


def test_what_moves_and_has_a_name_is_kept_with_its_split(prepared: Path) -> None:
    found = clips.load(prepared)
    assert [(clip.name, clip.frames, clip.split) for clip in found] == [
        ("grinning face", 5, "train"),
        ("butterfly", 2, "held-out name"),
    ]


def test_frames_are_every_second_one_on_white_and_read_alone(prepared: Path) -> None:
    (face, _) = clips.load(prepared)
    whole = clips.read(prepared, face)
    assert whole.dtype == np.uint8
    assert whole.shape == (5, 128, 128, 3)
    for i, frame in enumerate(whole):
        assert np.abs(frame[65, 15 + 10 * i].astype(int) - [200, 0, 0]).max() < 8
        assert frame[10, 10].tolist() == [255, 255, 255]
    assert np.array_equal(clips.read(prepared, face, 1, 3), whole[1:3])


def test_a_directory_without_clips_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="segue data emoji-clips"):
        clips.load(tmp_path)

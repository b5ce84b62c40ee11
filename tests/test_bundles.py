"""The bundles that ship with the package."""

from pathlib import Path

import numpy as np
import pytest

import segue

MEGABYTE = 1_000_000
BUNDLES = Path(segue.__file__).parent / "bundles"


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_shipped_bundles_stay_small() -> None:
    assert sum(size(BUNDLES / name) for name in ("emoji", "emoji-teacher")) <= 150 * MEGABYTE
    assert size(BUNDLES) <= 210 * MEGABYTE  # of which emoji-motion 66


@pytest.mark.parametrize("name", ["emoji", "emoji-teacher", "emoji-motion"])
def test_a_shipped_bundle_passed_parity_and_bears_its_name(name: str) -> None:
    assert size(BUNDLES / name) <= 71 * MEGABYTE
    with segue.open(name) as model:
        manifest = model.bundle.manifest
    assert manifest.name == name
    assert {p.component for p in manifest.parity} == set(manifest.components)
    assert all(p.relative_l2 is not None and p.relative_l2 <= p.gate for p in manifest.parity)
    assert manifest.t5_tokens == 0


def test_the_student_draws_in_four_calls_and_its_teacher_in_28_with_guidance() -> None:
    with segue.open("emoji") as student, segue.open("emoji-teacher") as teacher:
        few, many = student.bundle.manifest.sampler, teacher.bundle.manifest.sampler
        seen: list[int] = []
        image = student.render(segue.Request("a red heart"), on_step=lambda done, total, _: seen.append(total)).images[
            0
        ]
    assert (few.steps, few.guidance, len(few.sigmas)) == (4, 1.0, 4)
    assert (many.steps, many.guidance) == (28, 3.0)
    assert seen == [4] * 4
    red, green, _ = image[48:80, 48:80].reshape(-1, 3).mean(0)
    assert red > 150
    assert green < 120


def test_the_video_bundle_moves_a_picture_for_a_window_and_hands_over_segments() -> None:
    image = np.full((128, 128, 3), 255, np.uint8)
    image[40:88, 40:88] = (250, 200, 40)
    with segue.open("emoji-motion") as model:
        parts = list(model.animate(image, "waving hand", seed=1))
    assert [len(part) for part in parts] == [13, 12, 8]  # the image, 3 + 3 + 2 latent frames
    frames = np.concatenate(parts).astype(int)
    assert frames.shape == (33, 128, 128, 3)
    assert np.abs(frames[0] - image).mean() < 12  # it begins with the picture
    assert np.abs(np.diff(frames, axis=0)).mean() > 0.05


def test_the_video_bundle_takes_a_photograph_at_another_size() -> None:
    from skimage.data import astronaut

    with segue.open("emoji-motion") as model:
        frames = np.concatenate(list(model.animate(astronaut(), "dog", frames=9, size=(128, 192))))
    assert frames.shape == (9, 128, 192, 3)


def test_the_shipped_bundles_tell_no_path_of_the_machine_that_made_them() -> None:
    texts = [path.read_text() for path in BUNDLES.rglob("*.json")]
    assert texts
    assert not any("_name_or_path" in text or "/root/" in text for text in texts)

from pathlib import Path

import torch

from segue.training.video.clips.dataset import Clips, pixels, scaled


def test_a_split_holds_its_clips_alone(clips: Path) -> None:
    assert [clip.name for clip in Clips(clips).rows] == ["red square", "green square"]
    assert [clip.name for clip in Clips(clips, ("held-out name",)).rows] == ["blue square"]


def test_a_clip_goes_on_with_its_beginning(clips: Path) -> None:
    found = Clips(clips)
    whole = found.take(0, 0, 7)
    looped = found.take(0, 5, 17)
    assert torch.equal(looped, torch.cat([whole[5:], whole, whole, whole[:1]]))
    assert torch.equal(found.take(0, 5 + 7, 3), looped[:3])


def test_frames_become_pixels_and_shrink_by_areas() -> None:
    frames = torch.randint(0, 256, (2, 5, 8, 8, 3), dtype=torch.uint8)
    video = pixels(frames)
    assert video.shape == (2, 3, 5, 8, 8)
    assert video[1, 2, 3, 4, 5] == frames[1, 3, 4, 5, 2] / 127.5 - 1
    small = scaled(video, 4)
    assert torch.allclose(small[0, 0, 0, 0, 0], video[0, 0, 0, :4, :4].mean())
    assert scaled(video, 1) is video

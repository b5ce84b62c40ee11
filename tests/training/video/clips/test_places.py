from pathlib import Path

import torch

from segue.training.video.clips.dataset import Clips, pixels
from segue.training.video.clips.places import places


def test_windows_are_spread_over_every_clip(clips: Path) -> None:
    found = Clips(clips)
    where = places(found, 2)
    assert where.clip.tolist() == [0, 0, 1, 1]
    assert where.start.tolist() == [0, 3, 0, 4]
    assert torch.equal(where.videos(found, torch.tensor([1]), 9), pixels(found.take(0, 3, 9)[None]))


def test_varied_windows_are_drawn_the_same_each_time(clips: Path) -> None:
    found = Clips(clips)
    once, again = places(found, 8, True), places(found, 8, True)
    assert len(once) == 16
    assert once.variations == again.variations
    assert torch.equal(once.start, again.start)
    assert len(set(once.variations)) == 16
    assert set(once.clip.tolist()) == {0, 1}
    chosen = torch.arange(16)
    assert torch.equal(once.videos(found, chosen, 5), again.videos(found, chosen, 5))
    assert torch.equal(once.videos(found, chosen, 5)[:, :, :1], once.images(found, chosen, 5))
    assert not torch.equal(once.videos(found, chosen, 5), places(found, 8).videos(found, chosen, 5))


def test_captions_are_names_or_now_and_then_nothing(clips: Path) -> None:
    found = Clips(clips)
    where = places(found, 50)
    chosen, generator = torch.arange(100), torch.Generator().manual_seed(0)
    captions = where.captions(found, chosen, 0.2, generator)
    assert 5 < captions.count("") < 40
    assert set(captions) == {"", "red square", "green square"}
    assert where.names(found, torch.tensor([0, 99])) == ["red square", "green square"]

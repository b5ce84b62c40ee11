from pathlib import Path

import torch

from segue.training.video.clips.dataset import Clips, pixels, scaled
from segue.training.video.clips.latents import FrozenCodec, cached_windows
from segue.training.video.clips.places import places


def test_latents_are_those_of_the_codec_and_kept(clips: Path, parts: Path, monkeypatch) -> None:
    found = Clips(clips)
    windows = cached_windows(found, parts, 9, 4, 2, False)
    images = cached_windows(found, parts, 9, 4, 2, False, image=True)
    assert windows.latents.shape == images.latents.shape == (4, 4, 3, 4, 4)
    codec = FrozenCodec(parts, torch.device("cpu"))
    video = scaled(pixels(found.take(1, 4, 9)[None]), 4)
    assert torch.allclose(windows.latents[3:].float(), codec.encode(video), atol=0.05)
    grey = torch.cat([video[:, :, :1], torch.zeros_like(video[:, :, 1:])], 2)
    assert torch.allclose(images.latents[3:].float(), codec.encode(grey), atol=0.05)
    monkeypatch.setattr(FrozenCodec, "encode", lambda *_: 1 / 0)
    again = cached_windows(found, parts, 9, 4, 2, False)
    assert torch.equal(again.latents, windows.latents)


def test_varied_windows_are_kept_beside_the_plain_ones(clips: Path, parts: Path) -> None:
    found = Clips(clips)
    plain, varied = (cached_windows(found, parts, 9, 4, 2, which) for which in (False, True))
    where = places(found, 2, True)
    codec = FrozenCodec(parts, torch.device("cpu"))
    video = scaled(where.videos(found, torch.tensor([3]), 9), 4)
    assert torch.allclose(varied.latents[3:].float(), codec.encode(video), atol=0.05)
    assert not torch.allclose(varied.latents.float(), plain.latents.float(), atol=0.05)


def test_the_image_latent_is_the_clips_first_one(clips: Path, parts: Path) -> None:
    windows, images = (cached_windows(Clips(clips), parts, 9, 4, 2, True, image=image) for image in (False, True))
    assert torch.allclose(windows.latents[:, :, 0].float(), images.latents[:, :, 0].float(), atol=0.02)


def test_what_is_decoded_has_the_size_of_the_video(parts: Path) -> None:
    codec = FrozenCodec(parts, torch.device("cpu"))
    assert codec.decode(torch.zeros(2, 4, 3, 4, 4)).shape == (2, 3, 9, 32, 32)

from pathlib import Path

import pytest
import torch

from segue.errors import TrainingError
from segue.training.video.clips.dataset import Clips, pixels, scaled
from segue.training.video.clips.latents import FrozenCodec, cached_windows
from segue.training.video.clips.references import MotionModel, ReferenceSpec, cached_references, low_resolution, spliced


@pytest.fixture
def video(clips: Path) -> torch.Tensor:
    found = Clips(clips)
    return pixels(torch.stack([found.take(i, 0, 17) for i in range(2)]))


def low(video: torch.Tensor, motion: Path, **spec) -> torch.Tensor:
    model = MotionModel(motion, 8, torch.device("cpu"))
    captions = ["red square", "green square"]
    made = ReferenceSpec(str(motion), **spec)
    return low_resolution(video, 4, captions, made, model, torch.Generator().manual_seed(0))


def test_each_kind_takes_the_clip_a_step_further_from_itself(video: torch.Tensor, motion: Path) -> None:
    resampled, autoencoded = low(video, motion, kind="resampled"), low(video, motion, kind="autoencoded")
    assert torch.equal(resampled, scaled(video, 4))
    codec = FrozenCodec(motion, torch.device("cpu"))
    assert torch.equal(autoencoded, codec.decode(codec.encode(scaled(video, 4))))
    gentle, rough = (low(video, motion, lowest=level, highest=level) for level in (0.01, 0.9))
    assert (gentle - autoencoded).norm() < (rough - autoencoded).norm()


def test_the_splice_puts_the_image_in_front_at_full_size(video: torch.Tensor, motion: Path) -> None:
    image = video[:, :, 0]
    made = spliced(low(video, motion, kind="resampled"), image)
    assert made.shape == video.shape
    assert torch.equal(made[:, :, 0], image)
    assert (made[:, :, 5] - video[:, :, 5]).abs().mean() < 0.05


def test_the_references_first_latent_frame_is_the_image_latent(clips: Path, motion: Path, detail_parts: Path) -> None:
    found = Clips(clips)
    reference = cached_references(found, detail_parts, 17, 4, 2, True, 8, ReferenceSpec(str(motion)), seed=0)
    windows = cached_windows(found, detail_parts, 17, 1, 2, True)
    assert reference.shape == windows.latents.shape == (4, 6, 5, 8, 8)
    assert torch.allclose(reference[:, :, 0].float(), windows.latents[:, :, 0].float(), atol=0.02)
    assert not torch.allclose(reference[:, :, 1:].float(), windows.latents[:, :, 1:].float(), atol=0.02)


def test_the_transition_is_stage_ones_own_euler_steps(motion: Path) -> None:
    model = MotionModel(motion, 8, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    latents, image = (torch.randn(2, 4, 3, 4, 4, generator=generator) for _ in range(2))
    levels = torch.tensor([[0.6, 0.4], [0.3, 0.2], [0.0, 0.0]])
    both = model.denoise(latents, image, ["red square", "blue square"], levels)
    alone = model.denoise(latents[1:], image[1:], ["blue square"], levels[:, 1:])
    assert torch.allclose(both[1:], alone, atol=0.02)
    guided = model.denoise(latents, image, ["red square", "blue square"], levels, guidance=3.0)
    assert not torch.allclose(guided, both, atol=1e-3)


@pytest.mark.parametrize("change", [{"kind": "none"}, {"lowest": 0.8}, {"lowest": 0.0}, {"highest": 1.5}, {"steps": 0}])
def test_a_reference_that_cannot_be_made_is_refused(change: dict) -> None:
    with pytest.raises(TrainingError, match="Correct the recipe"):
        ReferenceSpec("", **change)

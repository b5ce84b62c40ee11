"""The batch's windows beside the runtime's: one generation of clips, two programs."""

from functools import partial

import numpy as np
import pytest
import torch

from segue.runtime.bundle.segments import SegmentSpec, segment
from segue.runtime.sampling import csg
from segue.runtime.sampling.schedule import custom_schedule
from segue.training.video.windows import Window, generate, window

SCHEDULE = custom_schedule([1.0, 0.75, 0.5, 0.25], 5.0, 1000)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Net(torch.nn.Module):
    """Mixes channels, time, position and the mean of the whole window."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = torch.nn.Conv3d(4, 2, 1)

    def forward(self, latents: torch.Tensor, timesteps: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        told = (timesteps / 1000 + 0.01 * positions)[:, None, :, None, None]
        return self.mix(latents) * (1 + told) + latents.mean((1, 2, 3, 4), keepdim=True)


@pytest.mark.parametrize("spec", [SegmentSpec(), SegmentSpec(2, 3), SegmentSpec(3, 1, 1), SegmentSpec(8, 0)])
def test_a_batch_is_what_the_runtime_makes_of_each_clip(spec: SegmentSpec) -> None:
    net, latent = Net(), 9
    image, reference, noise = (
        normal(2, 2, 1, 3, 3),
        normal(2, 2, latent, 3, 3, seed=1),
        normal(2, 2, latent, 3, 3, seed=2),
    )

    def of_batch(seen: Window) -> torch.Tensor:
        return net(seen.latents, seen.timesteps, seen.positions)

    @torch.no_grad()
    def of_one(latents: np.ndarray, timesteps: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return net(*(torch.from_numpy(given) for given in (latents, timesteps, positions))).numpy()

    found = generate(of_batch, image, reference, noise, spec, SCHEDULE)
    assert torch.equal(found[:, :, :1], image)
    for row in range(2):
        expected = csg.generate(
            partial(csg.denoise, of_one, SCHEDULE),
            image[row].numpy(),
            lambda wanted, row=row: reference[row, :, list(wanted)].numpy(),
            lambda wanted, row=row: noise[row, :, list(wanted)].numpy(),
            latent,
            spec,
        )
        made = np.concatenate([targets for _, targets in expected], 1)
        assert np.allclose(found[row, :, 1:].numpy(), made, atol=1e-4)


def test_without_the_image_latent_a_window_begins_with_its_neighbours() -> None:
    part = segment(1, 9, SegmentSpec())
    clean, reference, noisy = normal(1, 2, 9, 3, 3), normal(1, 2, 9, 3, 3, seed=1), normal(1, 2, 3, 3, 3, seed=2)
    whole, without = (window(part, clean, noisy, reference, torch.tensor([0.5]), image) for image in (True, False))
    assert without.positions.tolist() == [[3, 4, 5, 6]]
    assert without.timesteps.tolist() == [[0, 500, 500, 500]]
    assert torch.equal(without.latents, whole.latents[:, :, 1:])
    assert torch.equal(without.latents[:, :2, without.noisy], noisy)

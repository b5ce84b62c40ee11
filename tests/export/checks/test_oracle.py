from pathlib import Path

import pytest

from segue.export.checks.oracle import Case, compare

PROMPTS = (
    "a red heart",
    "",
    "the hare heard a harp",
    "a very long prompt whose tail does not fit into the limit at all",
    "rose, noto",
    "Straße 7 ☂",
    "three hares; no harp!",
    "a",
)
SIZES = ((128, 128), (64, 96), (96, 64))


def cases() -> list[Case]:
    grids = ({"steps": 5}, {"sigmas": (1.0, 0.6, 0.2)})
    made = [Case(prompt, size, 5.0, **grid) for prompt in PROMPTS for size in SIZES for grid in grids]
    return [*made, Case("a red heart", (128, 128), 1.0, steps=3), Case("red", (128, 128), 3.0, 4, None, "a hare")]


def test_the_bundle_gives_what_diffusers_gives(exported: Path) -> None:
    for found in compare(exported, cases(), threads=1):
        assert found.latents <= 1e-4, found
        assert found.psnr >= 60, found


def test_an_fp16_bundle_gives_nearly_what_diffusers_gives_in_fp32(half: Path) -> None:
    for found in compare(half, cases(), threads=1):
        assert found.psnr >= 35, found


def test_the_oracle_sees_a_difference(exported: Path) -> None:
    """A check that cannot fail is none: other noise levels than the ones asked for must show."""
    from segue.runtime.sampling import schedule as sampler

    right = sampler.default_schedule
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "default_schedule", lambda steps, shift, train: right(steps, shift * 1.01, train))
        (found,) = compare(exported, [Case("a red heart", (128, 128), 5.0, steps=5)], threads=1)
    assert found.latents > 1e-4

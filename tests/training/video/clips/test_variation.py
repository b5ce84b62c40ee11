import math

import torch

from segue.training.video.clips import variation
from segue.training.video.clips.variation import Variation


def frames() -> torch.Tensor:
    """Return four frames of a red square left of the middle that goes down, on white."""
    made = torch.full((4, 32, 32, 3), 255, dtype=torch.uint8)
    for i in range(4):
        made[i, 4 + 4 * i : 12 + 4 * i, 4:12, 1:] = 0
    return made


def test_nothing_is_changed_by_the_plain_variation() -> None:
    given = frames()
    assert variation.apply(Variation(), given) is given


def test_each_change_does_what_it_says() -> None:
    given = frames()
    assert torch.equal(variation.apply(Variation(mirrored=True), given), given.flip(2))
    assert torch.equal(variation.apply(Variation(backwards=True), given), given.flip(0))
    assert torch.equal(variation.apply(Variation(colours=(1, 0, 2)), given)[..., 0], given[..., 1])
    moved = variation.apply(Variation(right=0.25, down=0.125), given)
    assert torch.equal(moved[0, 6:14, 8:16], given[0, 4:12, 4:12])
    turned = variation.apply(Variation(turn=math.pi / 2), given)
    assert torch.equal(turned, given.transpose(1, 2).flip(2))
    small = variation.apply(Variation(zoom=0.5), given)
    assert small[0, 10:14, 10:14, 1].float().mean() < 10
    assert (small[0, :9] > 240).all()


def test_white_comes_in_where_a_picture_moves_away() -> None:
    moved = variation.apply(Variation(right=1.0), torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
    assert (moved[0, :, :3] == 255).all()
    assert (moved[0, :, 5:] == 0).all()


def test_variations_are_many_and_all_colours_come() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [variation.draw(generator) for _ in range(400)]
    assert {v.colours for v in drawn} == set(variation.ORDERS)
    assert 150 < sum(v.mirrored for v in drawn) < 250
    assert 150 < sum(v.colours != (0, 1, 2) for v in drawn) < 250
    assert 60 < sum(v.backwards for v in drawn) < 140
    assert all(0.75 <= v.zoom <= 1.05 and abs(v.turn) <= math.radians(10) for v in drawn)


def test_left_and_right_change_places_in_a_mirrored_name() -> None:
    assert variation.caption(Variation(mirrored=True), "left-facing fist") == "right-facing fist"
    assert variation.caption(Variation(mirrored=True), "right arrow curving left") == "left arrow curving right"
    assert variation.caption(Variation(), "left-facing fist") == "left-facing fist"
    assert variation.caption(Variation(mirrored=True), "bright leftover") == "bright leftover"

from pathlib import Path

import numpy as np
import pytest
import torch

from segue.errors import OutputError, TrainingError
from segue.training.data import emoji
from segue.training.pictures.captions import draw_captions, plain_caption
from segue.training.pictures.dataset import Pictures, balance, on_white


def row(name: str, style: str = "3d", group: int = 1) -> emoji.Row:
    return emoji.Row(style, "1F600", name, emoji.base_key(name), ("tag",), group, "train")


def test_skin_tone_and_gender_do_not_change_the_key() -> None:
    keys = {emoji.base_key(n) for n in ("astronaut", "woman astronaut", "man astronaut medium-dark skin tone")}
    assert keys == {"astronaut"}


def test_the_splits_are_fixed_and_do_not_leak_by_skin_tone_or_gender() -> None:
    assert emoji.split_of("butterfly") == "held-out name"
    assert emoji.split_of("woman shrugging dark skin tone") == "held-out name"
    assert emoji.split_of("purple square") == "held-out combination"
    assert emoji.split_of("woman astronaut dark skin tone") == "held-out combination"
    assert emoji.split_of("woman astronaut medium-dark skin tone") == "train"
    assert emoji.split_of("red heart") == "train"


def test_a_prompt_without_a_style_means_the_3d_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for style in ("noto", "twemoji"):
        captions = draw_captions([row("pizza", style)] * 200, 0.0, generator)
        assert all(c.endswith(f", {style}") for c in captions)
    captions = draw_captions([row("pizza")] * 200, 0.0, generator)
    assert 60 < sum("3d" in c for c in captions) < 140
    assert plain_caption(row("pizza")) == "pizza"
    assert plain_caption(row("pizza", "noto")) == "pizza, noto"


def test_captions_are_dropped_at_the_rate_asked_for() -> None:
    captions = draw_captions([row("pizza")] * 2000, 0.1, torch.Generator().manual_seed(0))
    assert 140 < captions.count("") < 260


def test_balancing_damps_what_there_is_much_of() -> None:
    rows = [row(f"person {tone} skin tone") for tone in ("light", "medium", "dark")] + [row("pizza", group=4)]
    weights = balance(rows)
    assert weights.sum() == pytest.approx(1)
    assert weights[3] > weights[0]
    assert weights[:3].sum() > weights[3]


def test_transparent_pixels_become_white(pictures: Path) -> None:
    rgba = torch.zeros(1, 2, 2, 4, dtype=torch.uint8)
    rgba[0, 0, 0] = torch.tensor([255, 0, 0, 255])
    pixels = on_white(rgba)
    assert pixels[0, :, 1, 1].tolist() == [1, 1, 1]
    assert pixels[0, :, 0, 0].tolist() == [1, -1, -1]
    assert Pictures(pictures).on_white(torch.tensor([0])).shape == (1, 3, 128, 128)


def test_a_place_that_cannot_be_written_is_found_out_before_anything_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/data cannot be written.*choose another place"):
        emoji.prepare(tmp_path / "file/data", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/cache cannot be written"):
        emoji.prepare(tmp_path / "data", tmp_path / "file/cache")


def test_data_that_is_not_there_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="segue data emoji"):
        emoji.load(tmp_path)


def test_an_svg_is_rasterised_with_its_transparency() -> None:
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 2"><rect width="1" height="2" fill="#00f"/></svg>'
    picture = emoji._rasterise(svg)
    assert picture.shape == (128, 128, 4)
    assert picture[64, 30].tolist() == [0, 0, 255, 255]
    assert picture[64, 100, 3] == 0
    assert picture.dtype == np.uint8

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from segue.errors import UsageError
from segue.runtime.media import read_image as input_image
from segue.runtime.media.read_image import as_pixels, fitted, read_image, read_mask


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8))


def test_a_plain_picture_is_its_pixels(picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), np.asarray(picture))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I", "F"])
def test_every_mode_becomes_three_channels_of_bytes(picture: Image.Image, mode: str) -> None:
    if mode in ("I;16", "I"):
        given = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).convert(mode)
    elif mode == "F":
        given = Image.fromarray(np.asarray(picture.convert("L")).astype(np.float32) / 255)
    else:
        given = picture.convert(mode)
    found = as_pixels(given)
    assert found.dtype == np.uint8
    assert found.shape == (6, 9, 3)
    grey = np.asarray(picture.convert("L"))[..., None].repeat(3, -1)
    if mode in ("L", "LA", "I;16", "I", "F"):
        assert np.array_equal(found, grey)


def test_what_is_transparent_shows_the_background(tmp_path: Path) -> None:
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, :3] = 200, 0, 0
    pixels[0, :, 3] = 0, 128, 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    white, blue = (read_image(tmp_path / "a.png", ground) for ground in ((255, 255, 255), (0, 0, 255)))
    assert white[0, 0].tolist() == [255, 255, 255]
    assert blue[0, 0].tolist() == [0, 0, 255]
    assert white[0, 2].tolist() == blue[0, 2].tolist() == [200, 0, 0]
    assert abs(int(white[0, 1, 0]) - 227) <= 1


def test_a_colour_that_a_palette_marks_as_transparent_is_background(tmp_path: Path) -> None:
    given = Image.new("P", (2, 1))
    given.putpalette([10, 20, 30, 40, 50, 60])
    given.putpixel((1, 0), 1)
    given.save(tmp_path / "a.png", transparency=0)
    assert read_image(tmp_path / "a.png").tolist() == [[[255, 255, 255], [40, 50, 60]]]


@pytest.mark.parametrize(("orientation", "turn"), [(3, 2), (6, -1), (8, 1)])
def test_a_photograph_is_turned_as_it_was_held(picture: Image.Image, tmp_path: Path, orientation: int, turn: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), np.rot90(np.asarray(picture), turn))


def test_colours_are_converted_from_an_embedded_profile(picture: Image.Image, tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture.save(tmp_path / "srgb.png", icc_profile=srgb)
    assert np.abs(read_image(tmp_path / "srgb.png").astype(int) - np.asarray(picture)).max() <= 1
    picture.save(tmp_path / "damaged.png", icc_profile=b"no profile")
    assert np.array_equal(read_image(tmp_path / "damaged.png"), np.asarray(picture))


def test_fitting_takes_the_middle_in_the_asked_shape() -> None:
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, 15:25] = 255
    assert np.array_equal(fitted(wide, 10, 10), np.full((10, 10, 3), 255, np.uint8))
    assert fitted(wide, 33, 21).shape == (33, 21, 3)


def test_what_is_no_picture_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_text("text")
    Image.new("RGB", (30, 2)).save(tmp_path / "wide.png")
    monkeypatch.setattr(input_image, "MAX_SIDE", 20)
    for name, message in (
        ("none.png", "Name a PNG"),
        ("a.png", "cannot be read as a picture"),
        ("wide.png", r"30 x 2 pixels.*Scale it down"),
    ):
        with pytest.raises(UsageError, match=message):
            read_image(tmp_path / name)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_every_kind_that_is_named_is_read(kind, tmp_path):
    path = tmp_path / "picture"
    Image.new("RGB", (6, 4), (255, 0, 0)).save(path, kind)
    assert np.abs(read_image(path).astype(int) - (255, 0, 0)).max() < 8


def test_a_mask_is_the_brightness_of_its_file(tmp_path):
    grey = np.arange(54, dtype=np.uint8).reshape(6, 9) * 4
    for mode in ("L", "RGB", "RGBA"):
        Image.fromarray(grey).convert(mode).save(tmp_path / "a.png")
        assert np.array_equal(read_mask(tmp_path / "a.png"), grey)
    Image.fromarray(grey > 100).save(tmp_path / "a.png")
    assert np.array_equal(read_mask(tmp_path / "a.png"), np.where(grey > 100, 255, 0))
    with pytest.raises(UsageError, match="the mask cannot be read as a picture"):
        read_mask(io.BytesIO(b"text"), "the mask")


@pytest.mark.parametrize(
    ("colours", "alpha", "expected"),
    [
        ((255, 255, 255), [0, 128, 255], [0, 128, 255]),  # painted in white on nothing
        ((200, 0, 0), [0, 128, 255], [0, 128, 255]),  # painted in any other colour
        ((0, 0, 0), [0, 128, 255], [255, 127, 0]),  # a black sheet with a hole
        ((0, 0, 0), [255, 255, 255], [0, 0, 0]),
        ([(9, 9, 9), (255, 255, 255), (0, 0, 0)], [0, 255, 255], [0, 255, 0]),  # two visible colours: brightness
        ((255, 255, 255), [0, 0, 0], [0, 0, 0]),
    ],
)
def test_a_mask_in_one_colour_is_read_by_its_transparency(tmp_path, colours, alpha, expected):
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, :3], pixels[0, :, 3] = colours, alpha
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png").tolist() == [expected]


def test_a_mask_is_turned_as_its_picture_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = np.arange(54, dtype=np.uint8).reshape(6, 9)
    Image.fromarray(grey).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_mask(tmp_path / "a.png"), np.rot90(grey, -1))

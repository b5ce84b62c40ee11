"""Pictures as JPEG and WebP: near the pixels, with metadata that can be read and signed."""

import io

import numpy as np
import pytest
from PIL import Image

from segue.errors import UsageError
from segue.runtime.media.formats import encode_picture
from segue.runtime.media.provenance import read_file, write_picture

TOLD = {"prompt": "ein rotes Herz für 红", "seed": 7, "size": [48, 64]}


@pytest.fixture
def image():
    """A smooth picture with two colours, which compression keeps."""
    ramp = np.linspace(0, 255, 64)[None, :, None] * np.array([1, 0.5, 0])
    return np.broadcast_to(ramp, (48, 64, 3)).astype(np.uint8).copy()


def decoded(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_a_file_of_full_quality_is_near_the_pixels_and_lower_quality_is_smaller(image, kind):
    whole, small, least = (encode_picture(image, kind, None, quality) for quality in (100, 20, 0))
    assert Image.open(io.BytesIO(whole)).format == kind.upper()
    assert np.abs(decoded(whole).astype(int) - image).max() <= 6
    assert len(least) <= len(small) < len(whole)


def test_a_png_keeps_every_pixel_whatever_the_quality(image):
    assert np.array_equal(decoded(encode_picture(image, "png", TOLD, 1)), image)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".jpeg", ".webp", ".WEBP"])
def test_a_file_says_what_it_was_told_and_nothing_without(tmp_path, image, ending):
    path = tmp_path / f"picture{ending}"
    write_picture(path, image, TOLD, None)
    assert read_file(path) == {"metadata": TOLD, "signature": None}
    write_picture(path, image, None, None)
    assert read_file(path) == {"metadata": None, "signature": None}
    assert b"rotes Herz" not in path.read_bytes()


@pytest.mark.parametrize("ending", [".jpeg", ".webp"])
def test_a_signed_file_is_valid_until_it_is_changed(tmp_path, image, certificate, ending):
    path = tmp_path / f"picture{ending}"
    write_picture(path, image, TOLD, certificate)
    found = read_file(path)
    assert found["metadata"] == TOLD
    assert found["signature"]["valid"]
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    assert not read_file(path)["signature"]["valid"]


def test_metadata_that_a_jpeg_cannot_hold_is_refused(image):
    told = {"prompt": "x" * 70_000}
    with pytest.raises(UsageError, match=r"does not fit into a JPEG file: .* Shorten the prompt, or choose png"):
        encode_picture(image, "jpeg", told)
    assert encode_picture(image, "webp", told)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_what_is_no_picture_is_refused(kind):
    with pytest.raises(UsageError, match="uint8"):
        encode_picture(np.zeros((4, 4, 3), np.float32), kind, None)
    with pytest.raises(UsageError, match=r"\[4, 4\]"):
        encode_picture(np.zeros((4, 4), np.uint8), kind, None)


def test_files_that_are_no_pictures_are_refused_and_foreign_ones_have_no_metadata(tmp_path, image):
    (tmp_path / "text.jpg").write_text("text")
    with pytest.raises(UsageError, match="is not a readable picture"):
        read_file(tmp_path / "text.jpg")
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0something else"
    Image.fromarray(image).save(tmp_path / "camera.jpg", exif=exif)
    assert read_file(tmp_path / "camera.jpg") == {"metadata": None, "signature": None}

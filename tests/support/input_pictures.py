"""Pictures and masks that a test gives to a request, as arrays and as the bytes of PNG files."""

import io

import numpy as np
from PIL import Image

SIDE = 128


def drawing(height=SIDE, width=SIDE):
    """Return a drawing with large areas of one colour, uint8 [height, width, 3]."""
    image = np.full((height, width, 3), 255, np.uint8)
    image[height // 4 : -height // 4, width // 4 : -width // 4] = (200, 30, 60)
    image[: height // 8] = (30, 60, 200)
    return image


def hole(height=SIDE, width=SIDE):
    """Return a mask whose edges lie between latent pixels, uint8 [height, width]: 255 is redrawn."""
    mask = np.zeros((height, width), np.uint8)
    mask[34:90, 18:80] = 255
    return mask


def png(pixels):
    """Return the bytes of a PNG file."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def with_hole(image, mask):
    """Return `image` with transparent pixels where `mask` is 255, uint8 [height, width, 4]: OpenAI's mask."""
    return np.dstack([image, 255 - mask])


def opened(data):
    """Return the pixels of a file, uint8 [height, width, 3]."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

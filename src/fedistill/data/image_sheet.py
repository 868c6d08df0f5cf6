"""Lossy storage of images: many small ones on one sheet, which is one WebP file."""

import io
import math

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from fedistill.errors import ExperimentError

_LONGEST_SIDE = 16_383
"""Of a WebP file, in pixels."""


def encode_sheet(images: NDArray[np.uint8], quality: int) -> bytes:
    """Return images (n, channels, height, width) as a WebP file of this quality, 0 to 100.

    A file has a header, so that a sheet of many images is much shorter than a file for each. The sheet is
    about as wide as it is high; images fill its rows from the left, and what is left over is black.

    Raises:
        ExperimentError: there are more images than a file can hold.
    """
    count, channels, height, width = images.shape
    across = _across(count, height, width)
    down = -(-count // across)
    if max(across * width, down * height) > _LONGEST_SIDE:
        most = (_LONGEST_SIDE // width) * (_LONGEST_SIDE // height)
        raise ExperimentError(
            f"task.public.quality: {count} images of {height}x{width} pixels are too many for one WebP file,"
            f" which holds at most {most}: take fewer images, or leave task.public.quality out"
        )
    padded = np.zeros((down * across, channels, height, width), dtype=np.uint8)
    padded[:count] = images
    rows = padded.reshape(down, across, channels, height, width).transpose(0, 3, 1, 4, 2)
    sheet = rows.reshape(down * height, across * width, channels)
    picture = PIL.Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet)
    sink = io.BytesIO()
    picture.save(sink, "WEBP", quality=quality, method=6)
    return sink.getvalue()


def decode_sheet(data: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the images (n, channels, height, width), of this shape, of a file that `encode_sheet` made."""
    count, channels, height, width = shape
    across = _across(count, height, width)
    picture = PIL.Image.open(io.BytesIO(data), formats=["WEBP"])
    sheet = np.asarray(picture.convert("L" if channels == 1 else "RGB"), dtype=np.uint8)
    rows = sheet.reshape(-1, height, across, width, channels).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(rows.reshape(-1, channels, height, width)[:count])


def _across(count: int, height: int, width: int) -> int:
    """Return the number of images in a row of a sheet."""
    return min(count, math.ceil(math.sqrt(count * height / width)))

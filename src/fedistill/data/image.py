"""Images: decoding and scaling."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from fedistill.errors import ExperimentError


class Cell(TypedDict):
    """An image as a column holds it, not decoded: its encoded bytes, or the file that has them."""

    bytes: bytes | None
    path: str | None


def content(cell: Cell | None, row: int, where: str) -> bytes:
    """Return the encoded bytes of an image cell, from the cell itself or the file that it names.

    Raises:
        ExperimentError: the image is missing or its file cannot be read.
    """
    if cell is not None and cell["bytes"] is not None:
        return bytes(cell["bytes"])
    if cell is None or not cell["path"]:
        raise ExperimentError(f"{where}: row {row} (the first is 0) has no image; drop the row")
    try:
        return Path(cell["path"]).read_bytes()
    except OSError as error:
        raise ExperimentError(
            f"{where}: the image of row {row} (the first is 0) cannot be read ({error})"
        ) from None


def decode(
    cells: Iterable[Cell | None],
    rows: NDArray[np.int64],
    where: str,
    size: tuple[int, int] | None,
) -> NDArray[np.uint8]:
    """Decode image cells to uint8 (n, channels, height, width).

    Grey images keep one channel; if any image has colours, all get three. They are scaled to ``size``
    (height, width); without it, all must have the same size.

    Raises:
        ExperimentError: an image is missing or cannot be decoded, or sizes differ.
    """
    pictures: list[PIL.Image.Image] = []
    for row, cell in zip(rows, cells, strict=True):
        data = content(cell, row, where)
        at = f"{where}: the image of row {row} (the first is 0)"
        try:
            picture: PIL.Image.Image = PIL.Image.open(io.BytesIO(data))
            picture.load()
        except PIL.UnidentifiedImageError:
            raise ExperimentError(f"{at} cannot be decoded (not a format that Pillow knows)") from None
        except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
            raise ExperimentError(f"{at} cannot be decoded ({error})") from None
        if picture.mode[:1] in ("I", "F"):
            # Pillow would clip its values at 255, leaving a white image.
            raise ExperimentError(
                f"{at} has more than 8 bits per pixel (mode {picture.mode}): save the images with 8 bits"
            )
        pictures.append(picture)
    mode = "L" if all(picture.mode in ("1", "L", "LA") for picture in pictures) else "RGB"
    arrays: list[NDArray[np.uint8]] = []
    for row, picture in zip(rows, pictures, strict=True):
        flat = picture.convert(mode)
        if size is not None:
            flat = flat.resize((size[1], size[0]), PIL.Image.Resampling.BILINEAR)
        array = np.asarray(flat, dtype=np.uint8)
        if arrays and array.shape != arrays[0].shape:
            first, this = ("x".join(map(str, one.shape[:2])) for one in (arrays[0], array))
            raise ExperimentError(
                f"{where}: images differ in size, {first} pixels and, in row {row}, {this}; set"
                " task.image_size = [height, width]"
            )
        arrays.append(array)
    stacked = np.stack(arrays)
    return stacked[:, None] if mode == "L" else np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))


def fit_to(images: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Convert images of another data set to the (channels, height, width) of the task's images."""
    channels, height, width = shape
    if images.shape[2:] != (height, width):
        tensor = torch.from_numpy(images).float()
        scaled = torch.nn.functional.interpolate(tensor, (height, width), mode="bilinear", antialias=True)
        images = scaled.round().clamp(0, 255).to(torch.uint8).numpy()
    if images.shape[1] != channels:
        grey = images.mean(axis=1, keepdims=True).round().astype(np.uint8)
        images = np.repeat(grey, channels, axis=1)
    return images

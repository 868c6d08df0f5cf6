"""Images: decoding, the form in which they are kept, and the numbers that models see."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedistill.errors import ExperimentError


def content(cell: dict[str, Any]) -> bytes:
    """Return the encoded bytes of an image cell, from the cell itself or the file that it names."""
    data = cell["bytes"]
    return bytes(data) if data is not None else Path(cell["path"]).read_bytes()


def decode(
    cells: Iterable[dict[str, Any] | None],
    rows: NDArray[np.int64],
    where: str,
    size: tuple[int, int] | None,
) -> NDArray[np.uint8]:
    """Decode image cells to uint8 (n, channels, height, width).

    Grey images keep one channel; if any image has colours, all get three. ``size`` (height, width)
    scales them; without it all must have one size.

    Raises:
        ExperimentError: an image is missing or cannot be decoded, or sizes differ.
    """
    pictures: list[PIL.Image.Image] = []
    for row, cell in zip(rows, cells, strict=True):
        if cell is None or (cell["bytes"] is None and not cell["path"]):
            raise ExperimentError(f"{where}: row {row} has no image; drop the row")
        try:
            picture: PIL.Image.Image = PIL.Image.open(io.BytesIO(content(cell)))
            picture.load()
        except (OSError, ValueError, SyntaxError) as error:
            raise ExperimentError(f"{where}: the image of row {row} cannot be decoded ({error})") from None
        pictures.append(picture)
    mode = "L" if all(picture.mode in ("1", "L") for picture in pictures) else "RGB"
    arrays: list[NDArray[np.uint8]] = []
    for row, picture in zip(rows, pictures, strict=True):
        flat = picture.convert(mode)
        if size is not None:
            flat = flat.resize((size[1], size[0]), PIL.Image.Resampling.BILINEAR)
        array = np.asarray(flat, dtype=np.uint8)
        if arrays and array.shape != arrays[0].shape:
            raise ExperimentError(
                f"{where}: image {row} is {array.shape[0]}x{array.shape[1]} pixels, the first is"
                f" {arrays[0].shape[0]}x{arrays[0].shape[1]}; set task.image_size = [height, width]"
            )
        arrays.append(array)
    stacked = np.stack(arrays)
    return stacked[:, None] if mode == "L" else np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))


def fit_to(images: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Bring images of another data set to (channels, height, width) of the task's own."""
    channels, height, width = shape
    if images.shape[2:] != (height, width):
        tensor = torch.from_numpy(images).float()
        scaled = torch.nn.functional.interpolate(tensor, (height, width), mode="bilinear", antialias=True)
        images = scaled.round().clamp(0, 255).to(torch.uint8).numpy()
    if images.shape[1] != channels:
        grey = images.mean(axis=1, keepdims=True).round().astype(np.uint8)
        images = np.repeat(grey, channels, axis=1)
    return images


def to_float(pixels: Tensor) -> Tensor:
    """Scale uint8 pixels to [-1, 1]; constants that no private pixel has entered."""
    return pixels.to(torch.float32).div_(127.5).sub_(1.0)

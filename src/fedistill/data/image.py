"""Images: decoding and scaling."""

import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageColor
import PIL.ImageOps
import torch
from numpy.typing import NDArray

from fedistill.errors import ExperimentError

WHITE_LEVELS = (1, 255, 1023, 4095, 16383, 65535)
"""Values of white in pictures with more than 8 bits: 0 to 1, or all of 8, 10, 12, 14 or 16 bits."""


class Cell(TypedDict):
    """An image as a column holds it, not decoded: its encoded bytes, or the file that has them."""

    bytes: bytes | None
    path: str | None


Picture = Cell | PIL.Image.Image
"""An image as a column holds it, or as somebody has opened it."""


@dataclass(frozen=True)
class Rendering:
    """How pictures with transparency or more than 8 bits become pixels of 8 bits.

    Attributes:
        background: a colour that Pillow knows, which shows where pictures are transparent; None if none are.
        white_level: the value of a picture with more than 8 bits that becomes 255, where 0 stays 0; None if
            none have that many.
    """

    background: str | None = None
    white_level: float | None = None


class RenderingChoice:
    """Chooses how pictures are rendered when it is first called.

    Attributes:
        made: the choice, or None before the first picture that needs one.
    """

    def __init__(self, choose: Callable[[], Rendering]) -> None:
        self._choose = choose
        self.made: Rendering | None = None

    def __call__(self) -> Rendering:
        self.made = self.made or self._choose()
        return self.made


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


def choose_rendering(
    splits: Iterable[tuple[Iterable[Picture | None], Iterable[int], str]],
    background: str | None = None,
    white_level: float | None = None,
) -> Rendering:
    """Return the settings that are given, and choose the others by all pictures of a source together.

    ``splits`` has the cells of each split, their rows, and its name for messages. The background is white, or
    black if the opaque pixels of all transparent pictures together have a mean brightness above one half. The
    white level is the smallest of `WHITE_LEVELS` that no picture exceeds. A setting that is neither given nor
    needed by any picture stays None.

    Raises:
        ExperimentError: an image is missing or cannot be decoded.
    """
    opaque = bright = highest = 0.0
    transparent = deep = False
    if background is None or white_level is None:
        for picture in itertools.chain.from_iterable(_pictures(*split) for split in splits):
            if picture.mode in ("LA", "RGBA"):
                brightness, alpha = np.asarray(picture.convert("LA"), dtype=np.float64).transpose(2, 0, 1)
                transparent = True
                opaque += alpha.sum()
                bright += (alpha * brightness).sum()
            elif _is_deep(picture):
                deep = True
                highest = max(highest, float(np.asarray(picture).max()))
    chosen = "black" if bright > opaque * 255 / 2 else "white"
    level = next((level for level in WHITE_LEVELS if highest <= level), WHITE_LEVELS[-1])
    return Rendering(
        background or (chosen if transparent else None), white_level or (level if deep else None)
    )


def decode(
    cells: Iterable[Picture | None],
    rows: NDArray[np.int64],
    where: str,
    size: tuple[int, int] | None,
    rendering: Callable[[], Rendering] | None = None,
    remedy: str = "set task.image_size = [height, width]",
) -> NDArray[np.uint8]:
    """Decode image cells, or convert opened pictures, to uint8 (n, channels, height, width).

    Grey images keep one channel; if any image has colours, all get three. They are scaled to ``size``
    (height, width); without it, all must have the same size. They are turned as their EXIF orientation says.
    Of animations and files with several pages, the first image is taken. ``rendering`` is called if an image
    is transparent or has more than 8 bits; by default, `choose_rendering` chooses by these images.
    ``remedy`` says what to do about sizes that differ.

    Raises:
        ExperimentError: an image is missing or cannot be decoded, sizes differ, or an image would vanish on
            the background.
    """
    if rendering is None:
        cells = list(cells)
        given = [(cells, rows, where)]
        rendering = RenderingChoice(lambda: choose_rendering(given))
    arrays: list[NDArray[np.uint8]] = []
    # One after the other: pictures may be much larger before they are scaled.
    for row, picture in zip(rows, _pictures(cells, rows, where), strict=True):
        at = _at(where, row)
        plain = _rendered(picture, rendering(), at) if _needs_rendering(picture) else picture
        try:
            flat = plain.convert("L" if plain.mode in ("1", "L") else "RGB")
        except ValueError as error:
            raise ExperimentError(f"{at} has colours that cannot be converted ({error})") from None
        if size is not None:
            flat = flat.resize((size[1], size[0]), PIL.Image.Resampling.BILINEAR)
        array = np.asarray(flat, dtype=np.uint8)
        if arrays and array.shape[:2] != arrays[0].shape[:2]:
            first, this = ("x".join(map(str, one.shape[:2])) for one in (arrays[0], array))
            raise ExperimentError(
                f"{where}: images differ in size, {first} pixels and, in row {row}, {this}; {remedy}"
            )
        arrays.append(array)
    if all(array.ndim == 2 for array in arrays):
        return np.stack(arrays)[:, None]
    coloured = np.stack([np.dstack([array] * 3) if array.ndim == 2 else array for array in arrays])
    return np.ascontiguousarray(coloured.transpose(0, 3, 1, 2))


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


def _at(where: str, row: int) -> str:
    return f"{where}: the image of row {row} (the first is 0)"


def _pictures(cells: Iterable[Picture | None], rows: Iterable[int], where: str) -> Iterator[PIL.Image.Image]:
    """Decode pictures; those with transparent pixels are LA or RGBA, and no others."""
    for row, cell in zip(rows, cells, strict=True):
        at = _at(where, row)
        try:
            picture = _opened(cell, row, where)
            picture.load()
            if picture.getexif().get(PIL.ExifTags.Base.Orientation) is not None:
                picture = PIL.ImageOps.exif_transpose(picture)
            picture = _without_unused_alpha(picture)
        except PIL.UnidentifiedImageError:
            raise ExperimentError(f"{at} cannot be decoded (not a format that Pillow knows)") from None
        except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
            raise ExperimentError(f"{at} cannot be decoded ({error})") from None
        if _is_deep(picture):
            _check_deep(picture, at)
        yield picture


def _opened(cell: Picture | None, row: int, where: str) -> PIL.Image.Image:
    if isinstance(cell, PIL.Image.Image):
        return cell
    return PIL.Image.open(io.BytesIO(content(cell, row, where)))


def _without_unused_alpha(picture: PIL.Image.Image) -> PIL.Image.Image:
    if not picture.has_transparency_data or _is_deep(picture):
        return picture
    grey = picture.mode in ("1", "L", "LA", "La")
    premultiplied = {"La": "LA", "RGBa": "RGBA"}.get(picture.mode)
    layered = picture.convert(premultiplied or ("LA" if grey else "RGBA"))
    lowest = np.asarray(layered.getchannel("A")).min()
    return layered if lowest < 255 else layered.convert("L" if grey else "RGB")


def _is_deep(picture: PIL.Image.Image) -> bool:
    return picture.mode[:1] in ("I", "F")


def _check_deep(picture: PIL.Image.Image, at: str) -> None:
    low, high = (float(bound(np.asarray(picture))) for bound in (np.min, np.max))
    if not 0 <= low <= high <= WHITE_LEVELS[-1]:
        raise ExperimentError(
            f"{at} has values from {low:g} to {high:g} (mode {picture.mode}): save the images with values"
            f" from 0 to {WHITE_LEVELS[-1]}"
        )


def _needs_rendering(picture: PIL.Image.Image) -> bool:
    return picture.mode in ("LA", "RGBA") or _is_deep(picture)


def _rendered(picture: PIL.Image.Image, rendering: Rendering, at: str) -> PIL.Image.Image:
    if _is_deep(picture):
        assert rendering.white_level is not None
        values = np.asarray(picture, dtype=np.float64)
        if values.max() > rendering.white_level:
            raise ExperimentError(
                f"{at} has the value {values.max():g}: raise task.white_level = {rendering.white_level:g}"
            )
        return PIL.Image.fromarray((values * (255 / rendering.white_level)).round().astype(np.uint8))
    if picture.mode not in ("LA", "RGBA"):
        return picture
    assert rendering.background is not None
    colour = PIL.ImageColor.getrgb(rendering.background)[:3]
    grey = picture.mode == "LA" and len(set(colour)) == 1
    mode = "L" if grey else "RGB"
    alpha = picture.getchannel("A")
    opacity = np.asarray(alpha)
    solid = PIL.Image.new(mode, picture.size, colour[0] if grey else colour)
    flat = PIL.Image.composite(picture.convert(mode), solid, alpha)
    pixels = np.asarray(flat)
    if np.ptp(opacity) > 0 and (pixels == pixels[0, 0]).all():
        raise ExperimentError(
            f"{at} has the colour of the background where it is opaque, so nothing of it would be left: set"
            f" task.background to another colour than {rendering.background!r}"
        )
    return flat


def size_of(cell: Cell | None, row: int, where: str) -> tuple[int, int]:
    """Return height and width of a picture as `decode` turns it, without decoding its pixels.

    Raises:
        ExperimentError: the image is missing or is none that Pillow knows.
    """
    path = None if cell is None or cell["bytes"] is not None else cell["path"]
    try:
        with PIL.Image.open(path or io.BytesIO(content(cell, row, where))) as picture:
            turned = picture.getexif().get(PIL.ExifTags.Base.Orientation, 1) >= 5
            width, height = picture.size
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise ExperimentError(f"{_at(where, row)} cannot be decoded ({error})") from None
    return (width, height) if turned else (height, width)

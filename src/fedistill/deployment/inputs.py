"""Samples as people have them in Python, brought into the form of a model's training data."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from torch import Tensor

from fedistill.data import image
from fedistill.data.image import Rendering
from fedistill.data.records import Features, Records, records_of
from fedistill.deployment.description import Description, ImagePreprocessing
from fedistill.errors import ExperimentError

Given = Any
"""Images, texts or a table of them: lists, arrays, tensors, series, and data frames of any library."""
_WHERE = "predict"


def texts_of(given: Given, column: Callable[[list[str]], str]) -> list[str]:
    """Return texts; one string is one text.

    Args:
        column: returns the column of a table's inputs.

    Raises:
        ExperimentError: they are not texts.
    """
    found = [given] if isinstance(given, str) else list(_column(given, column))
    for place, text in enumerate(found):
        if not isinstance(text, str):
            raise ExperimentError(
                f"{_WHERE}: the model reads texts, but sample {place} (the first is 0) is"
                f" {_kind_of(text)}: give strings"
            )
    return [str(text) for text in found]


def rows_of(given: Given, features: Features) -> Records:
    """Return rows of a data frame, or of dictionaries, with the columns that the model reads.

    Raises:
        ExperimentError: they are none, lack a column, or have something else where a number should be.
    """
    if getattr(given, "columns", None) is not None:
        by_name = {str(name): name for name in given.columns}
        _check_columns(by_name, features, "the data frame")
        columns = {name: list(map(_plain, given[by_name[name]])) for name in features.names}
        return records_of(columns, features, len(given), _WHERE)
    rows = [given] if isinstance(given, Mapping) else given
    if not isinstance(rows, Sequence) or not all(isinstance(row, Mapping) for row in rows):
        raise ExperimentError(
            f"{_WHERE}: the model reads rows of a table: give a data frame, or a list of dictionaries, not"
            f" {_kind_of(given)}"
        )
    for place, row in enumerate(rows):
        _check_columns(row, features, f"row {place} (the first is 0)")
    columns = {name: [_plain(row[name]) for row in rows] for name in features.names}
    return records_of(columns, features, len(rows), _WHERE)


def _check_columns(found: Container[str], features: Features, what: str) -> None:
    if lacking := [name for name in features.names if name not in found]:
        shown = ", ".join(map(repr, lacking[:5])) + (" …" if lacking[5:] else "")
        raise ExperimentError(
            f"{_WHERE}: the model reads {len(features.names)} columns, and {what} lacks {shown}"
        )


def _plain(value: Given) -> Given:
    # pandas' mark of a missing value can neither be compared nor be tested.
    return None if type(value).__name__ == "NAType" else value


def pixels_of(
    given: Given, description: Description, column: Callable[[list[str]], str]
) -> NDArray[np.uint8]:
    """Return images as uint8 (n, channels, height, width) of the model's size.

    Raises:
        ExperimentError: they are not images, or of another size or with other channels than the model takes.
    """
    if isinstance(given, PIL.Image.Image):
        given = [given]
    array = _array(given)
    if array is not None:
        return fitted(_channels_first(array, description), description, _WHERE)
    if isinstance(given, str | bytes | Path):
        given = [given]
    cells = [_picture(one, place) for place, one in enumerate(_column(given, column))]
    return decoded(cells, np.arange(len(cells)), _WHERE, Rendering(), description)


def decoded(
    cells: Iterable[image.Picture | None],
    rows: NDArray[np.int64],
    where: str,
    given: Rendering,
    description: Description,
) -> NDArray[np.uint8]:
    """Decode images as those of the training data were; what ``given`` has of their rendering comes first.

    Raises:
        ExperimentError: as `pixels_of`.
    """
    assert description.signature is not None
    assert isinstance(description.preprocessing, ImagePreprocessing)
    shape, saved = description.signature.shape, description.preprocessing
    cells = list(cells)
    if not cells:
        return np.zeros((0, *shape), dtype=np.uint8)
    pixels = image.decode(
        cells,
        rows,
        where,
        (shape[1], shape[2]) if saved.resize else None,
        lambda: image.choose_rendering(
            [(cells, rows, where)],
            given.background or saved.background,
            given.white_level or saved.white_level,
        ),
        f"scale them to {shape[1]}x{shape[2]}, the size of the training images",
    )
    return fitted(pixels, description, where)


def fitted(pixels: NDArray[np.uint8], description: Description, where: str) -> NDArray[np.uint8]:
    """Return images (n, channels, height, width) in the shape that the model takes.

    Grey images become red, green and blue for a model of these.

    Raises:
        ExperimentError: their size differs and the training data were not scaled, or they have colours that
            the model does not see.
    """
    assert description.signature is not None
    assert isinstance(description.preprocessing, ImagePreprocessing)
    channels, height, width = description.signature.shape
    if pixels.shape[1] > channels:
        raise ExperimentError(
            f"{where}: has images with {pixels.shape[1]} channels, but the model reads {channels}: convert"
            " them to grey, as the training images were"
        )
    if pixels.shape[2:] != (height, width) and not description.preprocessing.resize:
        raise ExperimentError(
            f"{where}: has images of {pixels.shape[2]}x{pixels.shape[3]} pixels, but the model reads"
            f" {height}x{width}: scale them as the training images were"
        )
    return image.fit_to(pixels, (channels, height, width))


def _kind_of(value: Given) -> str:
    return "missing" if value is None or value != value else f"of type {type(value).__name__}"


def _column(given: Given, column: Callable[[list[str]], str]) -> Iterable[Any]:
    """Return the inputs of a table, or else what is given."""
    names = getattr(given, "columns", None)
    if names is not None:
        by_name = {str(name): name for name in names}
        values: Iterable[Any] = given[by_name[column(list(by_name))]]
        return values
    if not isinstance(given, Iterable):
        raise ExperimentError(
            f"{_WHERE}: takes images or texts, as a list, an array or a data frame, not a"
            f" {type(given).__name__}"
        )
    return given


def _array(given: Given) -> NDArray[Any] | None:
    """Return numbers as an array; None for all else."""
    if isinstance(given, Tensor):
        return given.detach().cpu().numpy()
    if (
        isinstance(given, Sequence)
        and len(given)
        and all(isinstance(one, np.ndarray | Tensor) for one in given)
    ):
        shapes = {tuple(one.shape) for one in given}
        if len(shapes) > 1:
            raise ExperimentError(f"{_WHERE}: arrays differ in shape ({', '.join(map(str, sorted(shapes)))})")
        return np.stack([np.asarray(one) for one in given])
    return given if isinstance(given, np.ndarray) and given.dtype.kind != "O" else None


def _channels_first(array: NDArray[Any], description: Description) -> NDArray[np.uint8]:
    assert description.signature is not None
    wanted = description.signature.shape
    if array.dtype != np.uint8:
        raise ExperimentError(
            f"{_WHERE}: pixels must be whole numbers from 0 to 255 (uint8), which the model scales itself,"
            f" but are {array.dtype}"
        )
    if array.ndim == 3:
        array = array[:, None]
    if array.ndim != 4 or (array.shape[1] not in (1, 3) and array.shape[3] not in (1, 3)):
        raise ExperimentError(
            f"{_WHERE}: an array of images has the shape (n, {', '.join(map(str, wanted))}), or channels"
            f" last, but this has {array.shape}"
        )
    last = array.shape[1] != wanted[0] and (array.shape[3] == wanted[0] or array.shape[1] not in (1, 3))
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2)) if last else array


def _picture(given: Given, place: int) -> image.Picture | None:
    if given is None or isinstance(given, PIL.Image.Image):
        return given
    if isinstance(given, bytes):
        return {"bytes": given, "path": None}
    if isinstance(given, str | Path):
        if not Path(given).is_file():
            raise ExperimentError(
                f"{_WHERE}: the model reads images, but sample {place} (the first is 0) is not the path of"
                f" one: {str(given)[:80]!r}"
            )
        return {"bytes": None, "path": str(given)}
    if isinstance(given, dict) and {"bytes", "path"} <= given.keys():
        return {"bytes": given["bytes"], "path": given["path"]}
    raise ExperimentError(
        f"{_WHERE}: the model reads images, but sample {place} (the first is 0) is {_kind_of(given)}: give"
        " pictures of Pillow, paths, or an array of uint8"
    )

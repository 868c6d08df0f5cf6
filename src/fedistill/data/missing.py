"""Missing values: which rows lack an input or a label, and what is done about them."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from fedistill.data.image import Cell
from fedistill.data.table import Rows, Split
from fedistill.errors import ExperimentError

Content = Literal["image", "text", "label"]
_BATCH = 100
"""Rows read at a time: pictures that are not scaled yet may be large."""
_CELLS = 1000
"""Texts and labels read at a time."""
_log = logging.getLogger(__name__)


def encoded_images(split: Split, inputs: str) -> Split:
    """Return the column of images alone, with cells that are not decoded."""
    column = split.select_columns([inputs])
    if getattr(column.features[inputs], "dtype", None) in ("large_binary", "binary_view"):
        column = column.cast_column(inputs, datasets.Value("binary"))
    return column.cast_column(inputs, datasets.Image(decode=False))


def image_cells(encoded: Split) -> Iterator[Cell | None]:
    """Yield the cells of a column that `encoded_images` returned, read in batches."""
    (inputs,) = encoded.column_names
    for batch in encoded.with_format("arrow").iter(_BATCH):
        yield from batch[inputs].to_pylist()


def is_missing(split: Split, column: str, kind: Content) -> NDArray[np.bool_]:
    """Return which rows have no value: null, NaN, an image without bytes and path, or a label "" or -1.

    A column of class labels marks missing labels with -1.
    """
    if kind == "image":
        batches = encoded_images(split, column).with_format("arrow").iter(_BATCH)
        return np.concatenate([_without_image(batch[column]) for batch in batches])
    no_label = {"", -1} if isinstance(split.features[column], datasets.ClassLabel) else {""}
    cells = (cell for batch in split.select_columns([column]).iter(_CELLS) for cell in batch[column])
    return np.array(
        [
            value is None
            or value != value
            or (kind == "label" and isinstance(value, str | int) and value in no_label)
            for value in cells
        ],
        dtype=bool,
    )


def _without_image(cells: Any) -> NDArray[np.bool_]:
    content, path = (pc.struct_field(cells, name) for name in ("bytes", "path"))
    nowhere = pc.fill_null(pc.equal(path, ""), True)
    return np.asarray(pc.and_(pc.is_null(content), nowhere).to_numpy(), dtype=bool)


def complete(
    split: Split, kinds: Mapping[str, Content], drop: bool, where: str, place: str
) -> tuple[Split, Rows]:
    """Return the rows that have all of these columns, and their places in the file.

    ``where`` names the file in messages, ``place`` the table of settings that may ask to drop rows.

    Raises:
        ExperimentError: rows lack a value and ``drop`` is false, or no row is left.
    """
    missing = {column: is_missing(split, column, kind) for column, kind in kinds.items()}
    nothing = np.zeros(len(split), dtype=bool)  # values of a table may all be missing
    kept = np.flatnonzero(~np.logical_or.reduce([nothing, *missing.values()]))
    if len(kept) == len(split):
        return split, kept
    if not drop:
        counts = ", ".join(_count(column, rows) for column, rows in missing.items() if rows.any())
        raise ExperimentError(
            f"{where}: values are missing in {len(split) - len(kept)} of {len(split)} rows ({counts}; the"
            f" first row is 0): fill them in, or leave those rows out with {place}.drop_missing = true"
        )
    if len(kept) == 0:
        raise ExperimentError(f"{where}: has no rows without missing values")
    _log.warning("%s: left out %d of %d rows with missing values", where, len(split) - len(kept), len(split))
    return split.select(kept), kept


def _count(column: str, missing: NDArray[np.bool_]) -> str:
    rows = np.flatnonzero(missing)
    shown = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
    return f"no {column!r} in {len(rows)}: row{'s' if len(rows) > 1 else ''} {shown}"

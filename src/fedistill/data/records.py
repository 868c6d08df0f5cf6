"""Rows of tables with numeric and categorical columns, as they are before a model can take them."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedistill.errors import ExperimentError

Value = Any
"""A cell as a reader or a data frame has it: a number, a text, a boolean, None, or anything else."""
NUMBER = re.compile(r"[-+]?([0-9]+([.,][0-9]*)?|[.,][0-9]+)([eE][-+]?[0-9]+)?")
"""Numbers as files write them, with a decimal point or comma."""
_LARGEST = 1e150
"""Sizes above this have no square that is finite."""
_WHOLE = re.compile(r"([-+]?[0-9]+)[.,]0*")
"""Whole numbers that are written as fractions, such as ``3.0``."""


@dataclass(frozen=True)
class Features:
    """Names of the columns that are inputs, by kind and in the order in which models take them."""

    numeric: tuple[str, ...]
    categorical: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return self.numeric + self.categorical


@dataclass(frozen=True)
class Records:
    """n rows of a table.

    Attributes:
        numbers: of the numeric columns, float64 (n, numeric); NaN where a value is missing.
        categories: of the categorical columns, texts, object (n, categorical); None where one is missing.
    """

    features: Features
    numbers: NDArray[np.float64]
    categories: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.numbers)

    def picked(self, rows: NDArray[np.int64]) -> "Records":
        """Return these rows, in this order."""
        return Records(self.features, self.numbers[rows], self.categories[rows])

    def contents(self) -> list[bytes]:
        """Return the content of each row; equal rows have equal contents."""
        texts = ("\x1e".join("\x1f" if one is None else one for one in row) for row in self.categories)
        return [
            numbers.tobytes() + text.encode()
            for numbers, text in zip(self.numbers + 0.0, texts, strict=True)  # -0.0 becomes 0.0
        ]


def records_of(columns: Mapping[str, Sequence[Value]], features: Features, rows: int, where: str) -> Records:
    """Return rows from the values of their columns: numbers, texts, booleans, and None or NaN if missing.

    Args:
        columns: with all features among them.
        rows: n.
        where: the table's name for messages.

    Raises:
        ExperimentError: a numeric column has something else in it.
    """
    numbers = np.empty((rows, len(features.numeric)))
    categories = np.empty((rows, len(features.categorical)), dtype=np.object_)
    for place, name in enumerate(features.numeric):
        numbers[:, place] = list(_numbers(columns[name], name, where))
    for place, name in enumerate(features.categorical):
        categories[:, place] = [category(value) for value in columns[name]]
    return Records(features, numbers, categories)


def is_empty(value: Value) -> bool:
    """Whether a cell is empty: None, NaN, or text without anything but white space."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def number(value: Value) -> float | None:
    """Return a cell as a finite number; None if it is none."""
    if isinstance(value, str):
        text = value.strip()
        found = float(text.replace(",", ".")) if NUMBER.fullmatch(text) else math.inf
    else:
        try:
            found = float(value)
        except (TypeError, ValueError, OverflowError):
            return None
    return found if math.isfinite(found) else None


def category(value: Value) -> str | None:
    """Return a cell as a category, None if it is missing; ``3``, ``3.0`` and ``"3.0"`` are the same one.

    Examples:
        >>> [category(value) for value in (3, 3.0, "3.0", " a ", 0.5, True, "", None)]
        ['3', '3', '3', 'a', '0.5', 'True', None, None]
    """
    if is_empty(value):
        return None
    text = str(value).strip()
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


def _numbers(values: Iterable[Value], column: str, where: str) -> Iterable[float]:
    for row, value in enumerate(values):
        if is_empty(value):
            yield math.nan
            continue
        found = number(value)
        if found is None or abs(found) > _LARGEST:
            shown = str(value)[:40]
            fix = f"set task.missing = [{shown!r}]" if isinstance(value, str) else "replace it by null"
            raise ExperimentError(
                f"{where}: column {column!r} is numeric, but row {row} (the first is 0) has {shown!r}: list"
                f" the column in task.table.categorical, or, if that means that the value is missing, {fix}"
            )
        yield found

"""What is to be known of many rows to encode them: sums of numbers, and the categories that occur.

Sums of several parts are those of all rows together, so that clients can share them in place of rows.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedistill.communication.kinds import Kind
from fedistill.communication.protocol.frame import Frame, encode
from fedistill.data.record_encoding import (
    MOST_CATEGORIES,
    CategoricalColumn,
    Finite,
    NumericColumn,
    RecordEncoding,
    packed,
    unpacked,
)
from fedistill.data.records import Features, Records
from fedistill.errors import ExperimentError, FrameError

_FLAT = 1e-12
"""Variance, as a share of the squared mean, up to which a column is constant but for rounding."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NumericSums(_Part):
    """Of the values of a column that are not missing: count, mean, and sum of squared deviations from it.

    They say the same as count, sum and sum of squares, without the loss of digits in a difference of these.
    """

    count: Annotated[int, Field(ge=0)] = 0
    mean: Finite = 0.0
    squares: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    def plus(self, other: "NumericSums") -> "NumericSums":
        """Return the sums of both sets of values together."""
        count = self.count + other.count
        if not count:
            return self
        apart = other.mean - self.mean
        return NumericSums(
            count=count,
            mean=self.mean + apart * (other.count / count),
            squares=self.squares + other.squares + apart * apart * (self.count * other.count / count),
        )

    @property
    def std(self) -> float:
        """The standard deviation; of a constant the size of its value, or 1 for 0, so that it divides."""
        variance = self.squares / max(self.count, 1)
        if variance <= _FLAT * self.mean * self.mean:
            return abs(self.mean) or 1.0
        return math.sqrt(variance)


class SeenCategories(_Part):
    """The categories of a column that occur, in alphabetical order, and how many values are missing."""

    missing: Annotated[int, Field(ge=0)] = 0
    categories: Annotated[tuple[str, ...], Field(max_length=MOST_CATEGORIES)] = ()

    @model_validator(mode="after")
    def _are_in_order(self) -> Self:
        if list(self.categories) != sorted(set(self.categories)):
            raise ValueError("categories are not in alphabetical order, each once")
        return self


class ColumnSums(_Part):
    """The sums of all columns of some rows, in the order of `Features`."""

    rows: Annotated[int, Field(ge=0)]
    numeric: tuple[NumericSums, ...] = ()
    categorical: tuple[SeenCategories, ...] = ()

    @classmethod
    def of(cls, records: Records) -> "ColumnSums":
        """Sum rows up, with the same bits on every machine.

        Raises:
            ExperimentError: a column has more than `MOST_CATEGORIES` categories.
        """
        return cls(
            rows=len(records),
            numeric=tuple(map(_summed, records.numbers.T)),
            categorical=tuple(
                _seen(list(values), name)
                for values, name in zip(records.categories.T, records.features.categorical, strict=True)
            ),
        )

    def encoding(self, features: Features) -> RecordEncoding:
        """Return the encoding by these sums of these columns.

        Raises:
            ExperimentError: there is no value in any column.
        """
        numeric = tuple(
            NumericColumn(name=name, mean=one.mean, std=one.std, missing=one.count < self.rows)
            for name, one in zip(features.numeric, self.numeric, strict=True)
        )
        categorical = tuple(
            CategoricalColumn(name=name, categories=one.categories, missing=one.missing > 0)
            for name, one in zip(features.categorical, self.categorical, strict=True)
        )
        return RecordEncoding(numeric=numeric, categorical=categorical)


def combined(parts: Sequence[ColumnSums], features: Features) -> ColumnSums:
    """Return the sums of all parts together.

    Raises:
        ExperimentError: all together have more than `MOST_CATEGORIES` categories in a column.
    """
    numeric = []
    for place in range(len(features.numeric)):
        total = NumericSums()
        for part in parts:
            total = total.plus(part.numeric[place])
        numeric.append(total)
    categorical = []
    for place, name in enumerate(features.categorical):
        columns = [part.categorical[place] for part in parts]
        seen = sorted({category for one in columns for category in one.categories})
        _check_number(seen, name)
        missing = sum(one.missing for one in columns)
        categorical.append(SeenCategories(missing=missing, categories=tuple(seen)))
    return ColumnSums(
        rows=sum(part.rows for part in parts), numeric=tuple(numeric), categorical=tuple(categorical)
    )


def sums_frame(sums: ColumnSums, client: int) -> bytes:
    """Return the set-up frame in which a client shares the sums of its rows."""
    return encode(Frame(Kind.COLUMN_SUMS, 0, client + 1, (packed(sums),)))


def read_sums(frame: bytes, features: Features, samples: int) -> ColumnSums:
    """Return the sums that a client with this many samples shares.

    Raises:
        FrameError: the bytes are no such frame, or are not of these columns and rows.
    """
    found = unpacked(frame, Kind.COLUMN_SUMS, ColumnSums)
    columns = len(found.numeric), len(found.categorical)
    if columns != (len(features.numeric), len(features.categorical)):
        raise FrameError(
            f"sums are of {columns[0]} numeric and {columns[1]} categorical columns, but there are"
            f" {len(features.numeric)} and {len(features.categorical)}"
        )
    counts = [*(one.count for one in found.numeric), *(one.missing for one in found.categorical)]
    if found.rows != samples or any(count > samples for count in counts):
        raise FrameError(f"sums are of {found.rows} rows or more, but the client has {samples}")
    return found


def _summed(values: NDArray[np.float64]) -> NumericSums:
    present = values[~np.isnan(values)]
    if not len(present):
        return NumericSums()
    mean = math.fsum(present) / len(present)
    return NumericSums(count=len(present), mean=mean, squares=math.fsum((present - mean) ** 2))


def _seen(values: Sequence[str | None], column: str) -> SeenCategories:
    seen = sorted({value for value in values if value is not None})
    _check_number(seen, column)
    return SeenCategories(missing=sum(value is None for value in values), categories=tuple(seen))


def _check_number(categories: Sequence[str], column: str) -> None:
    if len(categories) > MOST_CATEGORIES:
        raise ExperimentError(
            f"task.table: column {column!r} has {len(categories):,} categories, and {MOST_CATEGORIES:,} is"
            " the most: take it out of task.table.categorical, or group its values in the data"
        )

"""How rows of tables become a model's inputs: scaled numbers, marks of missing ones, and categories.

A row becomes d numbers: each numeric column as ``(value - mean) / std``, at most `LIMIT` away from 0; then
for each numeric column that may be missing a 1 if it is, in which case its value is the mean; then for each
categorical column a 1 in the place of the row's category and 0 in those of the others. A category that is
not known has no place and is all 0. So is a missing one, unless missing values were known.
"""

import json
import zlib
from typing import Annotated, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedistill.communication.kinds import Kind
from fedistill.communication.protocol.frame import EVERYONE, Frame, decode, encode
from fedistill.data.records import Features, Records
from fedistill.errors import FrameError

LIMIT = 10.0
"""Standard deviations from the mean at which values are cut: an outlier must not end a training."""
MOST_CATEGORIES = 1000
"""Of one column: what has more names no category, but a person or a place."""
_MOST_COLUMNS = 100_000
_MOST_BYTES = 100_000_000
"""Of a set-up frame's content: what is larger would only take memory."""
Name = Annotated[str, Field(min_length=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Content = TypeVar("Content", bound=BaseModel)


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class NumericColumn(_Part):
    """A column of numbers; ``missing``: whether a mark of missing values follows."""

    name: Name
    mean: Finite
    std: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    missing: bool = False


class CategoricalColumn(_Part):
    """A column of categories; ``missing``: whether a missing value is one, after those with names."""

    name: Name
    categories: Annotated[tuple[str, ...], Field(max_length=MOST_CATEGORIES)]
    missing: bool = False

    @model_validator(mode="after")
    def _categories_differ(self) -> Self:
        if len(set(self.categories)) < len(self.categories):
            raise ValueError(f"column {self.name!r} has a category twice")
        return self


class RecordEncoding(_Part):
    """All columns that are inputs, in the order of their places."""

    numeric: Annotated[tuple[NumericColumn, ...], Field(max_length=_MOST_COLUMNS)] = ()
    categorical: Annotated[tuple[CategoricalColumn, ...], Field(max_length=_MOST_COLUMNS)] = ()

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        names = self.features.names
        if len(set(names)) < len(names):
            raise ValueError("a column is there twice")
        if self.width == 0:
            raise ValueError("no column has a place")
        return self

    @property
    def features(self) -> Features:
        return Features(tuple(one.name for one in self.numeric), tuple(one.name for one in self.categorical))

    @property
    def width(self) -> int:
        """d, the length of an encoded row."""
        marks = sum(one.missing for one in self.numeric)
        return len(self.numeric) + marks + sum(len(one.categories) + one.missing for one in self.categorical)

    def places(self) -> list[tuple[str, str | None]]:
        """Return what each of the d numbers tells: a column, and a category of it, or None for others."""
        numeric: list[tuple[str, str | None]] = [(one.name, None) for one in self.numeric]
        marks: list[tuple[str, str | None]] = [(one.name, None) for one in self.numeric if one.missing]
        found = [*numeric, *marks]
        for one in self.categorical:
            found += [(one.name, category) for category in one.categories]
            found += [(one.name, None)] * one.missing
        return found

    def encode(self, records: Records) -> NDArray[np.float32]:
        """Return rows with these features as float32 (n, d)."""
        mean, std = (np.array([getattr(one, key) for one in self.numeric]) for key in ("mean", "std"))
        missing = np.isnan(records.numbers)
        scaled = np.where(missing, 0.0, np.clip((records.numbers - mean) / std, -LIMIT, LIMIT))
        marks = missing[:, [one.missing for one in self.numeric]]
        parts = [scaled, marks]
        for column, values in zip(self.categorical, records.categories.T, strict=True):
            known: list[str | None] = [*column.categories, *([None] if column.missing else [])]
            places = {one: place for place, one in enumerate(known)}
            codes = np.array([places.get(value, -1) for value in values], dtype=np.int64)
            rows = np.flatnonzero(codes >= 0)
            parts.append(np.zeros((len(records), len(known))))
            parts[-1][rows, codes[rows]] = 1
        return np.concatenate(parts, axis=1).astype(np.float32)

    def unknown_share(self, records: Records) -> float | None:
        """Return the share of categories that are not known among those of these rows, 0 to 1.

        None if there are none.
        """
        total = unknown = 0
        for column, values in zip(self.categorical, records.categories.T, strict=True):
            known, present = set(column.categories), [value for value in values if value is not None]
            total += len(present)
            unknown += sum(value not in known for value in present)
        return unknown / total if total else None


def encoding_frame(encoding: RecordEncoding) -> bytes:
    """Return the set-up frame that carries an encoding to clients."""
    return encode(Frame(Kind.RECORD_ENCODING, 0, EVERYONE, (packed(encoding),)))


def read_encoding(frame: bytes) -> RecordEncoding:
    """Return the encoding that a frame carries.

    Raises:
        FrameError: the bytes are no such frame.
    """
    return unpacked(frame, Kind.RECORD_ENCODING, RecordEncoding)


def packed(content: BaseModel) -> bytes:
    """Return what describes columns, without its defaults, as compressed JSON."""
    plain = content.model_dump(mode="json", exclude_defaults=True)
    return zlib.compress(json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode(), 9)


def unpacked(frame: bytes, kind: Kind, wanted: type[Content]) -> Content:
    """Return what `packed` packed, out of a frame of this kind.

    Raises:
        FrameError: the bytes are no such frame.
    """
    found = decode(frame)
    if found.kind != kind or len(found.sections) != 1:
        raise FrameError(f"frame is not one of kind {kind.label} with one section")
    reader = zlib.decompressobj()
    try:
        text = reader.decompress(found.sections[0], _MOST_BYTES)
        if not reader.eof or reader.unused_data:
            raise FrameError(f"content of a {kind.label} frame is not whole, or too large")
        return wanted.model_validate(json.loads(text))
    except (zlib.error, ValueError, RecursionError) as error:  # ValidationError is a ValueError
        raise FrameError(
            f"content of a {kind.label} frame cannot be read ({str(error).splitlines()[0]})"
        ) from None

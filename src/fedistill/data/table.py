"""Tables: one split of a source, with labels read at once and inputs only for the rows that are kept."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedistill.config.inputs import InputKind
from fedistill.config.task import PublicSource, Source
from fedistill.data import image
from fedistill.data.record_encoding import RecordEncoding
from fedistill.data.records import Features, Records
from fedistill.data.samples import Samples, Texts
from fedistill.errors import ExperimentError

Rows = NDArray[np.int64]
Inputs = NDArray[np.uint8] | list[str] | Records
FILE_COLUMN = "(file)"
"""The column that several files of one split have when they are read: the name of each row's file."""

_DISTINCT = 0.9
"""Share of different rows from which equal records are copies; with fewer, they are equal by chance."""

Split = Any
"""A `datasets.Dataset`; the library has no types to check."""
Column = list[Any]
"""The value of one column in each row: numbers, texts, or what else the source has."""


@dataclass(frozen=True)
class Table:
    """One split of a source.

    Attributes:
        labels: int64 (n,), the class of each row.
        read: returns the inputs of given rows: uint8 images (rows, channels, height, width), texts, or
            records.
        keys: returns a digest of each row's content; rows with equal inputs have equal keys, unless they are
            records of so few values that equal ones need not be copies.
        column: returns the values of another column, for natural partitions.
    """

    labels: NDArray[np.int64]
    read: Callable[[Rows], Inputs]
    keys: Callable[[], list[bytes]]
    column: Callable[[str], Column]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Splits:
    """Splits of files or of a hub data set, before it is chosen which of their columns is what.

    Attributes:
        test: None if there is no test split, or if it was not to be read.
        wheres: names of both for messages.
        own_test: whether there is a test split, read or not.
    """

    train: Split
    test: Split | None
    wheres: tuple[str, str]
    own_test: bool


@dataclass(frozen=True)
class Loaded:
    """A source's splits; ``test`` is None if the source has no test split, or if it was not to be read.

    ``own_test``: whether the source has a test split, read or not.

    If the training data are several files, ``by_file`` is true and the column `FILE_COLUMN` names each row's.

    Labels of files and hub data sets that serve as a public set are not read: ``classes`` is empty then, and
    all labels are 0.

    ``rendering`` chooses how images of files and of the hub are rendered; None for other sources.

    ``features`` are the columns of a table that are inputs; ``left_out`` says of others why they are not.
    """

    kind: InputKind
    classes: tuple[str, ...]
    train: Table
    test: Table | None
    own_test: bool = False
    by_file: bool = False
    rendering: image.RenderingChoice | None = None
    features: Features | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)


def place_of(source: Source) -> str:
    """Return the table of the experiment file that names this source."""
    return "task.public" if isinstance(source, PublicSource) else "task"


def no_columns(name: str) -> Column:
    """Refuse to return a column, as `Table.column` of a source that has none.

    Raises:
        ExperimentError: always.
    """
    raise ExperimentError(
        f"task.partition.column = {name!r}: this task has no columns besides inputs and labels;"
        " choose another partition kind"
    )


def arrays(pixels: NDArray[np.uint8], labels: NDArray[np.int64], image_size: tuple[int, int] | None) -> Table:
    shape = (pixels.shape[1], *(image_size or pixels.shape[2:]))
    return Table(
        labels,
        lambda rows: image.fit_to(pixels[rows], shape),
        lambda: [digest(row.tobytes()) for row in pixels],
        no_columns,
    )


def texts_table(texts: list[str], labels: NDArray[np.int64]) -> Table:
    return Table(
        labels,
        lambda rows: [texts[row] for row in rows],
        lambda: [digest(text.encode()) for text in texts],
        no_columns,
    )


def records_as_table(
    records: Records,
    labels: NDArray[np.int64],
    column: Callable[[str], Column],
) -> Table:
    def keys() -> list[bytes]:
        contents = records.contents()
        if len(set(contents)) < _DISTINCT * len(contents):
            whole = digest(b"".join(contents))  # rows of another table are others
            contents = [b"%d " % row + whole for row in range(len(contents))]
        return [digest(content) for content in contents]

    return Table(labels, records.picked, keys, column)


def samples_of(inputs: Inputs, encoding: RecordEncoding | None = None) -> Samples:
    """Return inputs as a task holds them; records need their encoding."""
    if isinstance(inputs, Records):
        assert encoding is not None
        return torch.from_numpy(encoding.encode(inputs))
    return torch.from_numpy(inputs.copy(order="C")) if isinstance(inputs, np.ndarray) else Texts.of(inputs)


def digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()

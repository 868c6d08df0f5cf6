"""Reads rows of a table a few at a time into a nameless file, so that they need not fit into memory."""

from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedistill.data.nameless_file import NamelessFile
from fedistill.data.record_encoding import RecordEncoding
from fedistill.data.records import Records
from fedistill.data.samples import Samples, Texts
from fedistill.data.table import Rows, Table, samples_of

Images = NDArray[np.uint8]
"""Of shape (n, channels, height, width)."""
_ROWS = 1000
"""Read at a time, or fewer, if they are images of which so many are larger than `_BYTES`."""
_BYTES = 8 << 20


def read_parts(
    table: Table,
    rows: Rows,
    parts: Sequence[Rows],
    folder: Path | None,
    fit: Callable[[Images], Images] = lambda images: images,
    encoding: RecordEncoding | None = None,
) -> list[Samples]:
    """Return the samples of each part: images and texts mapped into memory from a nameless file.

    Args:
        rows: all rows to read. Those that are in no part count where images are of unlike kinds: grey images
            keep one channel; if any of these rows has colours, all get three.
        parts: places in ``rows``, no place in more than one part.
        folder: on whose disk the file lies; see `NamelessFile`.
        fit: changes the images of some rows before they are stored.
        encoding: of records, which are read at once.

    Raises:
        ExperimentError: rows cannot be read, or images differ in size.
        RuntimeFailure: the disk is full or fails.
    """
    first = table.read(rows[:1])
    if isinstance(first, np.ndarray):
        return _images(table, rows, parts, folder, fit)
    if isinstance(first, Records):
        records = table.read(rows)
        assert isinstance(records, Records)
        return [samples_of(records.picked(part), encoding) for part in parts]
    return _texts(table, rows, parts, folder)


def _texts(table: Table, rows: Rows, parts: Sequence[Rows], folder: Path | None) -> list[Samples]:
    order = rows[np.concatenate(parts)]
    file, ends = NamelessFile(folder), torch.zeros(len(order) + 1, dtype=torch.int64)
    for start in range(0, len(order), _ROWS):
        texts = table.read(order[start : start + _ROWS])
        assert isinstance(texts, list)
        some = Texts.of(texts)
        before = int(ends[start])
        file.write_at([(before, some.content.numpy().data)])
        ends[start + 1 : start + 1 + len(some)] = before + some.ends
    content, found, start = file.mapped(), list[Samples](), 0
    for part in parts:
        begin, stop = int(ends[start]), int(ends[start + len(part)])
        own = ends[start + 1 : start + 1 + len(part)] - begin
        found.append(Texts(content[begin:stop], own))
        start += len(part)
    return found


def _images(
    table: Table,
    rows: Rows,
    parts: Sequence[Rows],
    folder: Path | None,
    fit: Callable[[Images], Images],
) -> list[Samples]:
    place = np.full(len(rows), -1, dtype=np.int64)
    place[np.concatenate(parts)] = np.arange(sum(map(len, parts)))
    file = _ImageFile(folder, int(place.max()) + 1)
    for start, images in _in_chunks(table, rows):
        file.put(fit(images), place[start : start + len(images)])
    return list(torch.split(file.images(), list(map(len, parts))))


def _in_chunks(table: Table, rows: Rows) -> Iterator[tuple[int, Images]]:
    """Yield images in the order of the rows, a few at a time, with the place of the first among them."""
    start, count, size = 0, 1, None
    while start < len(rows):
        images = table.read(rows[start : start + count])
        assert isinstance(images, np.ndarray)
        if size is not None and images.shape[2:] != size:
            table.read(rows[[0, start]])  # refuses them with an error that names both
        size = images.shape[2:]
        yield start, images
        start += len(images)
        count = max(1, min(_ROWS, _BYTES // images[0].nbytes))


class _ImageFile:
    """Images of one size in a nameless file, each at its place; all have three channels once one has them."""

    def __init__(self, folder: Path | None, count: int) -> None:
        self._folder, self._count = folder, count
        self._file = NamelessFile(folder)
        self._shape: tuple[int, ...] = ()

    def put(self, images: Images, places: Rows) -> None:
        """Store images at their places; those with a negative place only count for the number of channels."""
        self._shape = self._shape or images.shape[1:]
        if images.shape[1] > self._shape[0]:
            self._add_colours(images.shape[1])
        elif images.shape[1] < self._shape[0]:
            images = np.repeat(images, self._shape[0], axis=1)
        size = images[0].nbytes
        kept = zip(images, places.tolist(), strict=True)
        self._file.write_at((place * size, image.data) for image, place in kept if place >= 0)

    def _add_colours(self, channels: int) -> None:
        grey = self.images()
        self._file, self._shape = NamelessFile(self._folder), (channels, *self._shape[1:])
        some = torch.split(grey, max(1, _BYTES // (channels * grey[0].nbytes)))
        self._file.write(part.expand(-1, channels, -1, -1).contiguous().numpy().data for part in some)

    def images(self) -> Tensor:
        """Return all images, uint8 (n, channels, height, width)."""
        return self._file.mapped(self._count * prod(self._shape)).view(self._count, *self._shape)

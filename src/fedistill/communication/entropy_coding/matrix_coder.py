"""Integers of a matrix whose rows and columns differ in size: cells of about the same size share a model.

An output unit that learns much has a row of large numbers; an input that is always dark has a column of
zeros. The size of each row and each column is sent, in octaves; cells for which the two have the same sum are
coded together. A matrix that does not get shorter by this is coded as one sequence.
"""

from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from fedistill.communication.entropy_coding.parametric_model import bits, histogram, put, take
from fedistill.communication.entropy_coding.range_coder import Decoder, Encoder, Integers

_SMALLEST = 512  # cells; in a smaller matrix the sizes cost more than they save
_OCTAVES = 31
_EITHER = np.ones(2, np.int64)

Levels = NDArray[np.int32]


def put_matrix(encoder: Encoder, symbols: Integers, low: int, high: int) -> None:
    """Write integers (rows, columns) from ``low`` to ``high``."""
    if not _may_sort(symbols.shape):
        put(encoder, symbols.ravel(), low, high)
        return
    sizes = np.abs(symbols, dtype=np.float32)
    levels = [_levels(sizes.mean(axis=1)), _levels(sizes.mean(axis=0))]
    groups = _Groups(*levels).split(symbols)
    counts = [histogram(group, low, high) for group in groups]
    apart = sum(bits(histogram(side, 0, _OCTAVES), 0, _OCTAVES) for side in levels)
    apart += sum(bits(count, low, high) for count in counts)
    pays = apart < bits(np.sum(counts, axis=0), low, high)
    encoder.put(np.array([pays]), _EITHER)
    if pays:
        for side in levels:
            put(encoder, side, 0, _OCTAVES)
    for group in groups if pays else [symbols.ravel()]:
        put(encoder, group, low, high)


def take_matrix(decoder: Decoder, shape: tuple[int, int], low: int, high: int) -> NDArray[np.int32]:
    """Read the integers that `put_matrix` wrote.

    Raises:
        FrameError: no `put_matrix` writes such bytes.
    """
    rows, columns = shape
    if not _may_sort(shape) or not decoder.take(_EITHER, 1)[0]:
        return take(decoder, rows * columns, low, high).reshape(shape)
    groups = _Groups(take(decoder, rows, 0, _OCTAVES), take(decoder, columns, 0, _OCTAVES))
    return groups.join([take(decoder, count, low, high) for count in groups.counts])


class _Groups:
    """The cells of a matrix, grouped by the sum of the levels of their row and their column."""

    def __init__(self, rows: Levels, columns: Levels) -> None:
        self._rows, self._columns = np.argsort(rows, kind="stable"), np.argsort(columns, kind="stable")
        blocks: dict[int, list[tuple[slice, slice]]] = {}
        for (row, across), (column, down) in product(_runs(rows), _runs(columns)):
            blocks.setdefault(row + column, []).append((across, down))
        self._groups = [blocks[level] for level in sorted(blocks)]
        self.counts = [sum(_cells(block) for block in group) for group in self._groups]

    def split(self, matrix: Integers) -> list[Integers]:
        ordered = matrix[self._rows][:, self._columns]
        return [np.concatenate([ordered[block].ravel() for block in group]) for group in self._groups]

    def join(self, groups: list[NDArray[np.int32]]) -> NDArray[np.int32]:
        """Return the matrix that `split` split."""
        ordered = np.empty((len(self._rows), len(self._columns)), np.int32)
        for group, blocks in zip(groups, self._groups, strict=True):
            ends = np.cumsum([_cells(block) for block in blocks])[:-1]
            for block, part in zip(blocks, np.split(group, ends), strict=True):
                ordered[block] = part.reshape(ordered[block].shape)
        matrix = np.empty_like(ordered)
        matrix[np.ix_(self._rows, self._columns)] = ordered
        return matrix


def _may_sort(shape: tuple[int, ...]) -> bool:
    return min(shape) > 1 and shape[0] * shape[1] >= _SMALLEST


def _levels(sizes: NDArray[np.float32]) -> Levels:
    """Return octaves above the smallest; only the sender needs them, so they may differ between machines."""
    octaves = np.rint(np.log2(sizes + np.float32(0.01))).astype(np.int32)
    levels: Levels = np.minimum(octaves - octaves.min(), _OCTAVES)
    return levels


def _runs(levels: Levels) -> list[tuple[int, slice]]:
    """Return each level with its slice of the sorted levels."""
    found, counts = np.unique(levels, return_counts=True)
    edges = [0, *np.cumsum(counts).tolist()]
    return [(int(level), slice(*edge)) for level, edge in zip(found, pairwise(edges), strict=True)]


def _cells(block: tuple[slice, slice]) -> int:
    across, down = block
    return int((across.stop - across.start) * (down.stop - down.start))

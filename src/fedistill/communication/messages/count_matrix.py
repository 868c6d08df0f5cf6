"""Matrices of counts in a message, most of them zero, coded without loss."""

from dataclasses import dataclass

import numpy as np

from fedistill.communication.entropy_coding.adaptive_model import Bools, Counts, Question, Table
from fedistill.communication.entropy_coding.symbol_io import SymbolIO, SymbolReader, SymbolWriter
from fedistill.communication.messages.integer_arrays import IntegerArray
from fedistill.communication.tensor_specs import Classes
from fedistill.errors import FrameError

_ABOVE = 16
"""Contexts by the sum of the counts above a cell: 0 … 14, and 15 or more."""
_ROWS = 64
"""Rows with contexts of their own; all others share those of the last."""
_RANKS = 32
"""Contexts by the place of a column, in powers of two: words are often numbered by frequency."""
_REMEMBERED = 1 << 11
_EXPECTED = 3
"""Of 16 cells in a context that is new, so many are expected to be positive."""
_SYMBOLS = 8
"""Positive counts below this, from the least one on, are symbols; greater ones follow in binary digits."""
_DIGITS = 31
_MOST_EXAMPLE = 1 << 24
_EVEN = np.ones(2, np.int64)


@dataclass(frozen=True)
class CountMatrix(IntegerArray):
    """Counts (rows, columns), flat and row by row: each is 0, or from ``least`` to 2**31 - 1.

    A row of zeros takes one symbol. Of the others, first is coded which counts are positive, given the sum of
    the counts above in the same column together with the row, or with the place of the column; then how
    large these are.

    Attributes:
        most: the greatest sum that a reader accepts.
    """

    rows: int
    columns: int
    most: int
    least: int = 1

    def write(self, values: Classes) -> bytes:
        if len(values) != self.rows * self.columns:
            raise ValueError(f"{len(values)} counts are not a matrix of {self.rows} by {self.columns}")
        if wrong := values[(values < 0) | (values > 0) & (values < self.least)].tolist():
            raise ValueError(f"a count is {wrong[0]}, and neither 0 nor at least {self.least}")
        writer = SymbolWriter()
        _Model(self).code(writer, values.reshape(self.rows, self.columns))
        return writer.finish()

    def read(self, payload: bytes) -> Classes:
        reader = SymbolReader(payload)
        values = _Model(self).code(reader, np.zeros((self.rows, self.columns), np.int64))
        reader.finish()
        if values.sum() > self.most:
            raise FrameError(f"the counts add up to {values.sum()}, more than {self.most}")
        return values.reshape(-1)

    def example(self) -> Classes:
        """Return counts as of words in texts, more evenly spread than most, to be on the safe side."""
        random = np.random.default_rng(0)
        shares = 1 / (np.arange(self.columns) + 10)
        total = min(self.most, _MOST_EXAMPLE)
        values = np.zeros((self.rows, self.columns), np.int64)
        for row in range(self.rows):
            share = total // self.rows + (row < total % self.rows)
            values[row] = random.multinomial(share, random.permutation(shares) / shares.sum())
        return np.where(values < self.least, 0, values).reshape(-1)


class _Model:
    """What has been seen of one matrix so far."""

    def __init__(self, matrix: CountMatrix) -> None:
        self._least = matrix.least
        self._by_row = min(matrix.rows, _ROWS) * _ABOVE
        experts = [(self._by_row, _REMEMBERED), (_RANKS * _ABOVE, _REMEMBERED)]
        self._positive = Question(experts, _EXPECTED, None)
        self._empty, self._size, self._digits = Counts(1, 2), Counts(_ABOVE, _SYMBOLS), Counts(1, _DIGITS)
        self._ranks = np.minimum(_log2(np.arange(1, matrix.columns + 1)), _RANKS - 1)

    def code(self, io: SymbolIO, values: Table) -> Table:
        """Write a matrix, or read one of this shape."""
        coded = np.zeros_like(values)
        for row, counts in enumerate(values):
            if self._empty.code(io, np.array([not counts.any()], np.int64), np.zeros(1, np.int64))[0]:
                continue
            above = coded.sum(axis=0)
            places = np.flatnonzero(self._code_positive(io, counts > 0, above, min(row, _ROWS - 1)))
            coded[row, places] = self._code_sizes(io, counts[places], above[places])
        return coded

    def _code_positive(self, io: SymbolIO, positive: Bools, above: Table, row: int) -> Bools:
        above = np.minimum(above, _ABOVE - 1)
        contexts = [row * _ABOVE + above, self._by_row + self._ranks * _ABOVE + above]
        return self._positive.code(io, positive, np.stack(contexts))

    def _code_sizes(self, io: SymbolIO, counts: Table, above: Table) -> Table:
        last = _SYMBOLS - 1
        contexts = np.minimum(_log2(above + 1), _ABOVE - 1)
        symbols = self._size.code(io, np.minimum(counts - self._least, last), contexts)
        large = np.flatnonzero(symbols == last)
        rest = np.maximum(counts[large] - self._least - last + 1, 1)
        digits = self._digits.code(io, _log2(rest), np.zeros_like(rest))
        found = 1 << digits
        for digit in range(int(digits.max(initial=0))):
            here = np.flatnonzero(digits > digit)
            found[here] |= io.code(rest[here] >> digit & 1, _EVEN).astype(np.int64) << digit
        symbols[large] += found - 1
        return symbols + self._least


def _log2(values: Table) -> Table:
    """Return logarithms to base 2 of integers from 1 to 2**52, rounded down; exact on every machine."""
    return np.frexp(values.astype(np.float64))[1].astype(np.int64) - 1

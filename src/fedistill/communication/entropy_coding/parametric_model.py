"""Models for integers whose distribution has a known shape: fitted at first, then learned while coding.

The first integers are coded with the best of 192 fixed tables: geometric (Laplace), Gaussian and
heavy-tailed, each in 64 widths; one byte names it. Coded integers are counted, and the table is updated
after 256, 512, 1,024 … integers, so that long sequences take about their own entropy without a histogram
being sent, and short ones only one byte more. The places of kept numbers are coded as gaps in the same way,
starting from the geometric distribution that follows from how many there are.

Tables come from integer recurrences alone, so they are equal on every machine.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fedistill.communication.entropy_coding.range_coder import Decoder, Encoder, Integers
from fedistill.errors import FrameError

Table = NDArray[np.int64]
Places = NDArray[np.int64]
Flags = NDArray[np.bool_]

_WIDTHS = 64
_UNIT = 256  # widths are integers in units of 1/256
_PEAK = 1 << 32  # height of a table before it is scaled to its total
_TOTAL = 1 << 18  # sum of a prior, which later counts as much as 32 integers
_PRIOR = 32
_FIRST = 256
_FIRST_GAPS = 64
_LAST = 1 << 21  # no counting beyond: frequencies stay below 2**40
_NEVER = 1 << 62
_LONGEST_GAP = 4096
_ANY_PRIOR = np.ones(3 * _WIDTHS, np.int64)


def put(encoder: Encoder, symbols: Integers, low: int, high: int) -> None:
    """Write integers (n,) from ``low`` to ``high``; ``low`` is 0 or -``high``."""
    if not len(symbols):
        return
    symbols = (symbols - low).astype(np.int32, copy=False)
    blocks = [symbols[start:stop] for start, stop in pairwise(_edges(len(symbols)))]
    counted = [np.bincount(block, minlength=high - low + 1) for block in blocks]
    best = int(np.argmin(_costs(low, high) @ np.sum(counted, axis=0)))
    encoder.put(np.array([best]), _ANY_PRIOR)
    table = priors(low, high)[best] * _PRIOR
    for block, counts in zip(blocks, counted, strict=True):
        encoder.put(block, table)
        table = table + counts * _TOTAL


def take(decoder: Decoder, count: int, low: int, high: int) -> NDArray[np.int32]:
    """Read the ``count`` integers that `put` wrote.

    Raises:
        FrameError: no `put` writes such bytes.
    """
    symbols = np.empty(count, np.int32)
    if not count:
        return symbols
    table = priors(low, high)[decoder.take(_ANY_PRIOR, 1)[0]] * _PRIOR
    for start, stop in pairwise(_edges(count)):
        block = decoder.take(table, stop - start)
        symbols[start:stop] = block
        if stop < count:
            table = table + np.bincount(block, minlength=len(table)) * _TOTAL
    symbols += low
    return symbols


def put_places(encoder: Encoder, places: Places, count: int) -> None:
    """Write places (k,): ascending, all different, from 0 to ``count`` - 1; the reader must know k."""
    if not len(places):
        return
    model = _Gaps(len(places), count)
    gaps = np.diff(places, prepend=-1) - 1
    whole, rest = np.divmod(gaps, model.longest)
    tokens = np.full(len(places) + int(whole.sum()), model.longest, np.int32)
    tokens[np.cumsum(whole + 1) - 1] = rest
    while len(tokens):
        block, tokens = np.split(tokens, [model.room])
        encoder.put(block, model.table)
        model.count(block)


def take_places(decoder: Decoder, kept: int, count: int) -> Places:
    """Read the ``kept`` places, 0 to ``count`` - 1, that `put_places` wrote.

    Raises:
        FrameError: no `put_places` writes such bytes.
    """
    found: list[Places] = []
    if not kept:
        return np.zeros(0, np.int64)
    model = _Gaps(kept, count)
    at, left = -1, kept
    while left:
        tokens = decoder.take(model.table, min(left, model.room))
        model.count(tokens)
        skips = tokens == model.longest
        ends = at + np.cumsum(np.where(skips, model.longest, tokens + 1), dtype=np.int64)
        at = int(ends[-1])
        if at >= count:
            raise FrameError(f"a place is not below {count}")
        found.append(ends[~skips])
        left -= len(found[-1])
    return np.concatenate(found)


def put_signs(encoder: Encoder, negative: Flags) -> None:
    """Write signs (n,) as changes from one to the next, since neighbours in an update tend to agree."""
    put(encoder, changes(negative).view(np.int8), 0, 1)


def take_signs(decoder: Decoder, count: int) -> Flags:
    """Read the ``count`` signs that `put_signs` wrote; True is negative."""
    return unchanged(take(decoder, count, 0, 1).astype(bool))


def changes(flags: Flags) -> Flags:
    """Return where each of the flags (n,) differs from the one before; the first, from False."""
    return np.diff(flags, prepend=False)


def unchanged(changes: Flags) -> Flags:
    """Return the flags (n,) that have these changes."""
    sums = np.cumsum(changes, dtype=np.uint8)  # overflow does not change parity
    return (sums & 1).astype(bool)


def histogram(symbols: Integers, low: int, high: int) -> Table:
    """Return how often each integer from ``low`` to ``high`` occurs."""
    return np.bincount(symbols - low, minlength=high - low + 1)


def bits(counts: Table, low: int, high: int) -> float:
    """Return about how many bits `put` writes: only for choices of a sender, as machines may differ."""
    return 8 + float(np.min(_costs(low, high) @ counts))


@lru_cache(maxsize=64)
def priors(low: int, high: int) -> Table:
    """Return the fixed tables (192, high - low + 1); each has a sum of about 2**18 and no zeros."""
    heights = np.concatenate([np.stack(list(family), axis=1) for family in _families(high)])
    if low:
        heights = np.concatenate([heights[:, :0:-1], heights], axis=1)
    tables: Table = heights * _TOTAL // heights.sum(axis=1, keepdims=True) + 1
    return tables


def _families(high: int) -> Iterator[Iterator[Table]]:
    """Yield heights at 0 … ``high`` for all widths: geometric, Gaussian, and falling with the cube."""
    widths = [8]
    for _ in range(_WIDTHS - 1):
        widths.append(widths[-1] + max(1, widths[-1] // 5))
    width = np.array(widths)
    yield _geometric(width, high)
    yield _gaussian(width, high)
    yield _heavy(width, high)


def _geometric(width: Table, high: int) -> Iterator[Table]:
    height = np.full_like(width, _PEAK)
    for _ in range(high + 1):
        yield height
        height = height * width // (width + _UNIT)


def _gaussian(width: Table, high: int) -> Iterator[Table]:
    height = np.full_like(width, _PEAK)
    ratio = (width << 30) // (width + _UNIT)
    square = ratio * ratio >> 30
    for _ in range(high + 1):
        yield height
        height, ratio = height * ratio >> 30, ratio * square >> 30


def _heavy(width: Table, high: int) -> Iterator[Table]:
    height = np.full_like(width, _PEAK)
    for at in range(high + 1):
        yield height
        height = height * (at * _UNIT + width) // (at * _UNIT + width + 3 * _UNIT)


@lru_cache(maxsize=64)
def _costs(low: int, high: int) -> NDArray[np.float64]:
    """Return the bits of each integer under each prior. Only the sender needs them, and sends its choice."""
    tables = priors(low, high)
    return -np.log2(tables / tables.sum(axis=1, keepdims=True))  # type: ignore[no-any-return]  # NumPy's


def _edges(count: int) -> list[int]:
    """Return where tables are updated: 0, 256, 512, 1,024 … and the end."""
    edges = [0]
    while (edge := max(_FIRST, 2 * edges[-1])) < min(count, _LAST + 1):
        edges.append(edge)
    return [*edges, count]


class _Gaps:
    """The model of gaps: geometric at first, then by the counts of each class of lengths.

    A token is a gap, or ``longest`` if there is no place among the next ``longest``, and the gap continues.
    A geometric distribution has no memory, so this costs nothing. Kept numbers form clusters, which the
    counts learn.
    """

    def __init__(self, kept: int, count: int) -> None:
        self.longest = min(_LONGEST_GAP, 8 * (count // kept) + 8)
        heights = np.maximum(_powers(count - kept, count, self.longest + 1), 1)
        self._class = _length_classes(self.longest)
        masses = np.bincount(self._class, weights=heights).astype(np.int64)
        masses[-1] = min(int(masses[-1]) * count // kept, 1 << 40)
        self._weights = _PRIOR * ((masses << 18) // masses.sum() + 1)
        masses[-1] = heights[-1] = 1
        self._heights, self._masses = heights, masses
        self._seen, self._edge = 0, _FIRST_GAPS
        self._mend()

    @property
    def room(self) -> int:
        """The number of tokens until the table is updated."""
        return self._edge - self._seen

    def count(self, tokens: Integers) -> None:
        self._weights += np.bincount(self._class[tokens], minlength=len(self._weights)) * _TOTAL
        self._seen += len(tokens)
        if not self.room:
            self._edge = 2 * self._edge if self._edge < _LAST else _NEVER
            self._mend()

    def _mend(self) -> None:
        self.table: Table = self._heights * self._weights[self._class] // self._masses[self._class] + 1


@lru_cache(maxsize=64)
def _length_classes(longest: int) -> Table:
    """Return the class of each token: gaps between 1, 2, 3, 4, 6, 8, 12, 16 …, and one for ``longest``."""
    bounds = [1, 2, 3]
    while bounds[-1] <= longest:
        bounds.append(2 * bounds[-2])
    classes = np.searchsorted(bounds, np.arange(1, longest + 2), side="right") - 1
    classes[-1] = classes[-2] + 1
    return classes


def _powers(numerator: int, denominator: int, length: int) -> Table:
    """Return (numerator / denominator) ** 0 … length - 1, in units of 2**-20."""
    powers = np.array([1 << 30])
    ratio = (numerator << 30) // denominator
    while len(powers) < length:
        powers = np.concatenate([powers, powers * ratio >> 30])
        ratio = ratio * ratio >> 30
    return powers[:length] >> 10

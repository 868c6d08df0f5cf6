"""Models that learn while they code: counts of symbols in contexts, and mixed predictions of a yes or no.

Both are updated after each block, so that a block takes a few vector operations. All arithmetic is on
integers, so that both sides compute the same.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from fedistill.communication.entropy_coding.range_coder import Integers
from fedistill.communication.entropy_coding.symbol_io import SymbolIO
from fedistill.state import State

Bools = NDArray[np.bool_]
Table = NDArray[np.int64]

FIRST_BLOCK = 16
_ONE = 1 << 16  # a probability of 1
_LEAST = 24  # the least probability of an answer
_BIT = 256  # log-odds of one bit
_FAR = 16 * _BIT
_FULL = 1 << 14  # a weight of 1
_RATE = 2000  # how slowly weights are learned
_UNIT = 16  # what one answer adds to a count
_CHUNK = 1 << 18
_MOST = 1024  # counts of a context are halved when their mean exceeds this


def blocks(count: int, most: int | None = None) -> Iterator[slice]:
    """Yield blocks of ``count`` samples: 16 at first, later a third of all before, but at most ``most``."""
    start = 0
    while start < count:
        stop = min(count, start + max(FIRST_BLOCK, min(start // 3, most or count)))
        yield slice(start, stop)
        start = stop


class Question:
    """The probability of a yes, mixed from what several experts have counted."""

    def __init__(self, experts: Sequence[tuple[int, int]], prior: int, state: State | None) -> None:
        """``experts``: for each, its number of contexts and the most answers that it counts in one."""
        sizes, limits = zip(*experts, strict=True)
        self._limits = np.repeat(np.array(limits) * _UNIT, sizes)
        self._prior = prior
        self._asked = np.full(len(self._limits), _UNIT)
        self._yes = np.full(len(self._limits), prior)
        self._weights = np.full(len(sizes), _FULL * 6 // 5 // len(sizes))
        if state is not None:
            asked = state["at"].numpy()
            self._asked[asked], self._yes[asked] = state["asked"].numpy(), state["yes"].numpy()
            self._weights = state["weights"].numpy().astype(np.int64)

    def code(self, io: SymbolIO, answers: Bools, contexts: Table) -> Bools:
        """Write answers (n,), or read as many, given each expert's context (experts, n)."""
        coded = np.empty(len(answers), np.int64)
        log_odds, chance_of = _tables()
        for block in blocks(len(answers)):
            here = contexts[:, block]
            opinions = log_odds[self._yes[here] * _ONE // self._asked[here]]
            mixed = (self._weights @ opinions) // _FULL
            chances = chance_of[np.minimum(np.maximum(mixed, -_FAR), _FAR) + _FAR]
            tables = np.empty((len(chances), 2), np.int64)
            tables[:, 0], tables[:, 1] = _ONE - chances, chances
            coded[block] = io.code(answers[block].astype(np.int32), tables)
            self._learn(opinions @ (coded[block] * _ONE - chances), len(chances))
            self._count(coded[block], here)
        return coded.astype(np.bool_)

    def _learn(self, slopes: Table, count: int) -> None:
        step = slopes // (_RATE * math.isqrt(_BIT * (count + 10)))
        self._weights = np.minimum(np.maximum(self._weights + step, -4 * _FULL), 4 * _FULL)

    def _count(self, answers: Table, contexts: Table) -> None:
        if contexts.size < len(self._limits):
            # Of few answers, only their contexts are looked at; a place that occurs twice is written twice.
            at = contexts.ravel()
            np.add.at(self._asked, at, _UNIT)
            np.add.at(self._yes, contexts[:, answers > 0].ravel(), _UNIT)
            over = at[self._asked[at] > self._limits[at]]
        else:
            found = np.bincount((contexts * 2 + answers).ravel(), minlength=2 * len(self._limits))
            self._yes += found[1::2] * _UNIT
            self._asked += (found[::2] + found[1::2]) * _UNIT
            over = np.flatnonzero(self._asked > self._limits)
        self._yes[over] = self._yes[over] * self._limits[over] // self._asked[over]
        self._asked[over] = self._limits[over]

    def state(self) -> State:
        """Return the counts of the contexts in which anything was asked: of thousands, mostly a few dozen."""
        at = np.flatnonzero((self._asked != _UNIT) | (self._yes != self._prior))
        counts = {"asked": self._asked[at], "yes": self._yes[at]}
        places = {"at": at, "weights": self._weights}
        return {name: torch.from_numpy(values.astype(np.int16)) for name, values in counts.items()} | {
            name: torch.from_numpy(values.astype(np.int32)) for name, values in places.items()
        }


class Counts:
    """Symbols 0 … A-1, coded by their counts in each of K contexts, which are updated block by block."""

    def __init__(self, contexts: int, symbols: int, state: torch.Tensor | None = None) -> None:
        self._counts = np.zeros((contexts, symbols), np.int64)
        if state is not None:
            self._counts += state.numpy()
        self._totals = self._counts.sum(axis=1)
        self._most = _MOST * symbols
        self._block = max(1, _CHUNK // symbols)

    def code(self, io: SymbolIO, symbols: Integers, contexts: Table) -> Table:
        """Write symbols (n,), or read as many, in contexts (n,)."""
        coded = np.empty(len(symbols), np.int64)
        for block in blocks(len(symbols), self._block):
            at = contexts[block]
            tables = self._counts[at if len(self._counts) > 1 else 0]
            coded[block] = io.code(symbols[block], 2 * tables + 1)
            np.add.at(self._counts, (at, coded[block]), 1)
            self._totals += np.bincount(at, minlength=len(self._totals))
            over = np.flatnonzero(self._totals > self._most)
            self._counts[over] >>= 1
            self._totals[over] = self._counts[over].sum(axis=1)
        return coded

    def state(self) -> torch.Tensor:
        return torch.from_numpy(self._counts.astype(np.int32))


@lru_cache(maxsize=1)
def _tables() -> tuple[Table, Table]:
    """Return the log-odds of probabilities 0 … 65535 of 65536, and the inverse for log-odds -4096 … 4096."""
    log_odds: Table = _log2(np.arange(_ONE).clip(1)) - _log2(np.arange(_ONE, 0, -1))
    back = np.searchsorted(log_odds, np.arange(-_FAR, _FAR + 1))
    return log_odds, back.clip(_LEAST, _ONE - _LEAST)


def _log2(values: Table) -> Table:
    """Return logarithms of integers 1 … 65536 in units of 1/256, rounded down: by squaring, bit by bit."""
    whole: Table = np.sum([values >> place > 0 for place in range(1, 17)], axis=0)
    mantissa, result = (values << 30) >> whole, whole
    for _ in range(_BIT.bit_length() - 1):
        mantissa = mantissa * mantissa >> 30
        bit = mantissa >> 31
        mantissa >>= bit
        result = result * 2 + bit
    return result

"""Class probabilities rounded to integers whose sum is 2**b - 1."""

import numpy as np
from numpy.typing import NDArray

from fedistill.communication.entropy_coding.adaptive_model import Table
from fedistill.communication.tensor_specs import Classes, Floats

Random = np.random.Generator

_CHUNK = 1 << 18
_SORTED = 16  # a part of a row that is sorted whole, since to partition it first would take as long


def distributions(values: Floats) -> NDArray[np.float64]:
    """Return rows (n, C) scaled to a sum of 1, whatever they are; a row without any mass becomes uniform."""
    usual = values.size > 0 and values.min() >= 0 and np.isfinite(values.max())
    cleaned = values if usual else np.where(np.isfinite(values), values, 0).clip(0)
    positive = cleaned.astype(np.float64)
    totals = positive.sum(axis=1, keepdims=True)
    if usual and totals.min() > 0:
        positive /= totals
        return positive
    uniform = np.full_like(positive, 1 / max(1, values.shape[1]))
    probs: NDArray[np.float64] = np.divide(positive, totals, out=uniform, where=totals > 0)
    return probs


def quantize(values: Floats, levels: int, random: Random) -> Classes:
    """Return the nearest (L1) rows (n, C) of integers whose sum is ``levels``: CFD's quantizer, eq. 10-11.

    Every entry is rounded down, and the entries with the largest remainders are then raised by 1 until the
    sum is right. Ties are broken at random, as in the paper, so that even rows are even on average.
    """
    rows = np.empty(values.shape, np.int64)
    step = max(1, _CHUNK // max(1, values.shape[1]))
    for start in range(0, len(values), step):
        rows[start : start + step] = _quantize(distributions(values[start : start + step]), levels, random)
    return rows


def quantize_top(values: Floats, k: int, levels: int, random: Random) -> Table:
    """Return (n, 2k): the k most likely classes of each row (n, C), followed by their probabilities.

    The probabilities become integers, rounded together with the rest by largest remainder. A class whose
    probability becomes 0 is written as 0, unless it is the first. Classes that are equally likely are in
    random order.
    """
    found = np.empty((len(values), 2 * k), np.int64)
    step = max(1, _CHUNK // max(1, values.shape[1]))
    for start in range(0, len(values), step):
        probs = distributions(values[start : start + step])
        classes = _descending(probs, k, random)
        best = np.take_along_axis(probs, classes, axis=1)
        rest = (1 - best.sum(axis=1, keepdims=True)).clip(0) if k < values.shape[1] else best[:, :0]
        masses = _quantize(np.concatenate([best, rest], axis=1), levels, None)[:, :k]
        classes[:, 1:][masses[:, 1:] == 0] = 0
        found[start : start + step] = np.concatenate([classes, masses], axis=1)
    return found


def largest_first(rows: Classes, k: int) -> Table:
    """Return (n, 2k): the classes of the entries of rows (n, C) that are not 0, followed by these entries.

    The largest come first, and of equal ones the first class. At most k entries of a row are not 0; where
    there are fewer, class and entry are 0.
    """
    found = np.zeros((len(rows), 2 * k), np.int64)
    row, classes = np.nonzero(rows)
    entries = rows[row, classes]
    order = np.lexsort((classes, -entries, row))
    counts = np.bincount(row, minlength=len(rows))
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    found[row, place] = classes[order]
    found[row, k + place] = entries[order]
    return found


def _quantize(probs: NDArray[np.float64], levels: int, random: Random | None) -> Table:
    """Round rows (n, C); without ``random``, the first of entries with equal remainders are raised."""
    shares = probs * levels
    rows = np.floor(shares).astype(np.int64)
    missing = levels - rows.sum(axis=1, keepdims=True)
    looked_at = probs.shape[1] if random is None else int(missing.max(initial=0)) + 1
    by_remainder = _ascending(rows - shares, looked_at)
    up = np.arange(by_remainder.shape[1]) < missing
    if random is not None:
        remainders = np.take_along_axis(shares - rows, by_remainder, axis=1)
        alike, edge = remainders[:, 1:] == remainders[:, :-1], up[:, :-1] > up[:, 1:]
        tied = np.flatnonzero((alike & edge).any(axis=1))
        shuffled = _shuffled_order(rows[tied] - shares[tied], random)
        by_remainder[tied] = shuffled[:, : by_remainder.shape[1]]
    np.put_along_axis(rows, by_remainder, np.take_along_axis(rows, by_remainder, axis=1) + up, axis=1)
    return rows


def _descending(probs: NDArray[np.float64], k: int, random: Random) -> Table:
    """Return the k most likely classes of each row (n, C), equally likely ones in random order."""
    order = np.argsort(-probs, axis=1, kind="stable")
    ranked = np.take_along_axis(probs, order[:, : k + 1], axis=1)
    tied = np.flatnonzero(((ranked[:, 1:] == ranked[:, :-1]) & (ranked[:, 1:] > 0)).any(axis=1))
    order[tied] = _shuffled_order(-probs[tied], random)
    return order[:, :k]


def _ascending(keys: NDArray[np.float64], k: int) -> Table:
    """Return the places of the k smallest keys of each row (n, C), or of more, the smallest first.

    Of equal ones the first come first, but which of those at the edge are among them is not said.
    """
    if _SORTED * k >= keys.shape[1]:
        return np.argsort(keys, axis=1, kind="stable")
    places = np.sort(np.argpartition(keys, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(np.take_along_axis(keys, places, axis=1), axis=1, kind="stable")
    return np.take_along_axis(places, order, axis=1)


def _shuffled_order(keys: NDArray[np.float64], random: Random) -> Table:
    """Return the places of each row (n, C) in ascending order, those of equal keys in random order."""
    places = random.permuted(np.tile(np.arange(keys.shape[1]), (len(keys), 1)), axis=1)
    order = np.argsort(np.take_along_axis(keys, places, axis=1), axis=1, kind="stable")
    return np.take_along_axis(places, order, axis=1)

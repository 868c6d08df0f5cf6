"""Figures of several seeds as one: mean and standard deviation, median and range."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """The mean of some values, and their sample standard deviation (n - 1), which one value does not have."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return that of at least one value."""
        return cls(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class MedianAndRange:
    """The median of some values, the smallest and the largest; None stands for one that is beyond measure."""

    median: float | None
    smallest: float | None
    largest: float | None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "MedianAndRange":
        """Return that of at least one value; None counts as more than any number.

        So the median of three of which one is None is the larger of the two others, and that of two of which
        one is None is None.
        """
        known = [math.inf if value is None else value for value in values]
        found = (statistics.median(known), min(known), max(known))
        return cls(*(None if math.isinf(value) else value for value in found))

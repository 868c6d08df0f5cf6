"""Figures of several seeds, worked out by hand and held against numpy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedistill.experiment.spread import MedianAndRange, Spread


def test_mean_and_sample_standard_deviation() -> None:
    # Squared distances from 5 are 9, 1, 1, 1, 0, 0, 4, 16: 32 in all, and 32 / 7 with n - 1.
    spread = Spread.of([2, 4, 4, 4, 5, 5, 7, 9])
    assert spread.mean == 5
    assert spread.deviation == pytest.approx(math.sqrt(32 / 7))


def test_one_value_has_no_deviation_and_stays_what_it_is() -> None:
    assert Spread.of([1234]) == Spread(1234, None)
    assert type(Spread.of([1234]).mean) is int


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_as_numpy(values: list[float]) -> None:
    spread = Spread.of(values)
    assert spread.mean == pytest.approx(np.mean(values))
    assert spread.deviation == pytest.approx(np.std(values, ddof=1), abs=1e-12)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([7], (7, 7, 7)),
        ([5, 1, 3], (3, 1, 5)),
        ([4, 1, 2, 8], (3, 1, 8)),
        # What is beyond measure is above every number, wherever it stands.
        ([None, 1, 3], (3, 1, None)),
        ([1, None], (None, 1, None)),
        ([1, None, None, 2], (None, 1, None)),
        ([None, None], (None, None, None)),
    ],
)
def test_median_and_range(values: list[float | None], found: tuple[float | None, ...]) -> None:
    assert MedianAndRange.of(values) == MedianAndRange(*found)

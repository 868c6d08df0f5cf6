"""Arrays of whole numbers: without loss, near the number of bits they hold, and nothing else is read."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedistill.communication.messages.integer_arrays import Fitted, Subset, Symbols
from fedistill.errors import FrameError


@settings(max_examples=60)
@given(count=st.integers(0, 3000), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_subsets_come_back(count: int, share: float, seed: int) -> None:
    kept = int(share * count)
    places = np.sort(np.random.default_rng(seed).choice(count, kept, replace=False)).astype(np.int64)
    whole = Subset(kept, count)
    assert whole.read(whole.write(places)).tolist() == places.tolist()


@settings(max_examples=60)
@given(count=st.integers(0, 2000), below=st.integers(1, 70), seed=st.integers(0, 99))
def test_symbols_come_back(count: int, below: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, below, count)
    whole = Symbols(count, below)
    assert whole.read(whole.write(values)).tolist() == values.tolist()


@pytest.mark.parametrize("kept", [0, 20, 500, 1000, 1980, 2000])
def test_a_subset_costs_the_logarithm_of_their_number(kept: int) -> None:
    places = np.sort(np.random.default_rng(0).choice(2000, kept, replace=False)).astype(np.int64)
    bits = math.log2(math.comb(2000, kept))
    assert 8 * len(Subset(kept, 2000).write(places)) <= 1.02 * bits + 64


def test_classes_cost_their_entropy() -> None:
    """Nine of ten are of class 7: 0.47 + 0.1 log2(9) = 0.79 bits each."""
    random_ = np.random.default_rng(0)
    values = np.where(random_.random(5000) < 0.9, 7, random_.integers(0, 10, 5000))
    shares = np.bincount(values, minlength=10) / 5000
    bits = -5000 * float((shares[shares > 0] * np.log2(shares[shares > 0])).sum())
    assert 8 * len(Symbols(5000, 10).write(values)) <= 1.03 * bits + 64


def test_more_places_than_there_are() -> None:
    with pytest.raises(FrameError, match="a subset cannot have 7 of 6 elements"):
        Subset(7, 6).read(b"")


@pytest.mark.parametrize("whole", [Subset(5, 40), Symbols(12, 3), Symbols(4, 1), Subset(0, 0)])
def test_any_bytes_are_values_or_refused(whole: Subset | Symbols) -> None:
    draws = random.Random(0)
    for _ in range(300):
        payload = draws.randbytes(draws.randrange(12))
        try:
            values = whole.read(payload)
        except FrameError:
            continue
        if isinstance(whole, Subset):
            assert (np.diff(values) > 0).all()
            assert len(values) == whole.kept
            assert all(0 <= value < whole.count for value in values)
        else:
            assert len(values) == whole.count
            assert all(0 <= value < whole.below for value in values)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(0, 900), high=st.sampled_from([1, 7, 1022]), seed=st.integers(0, 99))
def test_fitted_integers_come_back(count: int, high: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(0, high / 4, count).round().clip(-high, high).astype(np.int64)
    whole = Fitted(count, high)
    assert whole.read(whole.write(values)).tolist() == values.tolist()


def test_fitted_integers_that_were_not_declared_are_not_written() -> None:
    with pytest.raises(ValueError, match="declares 3 integers from -7 to 7, but is to send 3 up to 8"):
        Fitted(3, 7).write(np.array([0, -8, 1], np.int64))
    with pytest.raises(ValueError, match="but is to send 2 up to 1"):
        Fitted(3, 7).write(np.array([0, 1], np.int64))

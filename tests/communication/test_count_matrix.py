"""Matrices of counts: without loss, near what they hold, and nothing else is read."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedistill.communication.messages.count_matrix import CountMatrix
from fedistill.errors import FrameError

MOST = 1 << 62


def sparse(rows: int, columns: int, share: float, largest: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    sizes = np.exp(random.uniform(0, np.log(largest), (rows, columns))).astype(np.int64)
    return np.where(random.random((rows, columns)) < share, sizes, 0).reshape(-1)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 300),
    share=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    largest=st.sampled_from([1, 9, 1000, (1 << 31) - 2]),
    least=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_counts_come_back(rows: int, columns: int, share: float, largest: int, least: int, seed: int) -> None:
    values = sparse(rows, columns, share, largest, seed)
    values[values < least] = 0
    matrix = CountMatrix(rows, columns, MOST, least)
    assert matrix.read(matrix.write(values)).tolist() == values.tolist()


def test_zeros_cost_a_symbol_per_row() -> None:
    matrix = CountMatrix(20, 5000, MOST)
    assert len(matrix.write(np.zeros(100_000, np.int64))) <= 8


def test_the_same_words_in_two_classes_cost_less_than_others() -> None:
    random = np.random.default_rng(0)
    row = np.where(random.random(4000) < 0.1, 1, 0)
    alike, unlike = np.concatenate([row, row]), np.concatenate([row, random.permutation(row)])
    matrix = CountMatrix(2, 4000, MOST)
    assert len(matrix.write(alike)) < 0.65 * len(matrix.write(unlike))


def test_frequent_words_first_cost_less_than_words_in_any_order() -> None:
    """As numbered by a tokenizer, and as hashed."""
    random = np.random.default_rng(0)
    row = (random.random(4000) < 20 / (np.arange(4000) + 20)).astype(np.int64)
    matrix = CountMatrix(1, 4000, MOST)
    assert len(matrix.write(row)) < 0.85 * len(matrix.write(random.permutation(row)))


def test_bernoulli_cells_cost_about_their_entropy() -> None:
    """One cell in twenty is 1: 0.286 bits each."""
    row = (np.random.default_rng(0).random(8000) < 0.05).astype(np.int64)
    bits = 8 * len(CountMatrix(1, 8000, MOST).write(row))
    assert 0.95 * 0.286 * 8000 <= bits <= 1.1 * 0.286 * 8000 + 100


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1, 0], "2 counts are not a matrix of 1 by 3"),
        ([0, -1, 0], "a count is -1, and neither 0 nor at least 2"),
        ([0, 1, 2], "a count is 1, and neither 0 nor at least 2"),
    ],
)
def test_what_was_not_declared_is_not_written(values: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CountMatrix(1, 3, MOST, least=2).write(np.array(values, np.int64))


def test_more_than_the_receiver_expects_is_refused() -> None:
    payload = CountMatrix(1, 3, MOST).write(np.array([4, 0, 7], np.int64))
    assert CountMatrix(1, 3, most=11).read(payload).tolist() == [4, 0, 7]
    with pytest.raises(FrameError, match="the counts add up to 11, more than 10"):
        CountMatrix(1, 3, most=10).read(payload)


def test_bytes_that_follow_are_refused() -> None:
    payload = CountMatrix(2, 9, MOST).write(sparse(2, 9, 0.5, 9, seed=0))
    with pytest.raises(FrameError):
        CountMatrix(2, 9, MOST).read(payload + bytes(range(1, 9)))


@pytest.mark.parametrize(("rows", "columns", "most"), [(5, 8192, 16_000), (1, 2, 0), (3, 4, 7)])
def test_an_example_has_as_many_words_as_there_may_be(rows: int, columns: int, most: int) -> None:
    matrix = CountMatrix(rows, columns, most)
    example = matrix.example()
    assert (len(example), int(example.sum())) == (rows * columns, most)
    assert matrix.read(matrix.write(example)).tolist() == example.tolist()

"""Low rank: what is cut and what is not, and what the factors are."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedistill.communication.codecs.base import Sender
from fedistill.communication.codecs.low_rank import LowRank, LowRankSettings
from fedistill.communication.entropy_coding.range_coder import Encoder
from fedistill.communication.tensor_specs import Content, Floats, SharedKnowledge, TensorSpec
from fedistill.errors import FrameError


def weights(*shapes: tuple[int, ...]) -> TensorSpec:
    return TensorSpec(Content.WEIGHTS, (sum(int(np.prod(shape)) for shape in shapes),), shapes)


def sent(values: Floats, spec: TensorSpec, **options: Any) -> tuple[bytes, Floats]:
    codec = LowRank(LowRankSettings(**options))
    known = SharedKnowledge(reference=np.zeros(spec.count, np.float32))
    payload = codec.encode(values.ravel().astype(np.float32), spec, known, Sender()).payload
    return payload, codec.decode(payload, spec, known).values


def outer(rows: int, columns: int, rank: int, seed: int = 0) -> Floats:
    random = np.random.default_rng(seed)
    return (random.normal(size=(rows, rank)) @ random.normal(size=(rank, columns))).astype(np.float32)


@pytest.mark.parametrize("shape", [(30, 40), (30, 10, 2, 2), (30, 40, 1)])
def test_a_matrix_of_rank_one_is_sent_as_two_vectors(shape: tuple[int, ...]) -> None:
    matrix = outer(30, 40, 1)
    payload, got = sent(matrix, weights(shape))
    assert len(payload) < 30 + 40 + 12
    assert np.linalg.norm(got - matrix.ravel()) < 0.02 * np.linalg.norm(matrix)


@settings(max_examples=25)
@given(rank=st.integers(1, 6), energy=st.floats(0.3, 0.99), seed=st.integers(0, 99))
def test_the_rest_is_within_what_may_be_lost(rank: int, energy: float, seed: int) -> None:
    matrix = outer(40, 30, rank, seed)
    _, got = sent(matrix, weights((40, 30)), energy=energy, levels=1023)
    lost = np.sum((got - matrix.ravel()) ** 2) / np.sum(matrix**2)
    assert lost <= 1 - energy + 0.001


def test_factors_that_are_too_long_are_not_sent_even_if_they_cost_less() -> None:
    """Every direction is asked for, and most are half the one before: 30 where 17 are the most."""
    random = np.random.default_rng(0)
    left, right = np.linalg.qr(random.normal(size=(30, 30)))[0], np.linalg.qr(random.normal(size=(40, 30)))[0]
    matrix = ((left * 0.5 ** np.arange(30)) @ right.T).astype(np.float32)
    _, got = sent(matrix, weights((30, 40)), energy=1)
    assert np.abs(got - matrix.ravel()).max() <= 0.51 * np.abs(matrix).max() / 127


def test_factors_that_cost_more_are_not_sent() -> None:
    """Twelve ones among zeros: twelve directions with two vectors each, where twelve places would do."""
    matrix = np.zeros((40, 40), np.float32)
    matrix[np.arange(12), np.arange(12)] = 1
    payload, got = sent(matrix, weights((40, 40)))
    np.testing.assert_array_equal(got, matrix.ravel())
    assert len(payload) <= len(sent(matrix, weights((1_600,)))[0]) + 2


def test_a_matrix_without_strong_directions_is_sent_whole() -> None:
    """Rank 28 of 40 holds 95 %; its factors have 2,240 numbers, the matrix 1,600."""
    matrix = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)
    payload, got = sent(matrix, weights((40, 40)))
    step = np.abs(matrix).max() / 127
    assert np.abs(got - matrix.ravel()).max() <= 0.51 * step
    assert len(payload) == pytest.approx(len(sent(matrix, weights((1_600,)))[0]), abs=4)


@pytest.mark.parametrize(
    "shapes", [[(6,)], [()], [(1, 6)], [(6, 1)], [(2, 2)], [(0, 3), (3, 0)], [(1, 1, 1)]]
)
def test_what_is_no_matrix_is_sent_whole(shapes: list[tuple[int, ...]]) -> None:
    spec = weights(*shapes)
    values = np.arange(1, spec.count + 1, dtype=np.float32)
    _, got = sent(values, spec)
    np.testing.assert_allclose(got, values, atol=0.51 * spec.count / 127)


def test_nothing_costs_next_to_nothing() -> None:
    payload, got = sent(np.zeros(1_205), weights((30, 40), (5,)))
    assert len(payload) <= 10
    assert not got.any()


@pytest.mark.parametrize("size", [1e-30, 1e30, 3e38])
def test_size_does_not_matter(size: float) -> None:
    matrix = outer(30, 40, 1)
    matrix *= np.float32(size) / np.abs(matrix).max()
    _, got = sent(matrix, weights((30, 40)))
    assert np.abs(got - matrix.ravel()).max() < 0.03 * size


def test_strong_directions_are_written_with_more_bits() -> None:
    """A weak second direction costs less than the first one did."""
    strong, weak = outer(200, 100, 1, 1), outer(200, 100, 1, 2) * np.float32(0.02)
    one = len(sent(strong, weights((200, 100)))[0])
    two = len(sent(strong + weak, weights((200, 100)), energy=1 - 1e-5)[0])
    assert 1.1 * one < two < 1.75 * one


def test_factors_longer_than_the_matrix_are_refused() -> None:
    """Of 10 by 10 numbers, rank 4 is the last whose factors have fewer; there is no table for another."""
    encoder = Encoder()
    encoder.put(np.array([5]), np.ones(6, np.int64))
    known = SharedKnowledge(reference=np.zeros(100, np.float32))
    codec = LowRank(LowRankSettings())
    with pytest.raises(FrameError):
        codec.decode(b"\1" + encoder.finish() + b"\xff" * 8, weights((10, 10)), known)


def test_bytes_of_version_1_are_read() -> None:
    """Written of a product of two vectors, and 0.5; a decomposition may come out otherwise elsewhere."""
    spec = weights((7, 6), (1,))
    payload = bytes.fromhex("012415d0609fd8676e3ad08760f3b0fde917787f4270cf29c0")
    got = (
        LowRank(LowRankSettings())
        .decode(payload, spec, SharedKnowledge(reference=np.zeros(43, np.float32)))
        .values
    )
    matrix = np.outer(np.arange(1, 8), [1, 2, -1, 0, 3, 1])
    np.testing.assert_allclose(got[:42].reshape(7, 6), matrix, atol=0.2)
    np.testing.assert_array_equal(got[[0, 41, 42]], np.array([0.9953911304473877, 6.967737674713135, 0.5]))

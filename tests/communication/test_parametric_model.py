"""Models of integers, places and signs: what is written is read, near its entropy, and nothing else is."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedistill.communication.entropy_coding.matrix_coder import put_matrix, take_matrix
from fedistill.communication.entropy_coding.parametric_model import (
    bits,
    histogram,
    priors,
    put,
    put_places,
    put_signs,
    take,
    take_places,
    take_signs,
)
from fedistill.communication.entropy_coding.range_coder import Decoder, Encoder
from fedistill.errors import FrameError

RANGES = [(0, 1), (-1, 1), (0, 240), (-7, 7), (-127, 127), (-1023, 1023)]


def written(symbols: np.ndarray, low: int, high: int) -> bytes:
    encoder = Encoder()
    put(encoder, symbols, low, high)
    return encoder.finish()


@settings(max_examples=60)
@given(
    count=st.integers(0, 5_000),
    bounds=st.sampled_from(RANGES),
    width=st.floats(0, 400),
    seed=st.integers(0, 999),
)
def test_integers_come_back(count: int, bounds: tuple[int, int], width: float, seed: int) -> None:
    low, high = bounds
    random = np.random.default_rng(seed)
    symbols = np.clip(np.rint(random.normal(size=count) * width), low, high).astype(np.int32)
    decoder = Decoder(written(symbols, low, high))
    np.testing.assert_array_equal(take(decoder, count, low, high), symbols)
    decoder.finish()


@settings(max_examples=60)
@given(data=st.data(), count=st.integers(0, 100_000))
def test_places_come_back(data: st.DataObject, count: int) -> None:
    kept = data.draw(st.one_of(st.integers(0, min(count, 5)), st.integers(0, count)))
    random = np.random.default_rng(kept)
    places = np.sort(random.choice(count, kept, replace=False)).astype(np.int64)
    if data.draw(st.booleans()) and kept:
        places = np.arange(kept) + data.draw(st.integers(0, count - kept))  # all in one cluster
    encoder = Encoder()
    put_places(encoder, places, count)
    decoder = Decoder(encoder.finish())
    np.testing.assert_array_equal(take_places(decoder, kept, count), places)
    decoder.finish()


@given(flags=st.lists(st.booleans(), max_size=1_000))
def test_signs_come_back(flags: list[bool]) -> None:
    encoder = Encoder()
    put_signs(encoder, np.array(flags, bool))
    np.testing.assert_array_equal(take_signs(Decoder(encoder.finish()), len(flags)), np.array(flags, bool))


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    bounds=st.sampled_from(RANGES),
    seed=st.integers(0, 999),
)
def test_matrices_come_back(shape: tuple[int, int], bounds: tuple[int, int], seed: int) -> None:
    low, high = bounds
    random = np.random.default_rng(seed)
    sizes = random.pareto(0.7, (shape[0], 1)) * random.pareto(0.7, (1, shape[1]))
    matrix = np.clip(np.rint(random.normal(size=shape) * sizes), low, high).astype(np.int32)
    encoder = Encoder()
    put_matrix(encoder, matrix, low, high)
    decoder = Decoder(encoder.finish())
    np.testing.assert_array_equal(take_matrix(decoder, shape, low, high), matrix)
    decoder.finish()


def test_counting_ends_before_tables_are_too_large() -> None:
    """More integers and places than are ever counted."""
    count = 2**21 + 1_000
    symbols = (np.arange(count) % 3 - 1).astype(np.int32)
    places = np.arange(count)
    encoder = Encoder()
    put(encoder, symbols, -1, 1)
    put_places(encoder, places, count + 5)
    decoder = Decoder(encoder.finish())
    np.testing.assert_array_equal(take(decoder, count, -1, 1), symbols)
    np.testing.assert_array_equal(take_places(decoder, count, count + 5), places)


def test_nothing_is_written_of_nothing() -> None:
    encoder = Encoder()
    put(encoder, np.zeros(0, np.int32), -3, 3)
    put_places(encoder, np.zeros(0, np.int64), 10)
    put_signs(encoder, np.zeros(0, bool))
    assert encoder.finish() == b""


def test_some_hundred_integers_cost_their_entropy_and_a_byte() -> None:
    """Sizes of a geometric series: among the tables to choose from is one that fits."""
    sizes = np.random.default_rng(0).geometric(0.3, size=1_000) - 1
    entropy = 1_000 * (-0.3 * math.log2(0.3) - 0.7 * math.log2(0.7)) / 0.3
    assert 8 * len(written(sizes.clip(max=127), 0, 127)) < 1.02 * entropy + 8 + 64


@pytest.mark.parametrize("peaks", [(-5, 5), (0, 1), (-7, -6)])
def test_integers_of_no_known_shape_are_learnt(peaks: tuple[int, int]) -> None:
    """Half are the one, half the other: one bit each, however badly the first table fits."""
    symbols = np.random.default_rng(0).choice(peaks, size=20_000).astype(np.int32)
    assert 20_000 < 8 * len(written(symbols, -7, 7)) < 1.06 * 20_000


def test_places_without_a_pattern_cost_their_entropy() -> None:
    count, kept = 100_000, 1_000
    places = np.sort(np.random.default_rng(0).choice(count, kept, replace=False))
    encoder = Encoder()
    put_places(encoder, places, count)
    chosen = (math.lgamma(count + 1) - math.lgamma(kept + 1) - math.lgamma(count - kept + 1)) / math.log(2)
    assert 8 * len(encoder.finish()) < 1.02 * chosen + 64


def test_places_in_clusters_cost_less() -> None:
    random = np.random.default_rng(0)
    alone = np.sort(random.choice(100_000, 1_000, replace=False))
    clusters = np.unique(np.sort(random.choice(2_000, 20, replace=False))[:, None] * 50 + np.arange(50))
    lengths = []
    for places in (alone, clusters):
        encoder = Encoder()
        put_places(encoder, places, 100_000)
        lengths.append(len(encoder.finish()))
    assert lengths[1] < lengths[0] / 4


def test_neighbours_of_one_sign_cost_less_than_a_bit() -> None:
    encoder = Encoder()
    put_signs(encoder, np.arange(8_000) // 100 % 2 == 1)
    assert len(encoder.finish()) < 1_000 / 8


@pytest.mark.parametrize("bounds", RANGES)
def test_tables_suit_the_coder(bounds: tuple[int, int]) -> None:
    """Integers, none 0, and small enough that with all that is counted they stay below 2**40."""
    tables = priors(*bounds)
    assert tables.shape == (192, bounds[1] - bounds[0] + 1)
    assert tables.min() >= 1
    assert (tables.sum(axis=1) <= 2**18 + tables.shape[1]).all()
    assert 32 * int(tables.max()) + 2**18 * 2**21 < 2**40


def test_the_estimate_is_the_length_of_short_sequences() -> None:
    symbols = np.clip(np.rint(np.random.default_rng(0).normal(size=256) * 3), -15, 15).astype(np.int32)
    assert 8 * len(written(symbols, -15, 15)) == pytest.approx(
        bits(histogram(symbols, -15, 15), -15, 15), abs=40
    )


@settings(max_examples=200)
@given(data=st.binary(max_size=200), kept=st.integers(0, 300), count=st.integers(1, 300))
def test_places_from_any_bytes_are_places_or_refused(data: bytes, kept: int, count: int) -> None:
    kept = min(kept, count)
    try:
        places = take_places(Decoder(data), kept, count)
    except FrameError:
        return
    assert len(places) == kept
    assert (np.diff(places) > 0).all()
    assert kept == 0 or 0 <= places[0] <= places[-1] < count


def test_a_place_beyond_the_end_is_refused() -> None:
    encoder = Encoder()
    put_places(encoder, np.array([90, 99]), 100)
    with pytest.raises(FrameError, match="not below 100"):
        take_places(Decoder(encoder.finish()[:-1] + b"\xff\xff"), 2, 100)


def test_the_bytes_are_those_of_version_1() -> None:
    encoder = Encoder()
    put(encoder, np.array([0, 3, -3, 1, 0, 0, -1, 2]), -3, 3)
    put_places(encoder, np.array([0, 4, 5, 99]), 100)
    put_signs(encoder, np.array([True, True, False, True]))
    assert encoder.finish().hex() == "4d4fd9d00a0b87bfde9e8b3c"

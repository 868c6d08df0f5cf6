"""The range coder: symbols come back, under models that are integers, for the bits that they are worth."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedistill.communication.entropy_coding.range_coder import Decoder, Encoder, ideal_bits
from fedistill.errors import FrameError

integers = st.integers(min_value=0, max_value=2**40)


@st.composite
def tables(draw: Any, most: int = 12) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Symbols (n,), and a table for each (n, A) or one for all (A,)."""
    size = draw(st.integers(2, 6))
    table = st.lists(integers, min_size=size, max_size=size).filter(any)
    symbols = draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=most))
    if draw(st.booleans()):
        return np.array(symbols), np.array(draw(table), np.int64)
    rows = [draw(table) for _ in symbols]
    return np.array(symbols), np.array(rows, np.int64)


def coded(parts: list[Any]) -> bytes:
    encoder = Encoder()
    for symbols, frequencies in parts:
        encoder.put(symbols, frequencies)
    return encoder.finish()


def bits_by_hand(symbols: Any, frequencies: Any) -> float:
    """Symbol by symbol in Python's own numbers."""
    bits = 0.0
    for place, symbol in enumerate(symbols.tolist()):
        table = (frequencies if frequencies.ndim == 1 else frequencies[place]).tolist()
        bits += min(24.0, math.log2(sum(table) / table[symbol])) if table[symbol] else 24.0
    return bits


@given(st.lists(tables(), min_size=1, max_size=4))
def test_symbols_come_back(parts: list[Any]) -> None:
    decoder = Decoder(coded(parts))
    for symbols, frequencies in parts:
        count = len(symbols) if frequencies.ndim == 1 else None
        assert decoder.take(frequencies, count).tolist() == symbols.tolist()
    decoder.finish()


@given(tables(most=200))
def test_ideal_bits_by_hand(part: Any) -> None:
    assert ideal_bits(*part) == pytest.approx(bits_by_hand(*part), abs=1e-6)


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.integers(2, 300), st.integers(0, 6))
def test_length_is_within_1_percent_or_16_bytes_of_the_ideal(seed: int, size: int, skew: int) -> None:
    random = np.random.default_rng(seed)
    frequencies = (random.random((3000, size)) ** skew * 2**20).astype(np.int64) + 1
    shares = frequencies / frequencies.sum(axis=1, keepdims=True)
    symbols = (shares.cumsum(axis=1) < random.random((3000, 1))).sum(axis=1).clip(max=size - 1)
    for kept in (0, 1, 10, 3000):
        ideal = ideal_bits(symbols[:kept], frequencies[:kept]) / 8
        length = len(coded([(symbols[:kept], frequencies[:kept])]))
        assert length <= (ideal * 1.01 if ideal > 1000 else ideal + 16)


def test_a_known_message() -> None:
    """Golden: what one release writes, another reads."""
    symbols = np.array([0, 1, 2, 1, 0, 2, 2, 1])
    one, many = np.array([5, 2, 1]), np.array([[1, 1], [3, 1], [1, 2**40], [0, 1]])
    data = coded([(symbols, one), (np.array([0, 0, 1, 0]), many)])
    assert data.hex() == "72d2e68aca1a4ca0"


@pytest.mark.parametrize("size", [2, 3, 256, 1000])
@pytest.mark.parametrize("largest", [1, 2**20, 2**40])
def test_a_symbol_of_frequency_0_costs_24_bits(size: int, largest: int) -> None:
    frequencies = np.zeros(size, np.int64)
    frequencies[-1] = largest
    symbols = np.zeros(100, np.int64)
    data = coded([(symbols, frequencies)])
    assert len(data) <= 100 * 3 * 1.01 + 16
    decoder = Decoder(data)
    assert decoder.take(frequencies, 100).tolist() == [0] * 100
    decoder.finish()
    assert ideal_bits(symbols, frequencies) == 2400


def test_nothing_costs_nothing() -> None:
    none = np.zeros(0, np.int64)
    assert coded([(none, np.array([1, 1])), (none, np.zeros((0, 4), np.int64))]) == b""
    decoder = Decoder(b"")
    assert decoder.take(np.array([1, 1]), 0).tolist() == []
    assert decoder.take(np.zeros((0, 4), np.int64)).tolist() == []
    decoder.finish()
    assert ideal_bits(none, np.array([1, 1])) == 0


@given(tables(most=60), st.integers(1, 40))
def test_bytes_that_are_left_over_are_refused(part: Any, more: int) -> None:
    symbols, frequencies = part
    decoder = Decoder(coded([part]) + b"\xff" * (more + 8))
    try:
        decoder.take(frequencies, len(symbols) if frequencies.ndim == 1 else None)
        decoder.finish()
    except FrameError:
        return
    raise AssertionError("bytes at the end are passed over")


@settings(max_examples=1000)
@given(st.binary(max_size=60), tables(most=60))
def test_any_bytes_give_symbols_or_a_frame_error(data: bytes, part: Any) -> None:
    symbols, frequencies = part
    size = frequencies.shape[-1]
    decoder = Decoder(data)
    try:
        found = decoder.take(frequencies, len(symbols) if frequencies.ndim == 1 else None)
        decoder.finish()
    except FrameError:
        return
    assert len(found) == len(symbols)
    assert ((found >= 0) & (found < size)).all()
    # What is read can be written, and is then read again.
    again = Decoder(coded([(found, frequencies)]))
    count = len(symbols) if frequencies.ndim == 1 else None
    assert again.take(frequencies, count).tolist() == found.tolist()


@given(tables(most=40))
def test_trailing_zeros_are_not_sent(part: Any) -> None:
    data = coded([part])
    assert not data.endswith(b"\0")
    symbols, frequencies = part
    for padded in (data, data + b"\0", data + b"\0" * 4):
        decoder = Decoder(padded)
        count = len(symbols) if frequencies.ndim == 1 else None
        assert decoder.take(frequencies, count).tolist() == symbols.tolist()


def test_inputs_are_not_changed() -> None:
    symbols, frequencies = np.array([0, 1]), np.array([[1, 2], [3, 4]])
    coded([(symbols, frequencies)])
    assert (symbols.tolist(), frequencies.tolist()) == ([0, 1], [[1, 2], [3, 4]])


def test_models_that_add_up_to_anything_are_the_same_where_their_shares_are() -> None:
    """Powers of two only move the exponent: no rounding differs."""
    symbols = np.arange(500) % 3
    frequencies = np.array([5, 2, 1])
    assert len({coded([(symbols, frequencies << shift)]) for shift in range(0, 38, 5)}) == 1

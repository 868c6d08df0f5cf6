"""Log-probabilities: by hand, against a plain loop, and what rounding costs."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedistill.communication.codecs.base import Sender
from fedistill.communication.codecs.int8 import Int8, Int8Settings
from fedistill.communication.codecs.log_probs import LogProbs, LogProbsSettings
from fedistill.communication.entropy_coding.adaptive_model import Counts
from fedistill.communication.entropy_coding.symbol_io import SymbolWriter
from fedistill.communication.tensor_specs import Content, Floats, SharedKnowledge, TensorSpec
from fedistill.errors import FrameError

NOTHING = SharedKnowledge()


def codec(bits: int = 8) -> LogProbs:
    return LogProbs(LogProbsSettings(bits=bits))


def spec_of(values: Floats) -> TensorSpec:
    return TensorSpec(Content.PROBS, values.shape)


def there_and_back(values: Any, bits: int = 8) -> tuple[int, Floats]:
    values = np.asarray(values, np.float32)
    payload = codec(bits).encode(values, spec_of(values), NOTHING, Sender()).payload
    return len(payload), codec(bits).decode(payload, spec_of(values), NOTHING).values


def divergence(probs: Floats, others: Floats) -> float:
    """The mean KL divergence of rows (n, C); a probability of 0 counts as 1e-7."""
    p, q = probs.astype(np.float64), np.maximum(others.astype(np.float64), 1e-7)
    return float(np.where(p > 0, p * np.log(np.maximum(p, 1e-300) / q), 0).sum(axis=1).mean())


def peaked(rows: int, classes: int = 10, scale: float = 4.0) -> Floats:
    logits = np.random.default_rng(0).standard_normal((rows, classes)) * scale
    probs: Floats = np.exp(logits - logits.max(axis=1, keepdims=True)).astype(np.float32)
    return probs / probs.sum(axis=1, keepdims=True)


def test_two_bits_by_hand() -> None:
    """The steps are 16/3 nats: 0, 5.33, 10.67 and 16; half of one, e^-2.67 or 0.069, is rounded up."""
    _, found = there_and_back([[0.5, 0.4, 0.1], [0.95, 0.05, 0.0], [0.0, 0.0, 0.0]], bits=2)
    one, three = math.exp(-16 / 3), math.exp(-16)
    # 0.1 / 0.5 = 0.2 is above 0.069 of the largest; 0.05 / 0.95 = 0.053 is below it.
    peak = np.array([1, one, three]) / (1 + one + three)
    expected = [[1 / 3] * 3, peak, [0] * 3]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


rows_of_any_kind = arrays.arrays(
    np.float32,
    st.tuples(st.integers(0, 12), st.sampled_from([2, 3, 10, 17, 65])),
    elements=st.sampled_from([0.0, 1e-30, 1e-7, 1e-3, 0.1, 0.25, 0.5, 1.0]) | st.floats(0, 1, width=32),
)


@given(rows_of_any_kind, st.integers(2, 12))
def test_rows_are_those_of_a_plain_loop(values: Floats, bits: int) -> None:
    _, found = there_and_back(values, bits)
    step = 16 / (2**bits - 1)
    for row, read in zip(values.tolist(), found.tolist(), strict=True):
        largest = max(row)
        if not largest:
            assert read == [0] * len(row)
            continue
        nats = [16 if not p else min(16, -math.log(p / largest)) for p in row]
        rounded = [math.exp(-step * round(value / step)) for value in nats]
        for got, own, exact in zip(read, rounded, nats, strict=True):
            halfway = abs(exact / step % 1 - 0.5) < 1e-6
            assert halfway or got == pytest.approx(own / sum(rounded), rel=0.1 if _near(nats, step) else 1e-5)


def _near(nats: list[float], step: float) -> bool:
    """Whether the last bits of a logarithm decide on one of them, and so on the sum."""
    return any(abs(value / step % 1 - 0.5) < 1e-6 for value in nats)


@given(rows_of_any_kind)
def test_the_order_of_classes_stays(values: Floats) -> None:
    _, found = there_and_back(values)
    for row, read in zip(values, found, strict=True):
        order = np.argsort(-row, kind="stable")
        assert (np.diff(read[order]) <= 0).all()


def test_peaked_rows_keep_their_small_probabilities_where_int8_has_zeros() -> None:
    """At eight bits of each, without the range coder, both take the same bytes."""
    values = peaked(2000)
    plain = Int8(Int8Settings(coded=False))
    payload = plain.encode(values, spec_of(values), NOTHING, Sender()).payload
    size, found = there_and_back(values)
    assert size < len(payload) == values.size
    assert divergence(values, plain.decode(payload, spec_of(values), NOTHING).values) > 5e-3
    # A 24th of a squared step of 16/255 nats is 1.6e-4; less where a row is peaked.
    assert divergence(values, found) < 8e-5


def test_five_bits_lose_less_than_int8_in_fewer_bytes() -> None:
    values = peaked(4000, scale=3.0)
    int8 = Int8(Int8Settings())
    payload = int8.encode(values, spec_of(values), NOTHING, Sender()).payload
    size, found = there_and_back(values, bits=5)
    assert size < len(payload)
    there = int8.decode(payload, spec_of(values), NOTHING).values
    assert divergence(values, found) < 0.4 * divergence(values, there)


def test_rows_alike_take_next_to_nothing() -> None:
    row = peaked(1)[0]
    assert there_and_back(np.tile(row, (2000, 1)))[0] < 2000


@pytest.mark.parametrize("payload", [b"", b"\xff" * 40, bytes(7)])
def test_other_bytes_are_refused_or_are_rows(payload: bytes) -> None:
    spec = TensorSpec(Content.PROBS, (6, 4))
    try:
        found = codec().decode(payload, spec, NOTHING).values
    except FrameError:
        return
    sums = found.sum(axis=1)
    assert (np.isclose(sums, 1, atol=1e-6) | (sums == 0)).all()


def test_a_class_as_likely_as_the_first_cannot_come_before_it() -> None:
    """Written by hand: the second of two classes is named as the most likely, and the first has a 0 too."""
    writer = SymbolWriter()
    nothing = np.zeros(1, np.int64)
    Counts(1, 3).code(writer, np.ones(1, np.int64), nothing)
    Counts(2 * 2 * 16, 4).code(writer, nothing, np.array([(1 * 2 + 0) * 16]))
    with pytest.raises(FrameError, match="comes before it"):
        codec(2).decode(writer.finish(), TensorSpec(Content.PROBS, (1, 2)), NOTHING)

"""Quantisers: hand-computed values, settings, probabilities and scores, hostile scales, golden payloads."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedistill.communication.codecs.base import Codec, NoSettings, Sender
from fedistill.communication.codecs.int8 import Int8, Int8Settings
from fedistill.communication.codecs.qsgd import DAdaQuant, DAdaQuantSettings, Qsgd, QsgdSettings, _share
from fedistill.communication.codecs.sign import Sign
from fedistill.communication.tensor_specs import Content, Floats, SharedKnowledge, TensorSpec
from fedistill.errors import FrameError

BOTH = [Int8(Int8Settings()), Int8(Int8Settings(coded=False))]
both = pytest.mark.parametrize("codec", BOTH, ids=["coded", "plain"])


def weights(*shapes: tuple[int, ...]) -> TensorSpec:
    return TensorSpec(Content.WEIGHTS, (sum(int(np.prod(shape)) for shape in shapes),), shapes)


def table(content: Content, rows: int, columns: int) -> TensorSpec:
    return TensorSpec(content, (rows, columns))


def sent(
    codec: Codec, values: Any, spec: TensorSpec, known: SharedKnowledge | None = None
) -> tuple[bytes, Floats]:
    known = known or SharedKnowledge()
    payload = codec.encode(np.array(values, np.float32), spec, known, Sender()).payload
    return payload, codec.decode(payload, spec, known).values


# ------------------------------------------------------------------------------------------------------ int8


@both
def test_each_tensor_has_a_step_of_its_own(codec: Int8) -> None:
    _, got = sent(codec, [127, -127, 63.4, 0.3, 1270, 14], weights((4,), (2,)))
    np.testing.assert_array_equal(got, np.array([127, -127, 63, 0, 1270, 10], np.float32))


@both
def test_each_row_of_scores_has_a_step_of_its_own(codec: Int8) -> None:
    spec = table(Content.SCORES, 3, 2)
    _, got = sent(codec, [[127, -5.4], [1.27, 0.204], [0, 0]], spec)
    np.testing.assert_allclose(got, [[127, -5], [1.27, 0.2], [0, 0]], rtol=1e-6)


@both
def test_probabilities_are_shares_of_their_row(codec: Int8) -> None:
    """1/2, 1/3 and 1/6 are 255, 170 and 85 of 510; a row of zeros stays one."""
    spec = table(Content.PROBS, 3, 3)
    _, got = sent(codec, [[1 / 2, 1 / 3, 1 / 6], [0, 0, 0], [0, 1, 0]], spec)
    expected = np.array([[255 / 510, 170 / 510, 85 / 510], [0, 0, 0], [0, 1, 0]], np.float32)
    np.testing.assert_array_equal(got, expected)


@both
@settings(max_examples=30)
@given(
    content=st.sampled_from([Content.PROBS, Content.SCORES]),
    rows=st.integers(0, 300),
    columns=st.integers(1, 40),
    scale=st.sampled_from([0, 1e-30, 1, 1e30]),
    seed=st.integers(0, 99),
)
def test_tables_come_back_to_half_a_step(
    codec: Int8, content: Content, rows: int, columns: int, scale: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    values = (random.normal(size=(rows, columns)) * scale).astype(np.float32)
    if content is Content.PROBS:
        values = random.dirichlet(np.full(columns, 0.2), size=rows).astype(np.float32)
    _, got = sent(codec, values, table(content, rows, columns))
    assert got.shape == (rows, columns)
    levels = 255 if content is Content.PROBS else 127
    step = np.abs(values).max(axis=1, keepdims=True, initial=0) / levels
    if content is Content.PROBS:
        np.testing.assert_allclose(got.sum(axis=1), 1, rtol=1e-5)
        step = step * columns
    assert (np.abs(got - values) <= 0.501 * step).all()


def test_plain_bytes_have_a_known_length() -> None:
    assert len(sent(BOTH[1], np.ones(6), weights((4,), (2,)))[0]) == 2 * 4 + 6
    assert len(sent(BOTH[1], np.ones((5, 3)), table(Content.SCORES, 5, 3))[0]) == 5 * (4 + 3)
    assert len(sent(BOTH[1], np.ones((5, 3)), table(Content.PROBS, 5, 3))[0]) == 5 * 3


def test_coding_pays_where_numbers_are_uneven() -> None:
    probs = np.random.default_rng(0).dirichlet(np.full(10, 0.1), size=1_000).astype(np.float32)
    spec = table(Content.PROBS, 1_000, 10)
    assert len(sent(BOTH[0], probs, spec)[0]) < 0.6 * len(sent(BOTH[1], probs, spec)[0])


@both
@pytest.mark.parametrize(
    "scale", [np.nan, np.inf, -1.0, -0.0], ids=["nan", "infinite", "negative", "negative zero"]
)
def test_a_bad_scale_is_refused(codec: Int8, scale: float) -> None:
    payload, _ = sent(codec, [1, 2], weights((2,)))
    bad = np.array([scale], "<f4").tobytes() + payload[4:]
    with pytest.raises(FrameError, match="negative or not finite"):
        codec.decode(bad, weights((2,)), SharedKnowledge())


def test_plain_bytes_of_a_wrong_length_or_value_are_refused() -> None:
    spec = weights((2,))
    scale = np.array([1], "<f4").tobytes()
    for body in (b"\1", b"\1\2\3", b"\1\x80"):
        with pytest.raises(FrameError, match="where 2 numbers from -127 to 127"):
            BOTH[1].decode(scale + body, spec, SharedKnowledge())
    with pytest.raises(FrameError, match="ends within its 1 scales"):
        BOTH[1].decode(scale[:3], spec, SharedKnowledge())


# ---------------------------------------------------------------------------------------- qsgd and dadaquant


def zero(spec: TensorSpec) -> SharedKnowledge:
    return SharedKnowledge(reference=np.zeros(spec.shape, np.float32))


def test_levels_are_multiples_of_the_largest_number() -> None:
    """With numbers that lie on levels nothing is left to chance."""
    spec = weights((3,), (2,))
    for values in ([1, -0.5, 0, 8, -4], [2**100, 2**99, 0, 2.0**-100, 2.0**-101]):
        _, got = sent(Qsgd(QsgdSettings(levels=2)), values, spec, zero(spec))
        np.testing.assert_array_equal(got, np.array(values, np.float32))


def test_a_bucket_has_a_scale_of_its_own() -> None:
    spec = weights((5,))
    values = [8, -8, 1, 1, 0.25]
    payload, got = sent(Qsgd(QsgdSettings(levels=1, bucket=2)), values, spec, zero(spec))
    np.testing.assert_array_equal(got, np.array(values, np.float32))
    assert payload[1:7].hex() == "0041" + "803f" + "803e"  # 8, 1 and 1/4, high halves of float32


def test_the_l2_norm_is_the_scale() -> None:
    spec = weights((2,))
    payload, got = sent(Qsgd(QsgdSettings(levels=5, norm="l2")), [3, -4], spec, zero(spec))
    np.testing.assert_array_equal(got, np.array([3, -4], np.float32))
    assert payload[1:3].hex() == "a040"  # 5


def test_numbers_come_from_the_senders_stream() -> None:
    spec = weights((100,))
    values = np.full(100, 0.3, np.float32)
    values[0] = 1
    codec = Qsgd(QsgdSettings(levels=1))
    payloads = [
        codec.encode(values, spec, zero(spec), Sender(stream=partial(np.random.default_rng, seed))).payload
        for seed in (0, 0, 1)
    ]
    assert payloads[0] == payloads[1] != payloads[2]


def level_counts(codec: DAdaQuant, norms: list[float], own: dict[str, Any] | None) -> list[int]:
    spec = weights((2,))
    seen = []
    for norm in norms:
        encoded = codec.encode(np.array([norm, 0], np.float32), spec, zero(spec), Sender(own))
        seen.append(encoded.payload[1])
        own = encoded.own if own is not None else None
    return seen


def test_levels_double_only_where_the_mean_no_longer_falls() -> None:
    codec = DAdaQuant(DAdaQuantSettings(first=1, last=4, patience=2, decay=0))
    assert level_counts(codec, [9, 8, 7, 6, 5], {}) == [1, 1, 1, 1, 1]
    assert level_counts(codec, [5, 5, 4, 3, 3, 3, 3], {}) == [1, 2, 2, 2, 4, 4, 4]


def test_where_nothing_is_kept_levels_are_the_most() -> None:
    assert level_counts(DAdaQuant(DAdaQuantSettings(first=1, last=5)), [1, 1], None) == [5, 5]


@pytest.mark.parametrize(("first", "last"), [(1, 1), (1, 16), (3, 10), (3, 12), (3, 13)])
def test_the_last_level_is_reached_and_not_passed(first: int, last: int) -> None:
    codec = DAdaQuant(DAdaQuantSettings(first=first, last=last, patience=2))
    assert level_counts(codec, [1] * 20, {})[-1] == last


@pytest.mark.parametrize(("body", "levels"), [(b"\0", 0), (b"\x80\x08", 1024)])
def test_levels_that_no_sender_has_are_refused(body: bytes, levels: int) -> None:
    spec = weights((1,))
    with pytest.raises(FrameError, match=f"the message gives {levels} levels"):
        DAdaQuant(DAdaQuantSettings()).decode(b"\1" + body + b"\x80\x3f", spec, zero(spec))


def test_who_has_more_samples_has_more_levels() -> None:
    """Of 8 clients with 1 and one with 64 samples: w^(2/3) is 1 and 16, sum 24; sum w^2 is 4104."""
    every = (1.0,) * 8 + (64.0,)
    scale = math.sqrt(24 / 4104)
    for adaptive, weight, expected in [
        (True, 64.0, round(100 * 16 * scale)),
        (True, 1.0, round(100 * scale)),
        (False, 64.0, 100),
    ]:
        codec = DAdaQuant(DAdaQuantSettings(first=100, last=100, client_adaptive=adaptive))
        spec = weights((2,))
        values = np.array([1, 0], np.float32)
        payload = codec.encode(values, spec, zero(spec), Sender({}, weight=weight, weights=every)).payload
        assert payload[1] == expected


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=8), st.integers(1, 8))
def test_levels_by_weight_keep_the_variance_of_the_mean(weights: list[int], levels: int) -> None:
    """Theorem 1: sum w^2 / q^2 is that of equal levels, at no more levels in all."""
    shares = [_share(weight, weights) for weight in weights]
    found = sum(w**2 / (levels * share) ** 2 for w, share in zip(weights, shares, strict=True))
    assert found == pytest.approx(sum(w**2 for w in weights) / levels**2)
    assert sum(shares) <= len(weights) * (1 + 1e-9)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValidationError, match="`first` = 9 is above `last` = 8"):
        DAdaQuantSettings(first=9, last=8)
    for wrong in ({"levels": 0}, {"levels": 1_024}, {"bucket": 0}, {"norm": "l1"}):
        with pytest.raises(ValidationError):
            QsgdSettings.model_validate(wrong)


def test_rows_and_columns_of_their_own_size_cost_less() -> None:
    """Each row and column is told its size once; a vector of the same numbers cannot be."""
    random = np.random.default_rng(0)
    sizes = np.exp2(random.integers(0, 5, (100, 1)) + random.integers(0, 5, (1, 100)))
    values = (random.laplace(size=(100, 100)) * sizes).astype(np.float32).ravel()
    codec = Qsgd(QsgdSettings(levels=127))
    matrix, vector = weights((100, 100)), weights((10_000,))
    as_matrix, got = sent(codec, values, matrix, zero(matrix))
    as_vector, same = sent(codec, values, vector, zero(vector))
    np.testing.assert_array_equal(got, same)
    assert len(as_matrix) < 0.9 * len(as_vector)


# ------------------------------------------------------------------------------------------------------ sign


def test_signs_take_the_mean_size_of_their_tensor() -> None:
    spec = weights((4,), (2,))
    _, got = sent(Sign(NoSettings()), [1, -2, 3, 0, -0.5, 0.5], spec, zero(spec))
    np.testing.assert_array_equal(got, np.array([1.5, -1.5, 1.5, 1.5, -0.5, 0.5], np.float32))


def test_what_a_sign_leaves_is_the_residual() -> None:
    spec = weights((2,))
    codec = Sign(NoSettings())
    values = np.array([3, -1], np.float32)
    encoded = codec.encode(values, spec, zero(spec), Sender({}))
    np.testing.assert_array_equal(encoded.own["residual"].numpy(), np.array([1, 1], np.float32))
    encoded = codec.encode(values, spec, zero(spec), Sender(encoded.own))  # 4 and 0
    np.testing.assert_array_equal(encoded.own["residual"].numpy(), np.array([2, -2], np.float32))


# ---------------------------------------------------------------------------------------------------- format

GOLDEN = {
    "int8": (Int8(Int8Settings()), False, "0000803f0000004000008040740954559139b3c28d5fd22f"),
    "int8-plain": (Int8(Int8Settings(coded=False)), False, "0000803f00000040000080407f814000817f7fc0"),
    "qsgd": (Qsgd(QsgdSettings(levels=2)), True, "01803f004080405e8c1a558ae6c3de"),
    "dadaquant": (DAdaQuant(DAdaQuantSettings(first=2)), True, "0102803f004080405e8c1a558ae6c3de"),
    "sign": (Sign(NoSettings()), True, "01203f004055400b050c46"),
}


@pytest.mark.parametrize(("codec", "relative", "payload"), GOLDEN.values(), ids=GOLDEN)
def test_the_bytes_are_those_of_version_1(codec: Codec, relative: bool, payload: str) -> None:
    spec = weights((2, 2), (), (3,))
    values = [1, -1, 0.5, 0, -2, 4, 4, -2]
    got, _ = sent(codec, values, spec, zero(spec) if relative else None)
    assert got.hex() == payload

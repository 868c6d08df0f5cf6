"""Sparsifiers: hand-computed examples, ties, lengths, hostile payloads, golden payloads."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedistill.communication.codecs.base import Codec, Sender
from fedistill.communication.codecs.sparsify import Stc, StcSettings, TopK, TopKSettings, kept_of, largest
from fedistill.communication.entropy_coding.parametric_model import put, put_places, put_signs
from fedistill.communication.entropy_coding.range_coder import Encoder
from fedistill.communication.tensor_specs import Content, Floats, SharedKnowledge, TensorSpec
from fedistill.errors import FrameError


def weights(*shapes: tuple[int, ...]) -> TensorSpec:
    return TensorSpec(Content.WEIGHTS, (sum(int(np.prod(shape)) for shape in shapes),), shapes)


def zero(spec: TensorSpec) -> SharedKnowledge:
    return SharedKnowledge(reference=np.zeros(spec.shape, np.float32))


def sent(codec: Codec, values: Any, spec: TensorSpec) -> tuple[bytes, Floats]:
    payload = codec.encode(np.array(values, np.float32), spec, zero(spec), Sender()).payload
    return payload, codec.decode(payload, spec, zero(spec)).values


def test_ternary_by_hand() -> None:
    """Two of five: -4 and 2, each as 3; one of three: 8."""
    spec = weights((5,), (3,))
    _, got = sent(Stc(StcSettings(share=0.3)), [1, -4, 0, 2, -1, 0.5, 8, -7], spec)
    np.testing.assert_array_equal(got, np.array([0, -3, 0, 3, 0, 0, 8, 0], np.float32))


def test_ternary_over_all_weights_by_hand() -> None:
    """Three of eight, wherever they are: -4, 8 and -7, and their mean rounded to 8 bits: 6.34375."""
    spec = weights((5,), (3,))
    _, got = sent(Stc(StcSettings(share=0.3, scope="all")), [1, -4, 0, 2, -1, 0.5, 8, -7], spec)
    np.testing.assert_array_equal(got, np.array([0, -1, 0, 0, 0, 0, 1, -1], np.float32) * 6.34375)


def test_top_k_by_hand() -> None:
    spec = weights((5,), (3,))
    for written in ("fp16", "int8"):
        _, got = sent(TopK(TopKSettings(share=0.3, values=written)), [1, -4, 0, 2, -1, 0.5, 8, -6], spec)
        expected = [0, -4, 0, 0, 0, 0, 8, -6]
        np.testing.assert_allclose(got, expected, atol=0 if written == "fp16" else 0.51 * 8 / 127)


def test_what_is_left_out_comes_later() -> None:
    """One number a message: 3 at once, 2 + 2 in the second, 3 + 3 in the third; of two fours the first."""
    spec = weights((3,))
    codec = TopK(TopKSettings(share=0.01))
    own: dict[str, Any] = {}
    read = []
    for _ in range(4):
        encoded = codec.encode(np.array([3, 2, 1], np.float32), spec, zero(spec), Sender(own))
        own = encoded.own
        read.append(codec.decode(encoded.payload, spec, zero(spec)).values.tolist())
    assert read == [[3, 0, 0], [0, 4, 0], [6, 0, 0], [0, 4, 0]]


@given(
    values=st.lists(st.sampled_from([0.0, 1.0, -1.0, 2.0, -2.0, 3.0]), max_size=40), share=st.floats(0.01, 1)
)
def test_the_first_of_equal_numbers_are_kept(values: list[float], share: float) -> None:
    kept = kept_of(len(values), share)
    expected = sorted(sorted(range(len(values)), key=lambda at: (-abs(values[at]), at))[:kept])
    assert largest(np.array(values, np.float32), kept).tolist() == expected


@pytest.mark.parametrize(
    ("count", "share", "kept"), [(0, 0.5, 0), (1, 1e-9, 1), (100, 0.01, 1), (101, 0.01, 2)]
)
def test_at_least_one_number_is_sent(count: int, share: float, kept: int) -> None:
    assert kept_of(count, share) == kept


def test_ternary_costs_what_was_published_or_less() -> None:
    """The paper's Golomb code takes .091 bits a number at one in 100, .028 at one in 400 (and means)."""
    values = np.random.default_rng(0).laplace(size=400_000).astype(np.float32)
    spec = weights((400_000,))
    for share, published in ((1 / 100, 0.0913), (1 / 400, 0.0281)):
        payload, _ = sent(Stc(StcSettings(share=share)), values, spec)
        assert 0.9 * published < 8 * len(payload) / spec.count < published


@pytest.mark.parametrize("codec", [Stc(StcSettings()), TopK(TopKSettings())], ids=["stc", "top-k"])
def test_nothing_costs_next_to_nothing(codec: Codec) -> None:
    spec = weights((300, 10), (10,))
    payload, got = sent(codec, np.zeros(spec.count), spec)
    assert len(payload) <= 1 + 2 * 2
    assert not got.any()


@pytest.mark.parametrize("values", ["fp16", "int8"])
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_sizes_are_relative_to_the_largest(values: Any, size: float) -> None:
    spec = weights((1_000,))
    update = np.random.default_rng(0).normal(size=1_000).astype(np.float32) * np.float32(size)
    _, got = sent(TopK(TopKSettings(share=0.1, values=values)), update, spec)
    kept = got != 0
    assert kept.sum() == 100
    np.testing.assert_allclose(got[kept], update[kept], atol=0.02 * size)


@pytest.mark.parametrize("scale", ["807f", "c07f", "80bf", "0080"], ids=["inf", "nan", "negative", "-0"])
@pytest.mark.parametrize("codec", [Stc(StcSettings()), TopK(TopKSettings())], ids=["stc", "top-k"])
def test_a_bad_scale_is_refused(codec: Codec, scale: str) -> None:
    spec = weights((3,))
    payload, _ = sent(codec, [1, 2, 3], spec)
    with pytest.raises(FrameError, match="negative or not finite"):
        codec.decode(payload[:1] + bytes.fromhex(scale) + payload[3:], spec, zero(spec))
    with pytest.raises(FrameError, match="ends within its 1 scales"):
        codec.decode(payload[:2], spec, zero(spec))


@pytest.mark.parametrize(("values", "top"), [("fp16", 0x3C00), ("int8", 127)])
def test_a_size_above_its_scale_is_refused(values: Any, top: int) -> None:
    encoder = Encoder()
    put_places(encoder, np.array([1]), 3)
    put_signs(encoder, np.array([False]))
    encoder.put(np.array([top]), np.ones(top + 1, np.int64))
    put(encoder, np.array([1]), 0, top >> 6 if values == "fp16" else top)
    payload = bytes.fromhex("01803f") + encoder.finish() + b"\xff"
    with pytest.raises(FrameError, match="above its scale"):
        TopK(TopKSettings(values=values)).decode(payload, weights((3,)), zero(weights((3,))))


GOLDEN = {
    "stc": (Stc(StcSettings(share=0.4)), "014040c0404040397fce87"),
    "stc-all": (Stc(StcSettings(share=0.4, scope="all")), "01a040bbe387a2"),
    "top-k": (TopK(TopKSettings(share=0.4)), "0100416fe487a2e0f414fce2d675b0"),
    "top-k-int8": (TopK(TopKSettings(share=0.4, values="int8")), "01004107e487a210929d9722b4fbe5"),
}


@pytest.mark.parametrize(("codec", "payload"), GOLDEN.values(), ids=GOLDEN)
def test_the_bytes_are_those_of_version_1(codec: Codec, payload: str) -> None:
    got, _ = sent(codec, [1, -4, 0, 2, -1, 0.5, 8, -7, 0.25, -0.125, 3, -3], weights((5,), (2, 3), ()))
    assert got.hex() == payload

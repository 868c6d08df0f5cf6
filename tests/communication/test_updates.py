"""What holds for every codec of weights: round trips, feedback, refusals, ceilings and the format."""

import inspect
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedistill.communication.codecs import int8, low_rank, qsgd, sign, sparsify
from fedistill.communication.codecs.base import Codec, NoSettings, Sender
from fedistill.communication.codecs.int8 import Int8, Int8Settings
from fedistill.communication.codecs.low_rank import LowRank, LowRankSettings
from fedistill.communication.codecs.qsgd import DAdaQuant, DAdaQuantSettings, Qsgd, QsgdSettings
from fedistill.communication.codecs.sign import Sign
from fedistill.communication.codecs.sparsify import Stc, StcSettings, TopK, TopKSettings
from fedistill.communication.codecs.updates import FeedbackCodec
from fedistill.communication.entropy_coding.range_coder import Encoder, ideal_bits
from fedistill.communication.tensor_specs import Content, Floats, SharedKnowledge, TensorSpec
from fedistill.errors import FrameError
from fedistill.state import encode_state

CODECS: dict[str, Codec] = {
    "int8": Int8(Int8Settings()),
    "int8-plain": Int8(Int8Settings(coded=False)),
    "qsgd": Qsgd(QsgdSettings()),
    "qsgd-l2": Qsgd(QsgdSettings(levels=4, bucket=100, norm="l2")),
    "dadaquant": DAdaQuant(DAdaQuantSettings()),
    "sign": Sign(NoSettings()),
    "top-k": TopK(TopKSettings()),
    "top-k-int8": TopK(TopKSettings(share=0.05, values="int8")),
    "stc": Stc(StcSettings()),
    "stc-all": Stc(StcSettings(share=0.1, scope="all")),
    "low-rank": LowRank(LowRankSettings()),
}
RELATIVE = {name: codec for name, codec in CODECS.items() if codec.relative}
FEEDBACK = {name: codec for name, codec in CODECS.items() if isinstance(codec, FeedbackCodec)}
each = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
each_relative = pytest.mark.parametrize("codec", RELATIVE.values(), ids=RELATIVE)
each_feedback = pytest.mark.parametrize("codec", FEEDBACK.values(), ids=FEEDBACK)

SHAPES = [(), (0,), (3, 0), (1,), (6,), (300,), (4, 7), (20, 30), (3, 2, 3, 3), (40, 50)]


def test_every_codec_is_tested() -> None:
    written = {
        kind
        for module in (int8, low_rank, qsgd, sign, sparsify)
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Codec) and kind.__module__ == module.__name__
    }
    assert written == {type(codec) for codec in CODECS.values()}


def spec_of(*shapes: tuple[int, ...]) -> TensorSpec:
    return TensorSpec(Content.WEIGHTS, (sum(int(np.prod(shape)) for shape in shapes),), shapes)


def known_of(codec: Codec, count: int) -> SharedKnowledge:
    return SharedKnowledge(reference=np.linspace(-1, 1, count, dtype=np.float32) if codec.relative else None)


def update_of(count: int, kind: str, seed: int) -> Floats:
    random = np.random.default_rng(seed)
    values = {
        "laplace": lambda: random.laplace(size=count),
        "zeros": lambda: np.zeros(count),
        "constant": lambda: np.full(count, -0.25),
        "huge": lambda: random.normal(size=count) * 1e30,
        "largest": lambda: random.choice([-3.4e38, 3.4e38, 0], size=count),
        "tiny": lambda: random.normal(size=count) * 1e-30,
        "subnormal": lambda: random.normal(size=count) * 1e-44,
        "one": lambda: np.arange(count) == count // 2,
        "smooth": lambda: np.sin(np.arange(count) / 40),
    }[kind]()
    return np.asarray(values, np.float32)


KINDS = ["laplace", "zeros", "constant", "huge", "largest", "tiny", "subnormal", "one", "smooth"]
shape_lists = st.lists(st.sampled_from(SHAPES), max_size=6)


@each
@settings(max_examples=40)
@given(shapes=shape_lists, kind=st.sampled_from(KINDS), seed=st.integers(0, 2**16), first=st.booleans())
def test_what_is_written_is_read_the_same_each_time(
    codec: Codec, shapes: list[tuple[int, ...]], kind: str, seed: int, first: bool
) -> None:
    assert_comes_back(codec, shapes, kind, seed, first)


@each
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_every_kind_come_back(codec: Codec, kind: str) -> None:
    assert_comes_back(codec, SHAPES, kind, seed=0, first=False)


def assert_comes_back(codec: Codec, shapes: list[tuple[int, ...]], kind: str, seed: int, first: bool) -> None:
    spec = spec_of(*shapes)
    known = SharedKnowledge() if first else known_of(codec, spec.count)
    values = update_of(spec.count, kind, seed)
    encoded = codec.encode(values, spec, known, Sender(stream=lambda: np.random.default_rng(seed)))
    decoded = codec.decode(encoded.payload, spec, known)
    assert decoded.values.shape == spec.shape
    assert decoded.values.dtype == np.float32
    assert np.isfinite(decoded.values).all()
    assert encode_state(decoded.memory) == encode_state(encoded.memory)
    encode_state(encoded.own)
    again = codec.decode(encoded.payload, spec, known)
    assert again.values.tobytes() == decoded.values.tobytes()


@each
@settings(max_examples=4)
@given(count=st.integers(1_000, 100_000), seed=st.integers(0, 2**16))
def test_long_weights_come_back_about_as_they_were(codec: Codec, count: int, seed: int) -> None:
    """An update is never read as something farther from it than nothing at all, but by chance."""
    spec = spec_of((count // 2,), (count - count // 2,))
    known = known_of(codec, count)
    update = update_of(count, "laplace", seed) * np.float32(0.01)
    state_id = np.float32(0) if known.reference is None else known.reference
    values = state_id + update
    payload = codec.encode(values, spec, known, Sender(stream=lambda: np.random.default_rng(seed))).payload
    got = codec.decode(payload, spec, known).values
    agreement = np.dot(got - state_id, update) / np.dot(update, update)
    assert 0.03 < agreement < 1.3


@each_feedback
@pytest.mark.parametrize("kind", ["laplace", "smooth", "one", "constant"])
def test_what_was_not_sent_is_sent_later(codec: Codec, kind: str) -> None:
    """All that was read, and the residual, add up to all that was to be sent."""
    spec = spec_of((40, 50), (50,))
    reference = np.zeros(spec.count, np.float32)
    own: dict[str, Any] = {}
    meant, read = np.zeros(spec.count), np.zeros(spec.count)
    for round in range(5):
        update = update_of(spec.count, kind, round)
        encoded = codec.encode(update, spec, SharedKnowledge(reference=reference), Sender(own))
        own = encoded.own
        meant += update
        read += codec.decode(encoded.payload, spec, SharedKnowledge(reference=reference)).values
    np.testing.assert_allclose(read + own["residual"].numpy(), meant, atol=1e-5)
    assert not np.allclose(read, meant, atol=1e-3) or kind in ("one", "constant")


@each_feedback
def test_no_residual_where_none_is_to_be_kept(codec: Codec) -> None:
    spec = spec_of((20, 30))
    update = update_of(spec.count, "laplace", 0)
    known = SharedKnowledge(reference=np.zeros(spec.count, np.float32))
    kept = codec.encode(update, spec, known, Sender({}))
    unkept = codec.encode(update, spec, known, Sender(None))
    assert unkept.own == {}
    assert unkept.payload == kept.payload
    assert list(kept.own) == ["residual"]


@each_feedback
def test_on_a_downlink_the_difference_holds_what_was_not_sent(codec: Codec) -> None:
    """Without a residual, a receiver comes ever closer to weights that stand still."""
    spec = spec_of((20, 30), (30,))
    weights = update_of(spec.count, "laplace", 3)
    reference = np.zeros(spec.count, np.float32)
    for _ in range(150):
        known = SharedKnowledge(reference=reference)
        reference = codec.decode(codec.encode(weights, spec, known, Sender(None)).payload, spec, known).values
    assert np.abs(reference - weights).mean() < 0.3 * np.abs(weights).mean()


@each_relative
def test_a_receiver_without_weights_gets_all_of_them(codec: Codec) -> None:
    spec = spec_of((2, 2), (1,))
    values = np.array([1, -2, 0.1, 70_000, 0], np.float32)
    payload = codec.encode(values, spec, SharedKnowledge(), Sender()).payload
    assert payload.hex() == "00" + "003c" + "00c0" + "662e" + "ff7b" + "0000"
    expected = np.array([1, -2, np.float16(0.1), 65_504, 0], np.float32)
    np.testing.assert_array_equal(codec.decode(payload, spec, SharedKnowledge()).values, expected)


@each_relative
def test_the_two_ways_to_write_are_not_mistaken_for_one_another(codec: Codec) -> None:
    spec = spec_of((4,))
    values = np.ones(4, np.float32)
    known = SharedKnowledge(reference=np.zeros(4, np.float32))
    whole = codec.encode(values, spec, SharedKnowledge(), Sender()).payload
    change = codec.encode(values, spec, known, Sender()).payload
    for payload, other in (
        (whole, known),
        (change, SharedKnowledge()),
        (b"", known),
        (b"\x02" + whole[1:], SharedKnowledge()),
    ):
        with pytest.raises(FrameError, match="does not say how its weights are written"):
            codec.decode(payload, spec, other)


@each_relative
def test_a_difference_too_large_for_a_float_is_as_large_as_one_can_be(codec: Codec) -> None:
    spec = spec_of((40,))
    known = SharedKnowledge(reference=np.full(40, 3.3e38, np.float32))
    encoded = codec.encode(np.full(40, -3.3e38, np.float32), spec, known, Sender())
    values = codec.decode(encoded.payload, spec, known).values
    assert (values < 0.2e38).any()
    beyond = codec.decode(
        encoded.payload, spec, SharedKnowledge(reference=np.full(40, -3.3e38, np.float32))
    ).values
    assert np.isfinite(beyond).all()
    if isinstance(codec, FeedbackCodec):
        assert np.isfinite(encoded.own["residual"].numpy()).all()


FUZZED = spec_of((20, 30), (), (0,), (30,), (5, 2, 3, 3))


def payloads() -> list[bytes]:
    values = update_of(FUZZED.count, "laplace", 9)
    return [
        codec.encode(values, FUZZED, known_of(codec, FUZZED.count), Sender()).payload
        for codec in CODECS.values()
    ]


SENT = payloads()


@each
@settings(max_examples=400)
@given(
    data=st.one_of(
        st.binary(max_size=300),
        st.builds(lambda tail: b"\x01" + tail, st.binary(max_size=300)),
        st.builds(
            lambda payload, cut: payload[: cut % (len(payload) + 1)], st.sampled_from(SENT), st.integers(0)
        ),
        st.builds(
            lambda payload, bit: (
                int.from_bytes(payload, "little") ^ (1 << bit % (8 * len(payload)))
            ).to_bytes(len(payload), "little"),
            st.sampled_from(SENT),
            st.integers(0),
        ),
        st.builds(
            lambda payload, tail: payload + tail, st.sampled_from(SENT), st.binary(min_size=1, max_size=9)
        ),
        st.builds(
            lambda left, right: left[: len(left) // 2] + right[len(right) // 2 :],
            st.sampled_from(SENT),
            st.sampled_from(SENT),
        ),
    ),
    first=st.booleans(),
)
def test_any_bytes_are_read_or_refused(codec: Codec, data: bytes, first: bool) -> None:
    known = SharedKnowledge() if first else known_of(codec, FUZZED.count)
    try:
        values = codec.decode(data, FUZZED, known).values
    except FrameError:
        return
    assert values.shape == FUZZED.shape
    assert np.isfinite(values).all()


@each
def test_hostile_bytes_take_little_memory(codec: Codec) -> None:
    spec = spec_of((100, 200), (200,))
    known = known_of(codec, spec.count)
    random = np.random.default_rng(0)

    def read(data: bytes) -> None:
        with pytest.raises(FrameError):  # two thousand random bytes, with more to come, are never a message
            codec.decode(data, spec, known)

    hostile = [b"\x01" + random.bytes(2_000) for _ in range(20)] + [b"\x01" + b"\xff" * 2_000]
    read(hostile[0])
    tracemalloc.start()
    for data in hostile:
        read(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60 * spec.count + 60 * 2_000


class Meter:
    """Adds up the ideal length of what encoders write, and what they wrote in truth, in bits."""

    def __init__(self) -> None:
        self.ideal = self.real = 0.0


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Meter]:
    meter, put, finish = Meter(), Encoder.put, Encoder.finish

    def measured_put(self: Encoder, symbols: Any, frequencies: Any) -> None:
        meter.ideal += ideal_bits(np.asarray(symbols, np.int64), frequencies)
        put(self, symbols, frequencies)

    def measured_finish(self: Encoder) -> bytes:
        data = finish(self)
        meter.real += 8 * len(data)
        return data

    monkeypatch.setattr(Encoder, "put", measured_put)
    monkeypatch.setattr(Encoder, "finish", measured_finish)
    return meter


@each
@pytest.mark.parametrize("shapes", [[(7,)], [(40, 50), (50,)], [(300, 200), (200,)]])
def test_coded_length_is_near_the_ideal(codec: Codec, shapes: list[tuple[int, ...]], meter: Meter) -> None:
    spec = spec_of(*shapes)
    values = update_of(spec.count, "laplace", 1)
    codec.encode(values, spec, known_of(codec, spec.count), Sender())
    assert meter.real <= max(1.01 * meter.ideal if meter.real > 8_000 else 0, meter.ideal + 128)

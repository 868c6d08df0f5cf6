"""Codecs of soft labels: round trips, sizes, what they refuse, and bytes that never change."""

import contextlib
import copy
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedistill.communication.codecs.base import Codec, Sender
from fedistill.communication.codecs.label_formats import Coder
from fedistill.communication.codecs.label_rounding import quantize
from fedistill.communication.codecs.labels import (
    OneHot,
    OneHotSettings,
    Simplex,
    SimplexSettings,
    TopClasses,
    TopClassesSettings,
)
from fedistill.communication.entropy_coding import adaptive_model
from fedistill.communication.entropy_coding.bit_packing import pack, unpack
from fedistill.communication.entropy_coding.range_coder import Encoder, Integers, ideal_bits
from fedistill.communication.tensor_specs import Classes, Content, Floats, SharedKnowledge, TensorSpec
from fedistill.errors import FrameError
from fedistill.state import decode_state, encode_state

CODERS: tuple[Coder, ...] = ("predictive", "delta", "order0", "plain")


def onehot(coder: Coder) -> Codec:
    return OneHot(OneHotSettings(coder=coder))


def simplex(bits: int, coder: Coder) -> Codec:
    return Simplex(SimplexSettings(bits=bits, coder=coder))


def top(k: int, bits: int) -> Codec:
    return TopClasses(TopClassesSettings(k=k, bits=bits))


CODECS: dict[str, Codec] = {
    **{f"onehot {coder}": onehot(coder) for coder in CODERS},
    **{f"simplex {bits} {coder}": simplex(bits, coder) for bits in (1, 2, 4, 8) for coder in CODERS},
    **{f"top {k} of {bits}": top(k, bits) for k, bits in ((1, 1), (2, 2), (3, 4), (5, 8))},
}
all_codecs = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())


def spec_of(count: int, classes: int, rows: Classes | None = None, population: int = 0) -> TensorSpec:
    return TensorSpec(Content.PROBS, (count, classes), rows=rows, population=population)


def probs_of(random: np.random.Generator, count: int, classes: int, sharpness: float = 1.5) -> Floats:
    logits = sharpness * random.standard_normal((count, classes))
    whole = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-100))
    return (whole / whole.sum(axis=1, keepdims=True)).astype(np.float32)


def there_and_back(
    codec: Codec, values: Floats, spec: TensorSpec, known: SharedKnowledge
) -> tuple[bytes, Floats, Any]:
    before, held = values.copy(), copy.deepcopy(known.memory)
    encoded = codec.encode(values, spec, known, Sender())
    decoded = codec.decode(encoded.payload, spec, known)
    np.testing.assert_array_equal(values, before)
    assert encode_state(known.memory) == encode_state(held)
    assert encode_state(encoded.memory) == encode_state(decoded.memory)
    assert decoded.values.dtype == np.float32
    assert decoded.values.shape == spec.shape
    return encoded.payload, decoded.values, decode_state(encode_state(encoded.memory))


def meant(codec: Codec, values: Floats) -> Floats | None:
    """What the receiver must get; None where that is not a matter of rounding alone."""
    if isinstance(codec, OneHot) or (isinstance(codec, Simplex) and codec.settings.bits == 1):
        return np.eye(values.shape[1], dtype=np.float32)[np.argmax(values, axis=1)]
    if isinstance(codec, Simplex):
        levels = 2**codec.settings.bits - 1
        return quantize(values, levels, Sender().random).astype(np.float32) / np.float32(levels)
    return None


# Round trips


@all_codecs
@pytest.mark.parametrize(
    "classes", [2, 10, 1000, *(pytest.param(more, marks=pytest.mark.long) for more in (3, 46))]
)
@pytest.mark.parametrize("count", [0, 1, 77, pytest.param(2, marks=pytest.mark.long)])
def test_messages_of_drawn_rows(codec: Codec, classes: int, count: int) -> None:
    if classes == 1000 and count == 77:
        count = 20
    random = np.random.default_rng(classes + count)
    population = count + 20
    truth = random.standard_normal((population, classes)) * 3
    memory: Any = {}
    for message in range(3):
        rows = np.sort(random.choice(population, count, replace=False))
        logits = truth[rows] + random.standard_normal((count, classes))
        whole = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-100))
        values = (whole / whole.sum(axis=1, keepdims=True)).astype(np.float32)
        other_labels = random.integers(-1, classes, count) if message else None
        spec = spec_of(count, classes, rows, population)
        payload, found, after = there_and_back(
            codec, values, spec, SharedKnowledge(memory, other_labels=other_labels)
        )
        wanted = meant(codec, values)
        if wanted is not None:
            np.testing.assert_array_equal(found, wanted)
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-4)
        assert count or not payload
        if message != 1:  # the second exchange is lost
            memory = after


@pytest.mark.parametrize(
    "codec", [onehot("predictive"), onehot("delta"), simplex(2, "predictive"), top(2, 4)]
)
def test_fifty_thousand_rows(codec: Codec) -> None:
    random = np.random.default_rng(5)
    rows = np.arange(50_000)
    spec = spec_of(50_000, 10, rows, 50_000)
    values = probs_of(random, 50_000, 10, sharpness=3)
    first, found, memory = there_and_back(codec, values, spec, SharedKnowledge())
    wanted = meant(codec, values)
    if wanted is not None:
        np.testing.assert_array_equal(found, wanted)
    second, again, _ = there_and_back(codec, values, spec, SharedKnowledge(memory))
    np.testing.assert_array_equal(found, again)
    assert len(second) < len(first) / 2.5


@all_codecs
@given(data=st.data())
@settings(max_examples=15)
def test_any_numbers_at_all(codec: Codec, data: Any) -> None:
    classes = data.draw(st.sampled_from([2, 3, 7]))
    numbers = st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e30, 1e-30, 1e-45, 3e38, -3e38, 0.1])
    row = st.lists(numbers, min_size=classes, max_size=classes)
    table = data.draw(st.lists(row, max_size=20))
    values = np.array(table, np.float32).reshape(-1, classes)
    spec = spec_of(len(values), classes, np.arange(len(values)), len(values))
    _, first, memory = there_and_back(codec, values, spec, SharedKnowledge())
    _, second, _ = there_and_back(
        codec, values, spec, SharedKnowledge(memory, other_labels=np.zeros(len(values), np.int64))
    )
    np.testing.assert_array_equal(first, second)
    assert np.isfinite(first).all()
    np.testing.assert_allclose(first.sum(axis=1), 1, rtol=1e-5)


# By hand


def test_one_hot_takes_the_lower_of_two() -> None:
    values = np.array([[0.2, 0.4, 0.4], [0, 0, 0], [0, 0, 1]], np.float32)
    _, found, _ = there_and_back(onehot("plain"), values, spec_of(3, 3), SharedKnowledge())
    assert found.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]


def test_an_empty_row_is_uniform() -> None:
    values = np.array([[0, 0, 0], [-1, -2, 0]], np.float32)
    for codec in (simplex(2, "plain"), simplex(2, "predictive")):
        _, found, _ = there_and_back(codec, values, spec_of(2, 3), SharedKnowledge())
        assert (found == np.float32(1) / np.float32(3)).all()


def test_rows_need_not_add_up_to_one() -> None:
    values = np.array([[2e30, 1e30, 0], [2e-40, 1e-40, 0]], np.float32)
    _, found, _ = there_and_back(simplex(2, "predictive"), values, spec_of(2, 3), SharedKnowledge())
    assert (found[:, 0] == np.float32(2) / np.float32(3)).all()


def test_top_classes_spread_what_is_left() -> None:
    values = np.array([[0.1, 0.6, 0.05, 0.25], [1, 0, 0, 0]], np.float32)
    _, found, _ = there_and_back(top(2, 3), values, spec_of(2, 4), SharedKnowledge())
    # 0.6, 0.25 and the rest 0.15 in sevenths: 4.2, 1.75, 1.05, so 4, 2 and 1.
    np.testing.assert_allclose(found[0], [0.5 / 7, 4 / 7, 0.5 / 7, 2 / 7], rtol=1e-6)
    assert found[1].tolist() == [1, 0, 0, 0]


def test_top_classes_take_all_where_there_are_fewer() -> None:
    values = np.array([[0.75, 0.25], [0, 1]], np.float32)
    _, found, _ = there_and_back(top(5, 2), values, spec_of(2, 2), SharedKnowledge())
    np.testing.assert_allclose(found, [[2 / 3, 1 / 3], [0, 1]], rtol=1e-6)


def test_numbers_are_packed_from_the_lowest_bit() -> None:
    assert pack(np.array([1, 2, 3]), 3) == bytes([0b11_010_001, 0b0])
    assert pack(np.array([5, 9]), 4) == bytes([0x95])
    assert pack(np.zeros(0, np.int64), 7) == b""
    long = np.arange(200_000) % 1000
    np.testing.assert_array_equal(unpack(pack(long, 10), len(long), 10), long)


@pytest.mark.parametrize(("classes", "bits"), [(2, 1), (3, 2), (10, 4), (46, 6), (1000, 10)])
@pytest.mark.parametrize("count", [0, 1, 777])
def test_plain_sizes(classes: int, bits: int, count: int) -> None:
    values = probs_of(np.random.default_rng(0), count, classes)
    spec = spec_of(count, classes)
    assert len(there_and_back(onehot("plain"), values, spec, SharedKnowledge())[0]) == -(-count * bits // 8)
    assert len(there_and_back(simplex(5, "plain"), values, spec, SharedKnowledge())[0]) == -(
        -count * classes * 5 // 8
    )


def test_one_bit_is_one_hot() -> None:
    values = probs_of(np.random.default_rng(1), 200, 10)
    spec = spec_of(200, 10, np.arange(200), 200)
    for coder in CODERS:
        hard = onehot(coder).encode(values, spec, SharedKnowledge(), Sender())
        soft = simplex(1, coder).encode(values, spec, SharedKnowledge(), Sender())
        assert hard.payload == soft.payload
        assert encode_state(hard.memory) == encode_state(soft.memory)


def test_delta_writes_what_has_changed() -> None:
    """4,000 labels of which 40 change: near the entropy of CFD's symbols, and far below that of labels."""
    random = np.random.default_rng(2)
    labels = random.integers(0, 10, 4000)
    spec = spec_of(4000, 10, np.arange(4000), 4000)
    first, _, memory = there_and_back(
        onehot("delta"), np.eye(10, dtype=np.float32)[labels], spec, SharedKnowledge()
    )
    labels[random.choice(4000, 40, replace=False)] += 1
    labels %= 10
    second, _, _ = there_and_back(
        onehot("delta"), np.eye(10, dtype=np.float32)[labels], spec, SharedKnowledge(memory)
    )
    ideal = (40 * np.log2(100 * 10) + 3960 * np.log2(1 / 0.99)) / 8
    assert 1600 < len(first) < 1700
    assert 0.8 * ideal < len(second) < 1.5 * ideal


@pytest.mark.parametrize("bits", [2, 4])
def test_what_is_foreseen_costs_less(bits: int) -> None:
    random = np.random.default_rng(3)
    truth = random.standard_normal((2000, 10)) * 4
    spec = spec_of(2000, 10, np.arange(2000), 2000)
    sizes: dict[Coder, list[int]] = {coder: [] for coder in CODERS}
    for coder in CODERS:
        codec, memory, noise = simplex(bits, coder), {}, np.random.default_rng(4)
        for _ in range(4):
            logits = truth + 0.4 * noise.standard_normal(truth.shape)
            whole = np.exp(logits - logits.max(axis=1, keepdims=True))
            values = (whole / whole.sum(axis=1, keepdims=True)).astype(np.float32)
            payload, _, memory = there_and_back(codec, values, spec, SharedKnowledge(memory))
            sizes[coder].append(len(payload))
    last = {coder: size[-1] for coder, size in sizes.items()}
    assert last["predictive"] < 0.75 * last["delta"]
    assert last["delta"] < last["order0"] < last["plain"]


# Ceilings


@pytest.fixture
def ideal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """Bits that an ideal coder would take for all that was put since the last question."""
    bits = [0.0]
    put = Encoder.put

    def counting(self: Encoder, symbols: Integers, frequencies: Integers) -> None:
        if len(symbols):
            bits[0] += ideal_bits(symbols, frequencies)
        put(self, symbols, frequencies)

    def asked() -> float:
        found, bits[0] = bits[0], 0.0
        return found

    monkeypatch.setattr(Encoder, "put", counting)
    return asked


@pytest.mark.parametrize("codec", [codec for name, codec in CODECS.items() if "plain" not in name])
@pytest.mark.parametrize(("count", "classes"), [(1, 10), (30, 3), (400, 10), (4000, 10), (300, 100)])
def test_length_is_near_the_ideal(codec: Codec, count: int, classes: int, ideal: Callable[[], float]) -> None:
    random = np.random.default_rng(count)
    spec = spec_of(count, classes, np.arange(count), count)
    memory: Any = {}
    for _ in range(3):
        values = probs_of(random, count, classes)
        encoded = codec.encode(
            values, spec, SharedKnowledge(memory, other_labels=np.argmax(values, axis=1)), Sender()
        )
        memory, least = encoded.memory, ideal() / 8
        over = len(encoded.payload) - least
        assert over < (0.01 * least if least > 1000 else 16)


# Strange bytes


def plain_label(labels: list[int], classes: int) -> bytes:
    return pack(np.array(labels), (classes - 1).bit_length())


@pytest.mark.parametrize(
    ("codec", "payload"),
    [
        (onehot("plain"), plain_label([3, 10], 10)),  # a class too high
        (onehot("plain"), b""),
        (onehot("plain"), b"\0\0"),
        (simplex(2, "plain"), pack(np.array([1, 1, *[0] * 8] * 2), 2)),  # adds up to 2 of 3
        (simplex(2, "plain"), b"\0" * 6),
        (simplex(3, "plain"), pack(np.array([7, *[0] * 9] * 2), 3)[:-1] + b"\x10"),  # a bit after the last
        (onehot("order0"), b"\0\0\0\0\0\0\0\0\1"),
        (onehot("predictive"), b"\0\0\0\0\0\0\0\0\1"),
    ],
)
def test_what_no_sender_writes_is_refused(codec: Codec, payload: bytes) -> None:
    with pytest.raises(FrameError):
        codec.decode(payload, spec_of(2, 10), SharedKnowledge())


def test_a_row_of_many_classes_that_adds_up_to_less_is_refused() -> None:
    """There rows are coded as those of `top-classes` are, in which the sum is free."""
    spec = spec_of(2, 320)
    uniform = np.full(spec.shape, 1 / 320, np.float32)
    payload = top(3, 2).encode(uniform, spec, SharedKnowledge(), Sender()).payload
    with pytest.raises(FrameError, match="add up to less than 1"):
        simplex(2, "predictive").decode(payload, spec, SharedKnowledge())


def test_a_label_that_repeats_nothing_is_refused() -> None:
    values = np.eye(10, dtype=np.float32)[[4, 4, 4]]
    spec = spec_of(3, 10, np.arange(3), 3)
    first = onehot("delta").encode(values, spec, SharedKnowledge(), Sender())
    second = onehot("delta").encode(values, spec, SharedKnowledge(first.memory), Sender())
    with pytest.raises(FrameError, match="never sent"):
        onehot("delta").decode(second.payload, spec, SharedKnowledge())


@pytest.mark.parametrize("codec", [simplex(2, "order0"), simplex(8, "predictive"), top(3, 4)])
def test_random_bytes_are_mostly_refused_by_name(codec: Codec) -> None:
    random = np.random.default_rng(6)
    refused = set()
    for _ in range(200):
        try:
            codec.decode(random.bytes(40), spec_of(30, 10), SharedKnowledge())
        except FrameError as error:
            refused.add(str(error).split()[0])
    assert refused & {"the", "a"}  # sums that are too high, classes that come twice


@all_codecs
@given(data=st.data())
@settings(max_examples=40)
def test_any_bytes_give_a_value_or_a_frame_error(codec: Codec, data: Any) -> None:
    seed = data.draw(st.integers(0, 1000))
    random = np.random.default_rng(seed)
    count, classes = data.draw(st.sampled_from([(0, 2), (1, 3), (25, 10), (25, 70), (8, 320)]))
    rows = np.arange(count)
    spec = spec_of(count, classes, rows, count)
    memory: Any = {}
    if data.draw(st.booleans()):
        memory = codec.encode(probs_of(random, count, classes), spec, SharedKnowledge(), Sender()).memory
    known = SharedKnowledge(memory, other_labels=random.integers(-1, classes, count))
    other = data.draw(st.sampled_from([codec, *CODECS.values()]))
    valid = other.encode(probs_of(random, count, classes), spec, SharedKnowledge(), Sender()).payload
    payload = data.draw(
        st.one_of(
            st.binary(max_size=80),
            st.just(valid),
            st.integers(0, len(valid)).map(lambda cut: valid[:cut]),
            st.tuples(st.integers(0, max(0, len(valid) - 1)), st.integers(1, 255)).map(
                lambda flip: bytes(b ^ flip[1] if n == flip[0] else b for n, b in enumerate(valid))
            ),
        )
    )
    try:
        decoded = codec.decode(payload, spec, known)
    except FrameError:
        return
    assert decoded.values.shape == spec.shape
    assert np.isfinite(decoded.values).all()
    # Memory left behind by strange bytes serves the next message.
    values = probs_of(random, count, classes)
    there_and_back(codec, values, spec, SharedKnowledge(decoded.memory, other_labels=known.other_labels))


@pytest.mark.parametrize("codec", [onehot("predictive"), simplex(8, "predictive"), top(5, 8)])
def test_a_short_message_cannot_take_much_space(codec: Codec) -> None:
    spec = spec_of(3000, 10, np.arange(3000), 3000)
    codec.decode(b"", spec_of(0, 10), SharedKnowledge())  # tables that are made once
    tracemalloc.start()
    with contextlib.suppress(FrameError):
        codec.decode(b"\xff" * 20, spec, SharedKnowledge())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4_000_000 + 128 * spec.count


@pytest.mark.parametrize("levels", [3, 15])
def test_of_many_classes_the_largest_remainders_are_raised(levels: int) -> None:
    """Rows that are not sorted whole are rounded as those that are."""
    random = np.random.default_rng(0)
    values = probs_of(random, 40, 700)
    for row, found in zip(values.astype(np.float64), quantize(values, levels, random), strict=True):
        shares = row / row.sum() * levels
        expected = np.floor(shares).astype(int)
        raised = np.argsort(expected - shares)[: levels - expected.sum()]
        expected[raised] += 1
        assert found.tolist() == expected.tolist()
    even = quantize(np.full((300, 700), 1 / 700, np.float32), levels, random)
    assert even.sum(axis=1).tolist() == [levels] * 300
    # Of 700 classes, 900 draws leave out about a quarter.
    assert 450 < np.count_nonzero(even.any(axis=0)) <= 700


# Golden bytes: the first message, and a second one that leans on it

GOLDEN: dict[str, tuple[str, str]] = {
    "onehot predictive": (
        "9f9d3a9db6049155",
        "c3e6f343df1cf35b",
    ),
    "onehot delta": (
        "8cfb1db52c8a367b",
        "31148b244438807f",
    ),
    "onehot order0": (
        "9f9d3a9da1a5ad55",
        "1a4499c624199525",
    ),
    "onehot plain": (
        "43c648a1b47060c480",
        "63c848a2069020c480",
    ),
    "simplex 1 predictive": (
        "9f9d3a9db6049155",
        "c3e6f343df1cf35b",
    ),
    "simplex 1 delta": (
        "8cfb1db52c8a367b",
        "31148b244438807f",
    ),
    "simplex 1 order0": (
        "9f9d3a9da1a5ad55",
        "1a4499c624199525",
    ),
    "simplex 1 plain": (
        "43c648a1b47060c480",
        "63c848a2069020c480",
    ),
    "simplex 2 predictive": (
        "01473a9d3465ff9725abf6f8789f9271a1ecb9cc",
        "56e68493daee9457d8f3cfefecc3d1de5265d55c",
    ),
    "simplex 2 delta": (
        "1414011038e47ef091c2e5d90841ecec249445ce",
        "56c202c00d59cce2a2bd70283110597d00ea4757",
    ),
    "simplex 2 order0": (
        "1414011038e47ef091c2e5d90841ecec249445ce",
        "550401105f2a90ba733488aee043a1ad0e6f0afdb35a3927",
    ),
    "simplex 2 plain": (
        "c014c400604032404205180458011844251014604200cc000900532401c0",
        "c01484018400630046442400190230051514545045006c000900532101c0",
    ),
    "simplex 4 predictive": (
        "b8473a9d1a215b8cd9add597b3906cb4be8860078d107fec08706271f6c8738097ffd8bac95ae172d3b647b299fb277b",
        "e4a5f343cb9aa71f1767d254e42c1d0d9263c71e96336a3002c9ed9fd8408fc5213473599ceefd7d2737b286",
    ),
    "simplex 4 delta": (
        "0520100550c25f03ae8fd77c704c3507b74b3efaea784a27292e4110db92032802e3a30e947b4f4f8018c689",
        "92e700804771d88eb589c76d243d0fab5a0338639e03d78be411e7942517006cf2d3756514ee6684",
    ),
    "simplex 4 order0": (
        "0520100550c25f03ae8fd77c704c3507b74b3efaea784a27292e4110db92032802e3a30e947b4f4f8018c689",
        "241000044e6190ffed387838352d1536c8b61f7c927613ac3145e61e2b0094a312122c2529ac912adcf8e3fa0c8ebfa2",
    ),
    "simplex 4 plain": (
        "00d1511252d10100202b02200b2d00202b505410802342209033060380073080540802252105016807611100c2c01200b20200200d373209150000d2",
        "00d1411262c00300618011100c7800125750505040190120a3050a00200d3620640252252046026355411000c23b0100b20200200d363309150010c2",
    ),
    "simplex 8 predictive": (
        "9f9d3a9de00491555ee65195922e44ea47ea83fa197be26b4feb4d09a4c8ccca275df0421bbf7f09ae1653b6c1493fe36fb8b44e8b8c3aa275bb77e94e5bc502e7b32097fa158ce2129c6cf2d70269fb39a713b11506baa10c39ca92b6a401d7308592145bb19330",
        "c3e6f343c16d345ca38b85f789be03f0abe6d4f6f4c3d0cf4e581a6210dafd4612064d02e5ba72c1b2d0ee162a50cc944a321bc0fc63f15777fd2884cf02d45a696156d81dea59405a43599d458a579cce5e665bddceb1f3aa444fb45eb3bec6a9603d61",
    ),
    "simplex 8 delta": (
        "00084f004eeca818b832fdfaa54a56d14132e2322cbf6f07c2b271caa76053d1685c7536a2e470476532c1343b92f95b2ce2c445111254613c6e30e2bf118126a89758fff58ed8c94ba7089bfccb597cfac021a79a150268e5881ed8454ebc81",
        "82dc000057d97774a40eb3184b0f0b0884348b8ff4d7d2909f0d376f6b9d4ec998bab2a37bd0aa5df783921c58fae1134bf99cafe3b6763b5efdf93b43efd675b67449ebedd3b12d95021cf998e32759269e68a9e63d7d7a19b3578b03f1733e",
    ),
    "simplex 8 order0": (
        "00084f004eeca818b832fdfaa54a56d14132e2322cbf6f07c2b271caa76053d1685c7536a2e470476532c1343b92f95b2ce2c445111254613c6e30e2bf118126a89758fff58ed8c94ba7089bfccb597cfac021a79a150268e5881ed8454ebc81",
        "050745004e13af090751b2e2e2f06014c0cbb20ac11a9710b07293876b5ae02f7b5fc08edf816be316be5a169876a4e5d438f64ba9aa85583b294fce4e4301c630e80c9433bbff21476b29605a4d13ec1f852ca924b0a3231cc7ff1657213932",
    ),
    "simplex 8 plain": (
        "000118de084f241a234f08de18010000021eb82719050620bb00d72005030524be18004f4359011300892f1d2a4c001d0096333a66022a05007d7d000433037e475b89001b004f1d14215e001b01816272000e6b141103041ec900cf2307060626b41d0200000119e502723325339e0355090000000323d9",
        "000116e1074528171f5c07c334010005076804870a14030ed000867403021d187d4d004f025901540048920f1601002135a85105a3030308001cdb006534031c476922001e56561f0123664b1a013a5f53500a4d051103001fccbb380a0002061ebb1e0200000119e5036b313030990852090300000c22d1",
    ),
    "top 1 of 1": (
        "9f9d3a9dda049155387e8d89",
        "c3e6f343bc0a245c",
    ),
    "top 2 of 2": (
        "9f9d3a9de0049155d4d47aaf7448845e3b5d72141a1d9d93",
        "c3e6f3434fb82e5c9d1f1bc6942ed6ad398ac9c4",
    ),
    "top 3 of 4": (
        "9f9d3a9dde0491555caf87fb78b2c5566db9d3b2c8a4db401dc239968f3913f321db365360adc8837ccff40e6a769ceeeb97170db602f961",
        "c3e6f343f977305cf40b837990ed41419dd87de6d0540ac279fd5cec8e9c077f3157af5b429ae8e2b6f22bc2afa937cd",
    ),
    "top 5 of 8": (
        "9f9d3a9de0049155bb35f59b01289687a4477ff88dbf7424b5d563b8ab0da0680abcac2eafb868b843a2865b300328c9f4ac3e83295f77809084337281b314899e2f488db4cff857aa7e8a16b207b81a14337167ab38bc7e27a29e905f8b0d5ca72f11b12cdc18d65fc08d62b38ac18d09b1ddb33b07fb4ad3a9e7433665d9702d526e0b",
        "c3e6f3439873345c0c94781277382e9a090a6cdb3df0b37ab7cf75a570959a93d88e17dd31453ed0a4f898f6ea9135978a499c5b4bad7fdf35bfaec4fc0b4abe056e4c5dec29b87e9c86bd44b6b20c202962bf2a4800a0fb551649aaefd6fa4c07e9836ddc35edbc171b7459a79df92d39b49fb9da790f39b1bc9e6e",
    ),
}


def golden_values(message: int) -> Floats:
    """24 rows of 5 classes from integers alone, no two of a row equal; some change in the second message."""
    place = np.arange(24 * 5).reshape(24, 5)
    numbers = (place * place * 7 + place * (3 + message * (place % 3 == 0))) % 101 + 1
    return (8 * numbers**3 - np.arange(5)).astype(np.float32)


def golden(codec: Codec) -> tuple[str, str]:
    spec = spec_of(24, 5, np.arange(24) * 2, 50)
    first = codec.encode(golden_values(0), spec, SharedKnowledge(), Sender())
    other_labels = np.arange(24) % 6 - 1
    second = codec.encode(
        golden_values(1), spec, SharedKnowledge(first.memory, other_labels=other_labels), Sender()
    )
    return first.payload.hex(), second.payload.hex()


@all_codecs
def test_golden_payloads(codec: Codec, request: pytest.FixtureRequest) -> None:
    assert golden(codec) == GOLDEN[request.node.callspec.id]


def test_blocks_begin_small() -> None:
    """Coded bytes depend on this: a change is a change of the format."""
    assert adaptive_model.FIRST_BLOCK == 16

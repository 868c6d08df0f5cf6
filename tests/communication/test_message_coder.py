"""Whole messages through the two codecs of an arm, and what both sides remember of them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from communication_helpers import (
    SIZES,
    Changes,
    Described,
    Halving,
    Plain,
    WithBackbone,
    Witness,
    digests,
    message,
)

from fedistill.communication.codecs.base import Codec, Decoded, Encoded, Sender
from fedistill.communication.codecs.registry import CODECS, create_codec
from fedistill.communication.kinds import Direction
from fedistill.communication.messages.base import Message, contents, example_message
from fedistill.communication.messages.classwise import ClassOutputs, Prototypes, WeightsAndOutputs
from fedistill.communication.messages.labels import (
    ChosenLabels,
    DueLabels,
    FreshLabels,
    Logits,
    SoftLabels,
    Votes,
)
from fedistill.communication.messages.private_samples import PrivateLogits, PrivateOutputs
from fedistill.communication.messages.weights import CountedWeights, GeneratorWeights, TrainedWeights, Weights
from fedistill.communication.protocol.frame import Frame, StateId, encode
from fedistill.communication.protocol.message_coder import MessageCoder
from fedistill.communication.protocol.shared_state import EMPTY, SharedState, StatePart
from fedistill.communication.tensor_specs import Content, Floats, SharedKnowledge, TensorSpec
from fedistill.communication.varint import varint
from fedistill.errors import FrameError, TrainingError
from fedistill.rng import SERVER

KINDS = [Weights, TrainedWeights, ClassOutputs, Logits, SoftLabels, Votes, FreshLabels, DueLabels]
KINDS += [Prototypes, WeightsAndOutputs, CountedWeights, GeneratorWeights, ChosenLabels]
KINDS += [PrivateOutputs, PrivateLogits, Described, WithBackbone]
WAYS: list[Direction] = ["up", "down"]
both_ways = pytest.mark.parametrize("way", WAYS)
FITTING: list[tuple[Direction, type[Message], str]] = [
    (way, kind, name)
    for way in WAYS
    for kind in KINDS
    for name, codec in CODECS.items()
    if contents(kind) <= codec.codes and (way == "down" or not kind.caches)
]
fitting = pytest.mark.parametrize(
    ("way", "kind", "name"), FITTING, ids=lambda value: getattr(value, "__name__", value)
)


def plain() -> MessageCoder:
    return MessageCoder(create_codec("fp32"), create_codec("fp32"), seed=0)


def write(
    coder: MessageCoder, way: Direction, what: Message, shared: SharedState = EMPTY, **more: Any
) -> Any:
    own = None if way == "down" else {}
    given = {"sent": None, "own": own, "round": 4, "client": SERVER if way == "down" else 1, **more}
    return coder.write(way, what, SIZES, shared, **given)


def read(
    coder: MessageCoder,
    way: Direction,
    kind: type[Message],
    sections: Any,
    shared: SharedState = EMPTY,
    **more: Any,
) -> Any:
    return coder.read(way, kind, sections, SIZES, shared, **{"sent": None, "round": 4, **more})


def refusal(kind: type[Message], sections: tuple[bytes, ...], **more: Any) -> str:
    with pytest.raises(FrameError) as caught:
        read(plain(), "up", kind, sections, **more)
    return str(caught.value)


@fitting
def test_both_sides_end_with_the_same(way: Direction, kind: type[Message], name: str) -> None:
    coder = MessageCoder(create_codec(name), create_codec(name), seed=0, messages=[kind])
    shared = EMPTY
    held = np.ones(SIZES.parameters, np.float32) if Content.WEIGHTS in contents(kind) else None
    for round in (1, 2, 3):
        sent = message(kind, round, 0)
        written = write(coder, way, sent, shared, round=round, sent=held)
        came = read(coder, way, kind, written.sections, shared, round=round, sent=held)
        assert came.shared.state_id == written.shared.state_id
        assert digests(came.shared) == digests(written.shared)
        assert came.message.numbers() == sent.numbers()
        assert all(value.isfinite().all() for value in came.message.tensors().values())
        again = read(coder, way, kind, written.sections, shared, round=round, sent=held)
        assert digests(again.shared) == digests(came.shared)
        for field, value in came.message.tensors().items():
            assert torch.equal(value, again.message.tensors()[field])
        shared = came.shared


@fitting
def test_a_memory_is_never_changed_in_place(way: Direction, kind: type[Message], name: str) -> None:
    """The server goes back to it where a reply is lost."""
    coder = MessageCoder(create_codec(name), create_codec(name), seed=0, messages=[kind])
    before = write(coder, way, message(kind, 1, 0), round=1).shared
    twin = SharedState.of(before.plain())
    parts = {name: StatePart({**part.value}) for name, part in before.parts.items()}
    written = write(coder, way, message(kind, 2, 1), before, round=2)
    read(coder, way, kind, written.sections, before, round=2)
    assert digests(SharedState(before.version, parts)) == digests(twin)


@both_ways
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_sections_are_the_fields_in_their_order(way: Direction, kind: type[Message]) -> None:
    sent = message(kind, 3, 0)
    sections = write(MessageCoder(create_codec("fp32"), create_codec("fp32"), 0, [kind]), way, sent).sections
    expected: dict[str, bytes] = {}
    integer_arrays = kind.integer_arrays(SIZES, sent.numbers())
    arrays = {name: sent.tensors()[name].numpy() for name in integer_arrays}
    for name, value in {**sent.tensors(), **sent.numbers()}.items():
        if isinstance(value, int):
            expected[name] = varint(value)
        elif name in integer_arrays:
            expected[name] = integer_arrays[name].write(arrays[name])
        else:
            rows = kind.specs(SIZES, {**sent.numbers(), **arrays, "held": 0})[name].rows
            expected[name] = (value[torch.from_numpy(rows)] if kind.caches else value).numpy().tobytes()
    in_order = [
        b"\1" + expected[name] if name in kind.once else expected[name] for name in kind.needed_names()
    ]
    assert list(sections) == in_order
    assert all(expected[name] == b"" for name in kind.names()[len(in_order) :])


@pytest.mark.parametrize("count", [0, 1, 4])
def test_other_sections_are_named(count: int) -> None:
    said = refusal(TrainedWeights, (b"",) * count)
    assert said == f"frame has {count} sections, not 2 (values, samples)"


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"", "section 'samples': frame ends in the middle of a field"),
        (b"\x80", "section 'samples': frame ends in the middle of a field"),
        (b"\x05\x00\x00", "section 'samples': 2 bytes follow the integer"),
        (b"\xff" * 10, "section 'samples': frame has an integer of more than 63 bits"),
    ],
)
def test_odd_integers_are_refused(payload: bytes, said: str) -> None:
    assert refusal(TrainedWeights, (bytes(40), payload)) == said


@pytest.mark.parametrize("number", [5, 6, 2**62])
@pytest.mark.parametrize("kind", [Logits, SoftLabels, Votes, DueLabels, FreshLabels, ChosenLabels])
def test_samples_of_a_later_round_are_refused_before_they_are_drawn(kind: type[Message], number: int) -> None:
    def never(*_: int) -> Any:
        raise AssertionError("sampled_round")

    sizes = replace(SIZES, sampled=never, since=never)
    (name,) = {"sampled_round", "turn"} & {*kind.number_names()}
    sections = tuple(varint(number) if field == name else b"\0" for field in kind.names())
    with pytest.raises(FrameError) as caught:
        plain().read("up", kind, sections, sizes, EMPTY, sent=None, round=4)
    assert str(caught.value) == f"{name.replace('_', ' ')} {number} came in round 4"


# What is remembered


def test_where_nothing_looks_at_it_nothing_is_remembered() -> None:
    for way in WAYS:
        coder = plain()
        assert not coder.remembers
        assert write(coder, way, message(SoftLabels, 1, 0)).shared == EMPTY
        assert coder.start(torch.ones(10)) == EMPTY


@pytest.mark.parametrize(
    ("up", "down", "parts"),
    [
        (Changes, Plain, {"up", "told"}),
        (Plain, Changes, {"down", "said"}),
        (Changes, Changes, {"up", "down", "told", "said"}),
    ],
)
def test_what_is_remembered_of_labels(up: type[Any], down: type[Any], parts: set[str]) -> None:
    coder = MessageCoder(up(), down(), seed=0)
    shared = write(coder, "down", message(SoftLabels, 1, 0)).shared
    shared = write(coder, "up", message(SoftLabels, 1, 0), shared).shared
    assert set(shared.parts) == parts
    assert shared.version == 1


def test_classes_are_remembered_by_place_in_the_public_set() -> None:
    """By hand: samples 1, 3, 5, 7, 9 in round 1, and 2, 4, 6, 8, 10 in round 2, of 12."""
    coder = MessageCoder(Changes(), Plain(), seed=0)
    likeliest = [0, 2, 1, 1, 0]
    probs = torch.eye(3)[likeliest]
    shared = write(coder, "down", SoftLabels(probs, 1)).shared
    assert shared.value("told")["classes"].tolist() == [-1, 0, -1, 2, -1, 1, -1, 1, -1, 0, -1, -1]
    shared = write(coder, "down", SoftLabels(probs.flip(0), 2), shared).shared
    assert shared.value("told")["classes"].tolist() == [-1, 0, 0, 2, 1, 1, 1, 1, 2, 0, 0, -1]


def test_a_codec_is_told_the_classes_of_the_other_direction() -> None:
    seen: list[Any] = []

    class Listening(Changes):
        def encode(self, values: Floats, spec: TensorSpec, known: SharedKnowledge, sender: Sender) -> Encoded:
            seen.append(None if known.other_labels is None else known.other_labels.tolist())
            return super().encode(values, spec, known, sender)

    coder = MessageCoder(Listening(), Plain(), seed=0)
    shared = write(coder, "down", SoftLabels(torch.eye(3)[[0, 2, 1, 1, 0]], 1)).shared
    write(coder, "up", message(SoftLabels, 1, 0))
    write(coder, "up", message(SoftLabels, 1, 0), shared)
    write(coder, "up", message(SoftLabels, 3, 0), shared)
    # Round 3 has samples 3, 5, 7, 9 and 11.
    assert seen == [None, [0, 2, 1, 1, 0], [2, 1, 1, 0, -1]]


def test_weights_down_are_the_reference_of_the_next_and_of_the_reply() -> None:
    coder = MessageCoder(Halving(), Halving(), seed=0)
    start = coder.start(torch.ones(SIZES.parameters))
    assert (start.version, start.value("reference")["weights"].tolist()) == (0, [1.0] * 10)
    written = write(coder, "down", Weights(torch.full((10,), 3.0)), start)
    # Half of the way from 1 to 3, and then from 2 to 6.
    assert written.weights.tolist() == [2.0] * 10
    assert written.shared.value("reference")["weights"].tolist() == [2.0] * 10
    came = read(coder, "down", Weights, written.sections, start)
    assert came.message.values.tolist() == came.weights.tolist() == [2.0] * 10
    up = write(coder, "up", Weights(torch.full((10,), 6.0)), came.shared, sent=came.weights)
    answer = read(coder, "up", Weights, up.sections, came.shared, sent=came.weights)
    assert answer.message.values.tolist() == [4.0] * 10
    assert answer.shared.value("reference")["weights"].tolist() == [2.0] * 10


def test_a_cache_is_filled_by_the_rows_that_come() -> None:
    coder = MessageCoder(create_codec("fp32"), create_codec("fp32"), seed=0, messages=[FreshLabels])
    assert coder.remembers
    labels = message(FreshLabels, 4, 0).tensors()["probs"]
    shared, sizes = EMPTY, []
    for turn in (1, 3, 3, 4):
        written = write(coder, "down", FreshLabels(labels, turn), shared)
        came = read(coder, "down", FreshLabels, written.sections, shared)
        there = torch.arange(12) % 4 < turn
        assert torch.equal(came.message.probs, labels * there[:, None])
        shared = came.shared
        sizes.append(len(written.sections[0]))
    # 12 samples, a quarter of them in each turn, of 3 classes in 4 bytes each.
    assert sizes == [36, 72, 0, 36]
    assert shared.value("cache")["turn"] == 4


def test_what_the_receiver_has_is_remembered_and_not_what_was_meant() -> None:
    class Blunt(Plain):
        def decode(self, payload: bytes, spec: TensorSpec, known: SharedKnowledge) -> Decoded:
            rounded = np.round(super().decode(payload, spec, known).values)
            rounded[rounded.sum(axis=1) == 0] = 1 / 3
            return Decoded(rounded)

    coder = MessageCoder(Changes(), Blunt(), seed=0)
    probs = torch.tensor([[0.4, 0.6, 0.0]] * 4 + [[0.3, 0.3, 0.4]])
    shared = write(coder, "down", SoftLabels(probs, 1)).shared
    # The last row is even once it was rounded, so that its first class is named.
    assert shared.value("told")["classes"].tolist()[1:10:2] == [1, 1, 1, 1, 0]


def test_streams_have_the_name_of_client_round_way_and_tensor() -> None:
    drawn: list[int] = []

    class Drawing(Plain):
        def encode(self, values: Floats, spec: TensorSpec, known: SharedKnowledge, sender: Sender) -> Encoded:
            drawn.append(int(sender.random.integers(2**60)))
            return super().encode(values, spec, known, sender)

    def draw(seed: int, way: Direction, round: int, client: int) -> int:
        coder = MessageCoder(Drawing(), Drawing(), seed)
        write(coder, way, message(SoftLabels, 1, 0), round=round, client=client)
        return drawn[-1]

    cases: list[Any] = [(0, "up", 1, 1), (1, "up", 1, 1), (0, "down", 1, 1), (0, "up", 2, 1), (0, "up", 1, 2)]
    assert len({draw(*case) for case in cases}) == len(cases)
    assert draw(*cases[0]) == draw(*cases[0])


# Lengths foretold


@fitting
def test_a_foretold_length_is_exact_for_codecs_of_fixed_width(
    way: Direction, kind: type[Message], name: str
) -> None:
    codec: Codec = create_codec(name)
    coder = MessageCoder(codec, codec, seed=0, messages=[kind])
    foretold = coder.length(way, kind, SIZES)
    assert foretold > 11
    if codec.fixed:
        sent = example_message(kind, SIZES) if kind.varies else message(kind, 1, 0)
        sections = write(coder, way, sent, round=1).sections
        state_id = StateId(1, bytes(4)) if coder.remembers else None
        assert foretold == len(encode(Frame(kind.kind, 1, 1, sections, state_id)))


def test_witness_knows_what_it_must() -> None:
    """The toy that guards the tests of the ends does refuse another's knowledge."""
    codec, spec = Witness(), TensorSpec(Content.WEIGHTS, (3,))
    values = np.ones(3, np.float32)
    known = SharedKnowledge(codec.encode(values, spec, SharedKnowledge(), Sender()).memory, values, None)
    payload = codec.encode(values, spec, known, Sender()).payload
    assert codec.decode(payload, spec, known).values.tolist() == [1, 1, 1]
    others = [
        replace(known, memory={}),
        replace(known, reference=None),
        replace(known, other_labels=np.zeros(3, np.int64)),
    ]
    for other in others:
        with pytest.raises(FrameError, match="OUT OF STEP"):
            codec.decode(payload, spec, other)


class Careless(Plain):
    """Makes the last number what no number is."""

    name = "careless"

    def decode(self, payload: bytes, spec: TensorSpec, known: SharedKnowledge) -> Decoded:
        decoded = super().decode(payload, spec, known)
        decoded.values[..., -1] = np.inf
        return decoded


@both_ways
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_message_with_numbers_that_are_not_finite_is_neither_sent_nor_read(
    way: Direction, value: float
) -> None:
    """Under any codec: many would clip them, or make another class of them."""
    what = example_message(Logits, SIZES)
    tensors = what.tensors()
    name = next(iter(tensors))
    spoilt = tensors[name].clone()
    spoilt[-1, 0] = value
    for codec in ("fp32", "fp16", "int8"):
        coder = MessageCoder(create_codec(codec), create_codec(codec), seed=0)
        with pytest.raises(TrainingError) as caught:
            write(coder, way, replace(what, **{name: spoilt}))
        assert str(caught.value) == (
            f"the message to send has NaN or infinite numbers in {name!r}: lower train.optimizer.lr, or look"
            " for extreme inputs"
        )
    sections = write(plain(), way, what).sections
    with pytest.raises(FrameError) as refused:
        read(MessageCoder(Careless(), Careless(), seed=0), way, Logits, sections)
    assert str(refused.value) == f"section {name!r}: it has numbers that are NaN or infinite"

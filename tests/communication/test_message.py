"""Messages: what is sent arrives, and what was not expected is refused by name."""

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedistill.communication.codecs.base import Codec, Sender
from fedistill.communication.codecs.registry import create_codec
from fedistill.communication.kinds import Kind
from fedistill.communication.messages.base import Message, MessageContext, contents, example_message
from fedistill.communication.messages.bridge import BridgeReply, BridgeRequest
from fedistill.communication.messages.classwise import ClassOutputs, Prototypes, WeightsAndOutputs
from fedistill.communication.messages.integer_arrays import Subset
from fedistill.communication.messages.labels import (
    ChosenLabels,
    DueLabels,
    FreshLabels,
    Logits,
    SoftLabels,
    Votes,
)
from fedistill.communication.messages.masked import MaskedReply, MaskedRequest
from fedistill.communication.messages.private_samples import PrivateLogits, PrivateOutputs
from fedistill.communication.messages.scored import ScoredLabels, ScoredWeights
from fedistill.communication.messages.statistics import FeatureMoments, StatisticsRequest, WordCounts
from fedistill.communication.messages.tally import TallyReply, TallyRequest
from fedistill.communication.messages.weights import CountedWeights, GeneratorWeights, TrainedWeights, Weights
from fedistill.communication.protocol import frame as frames
from fedistill.communication.protocol.endpoints import ClientEndpoint, ServerEndpoint
from fedistill.communication.protocol.frame import EVERYONE, Frame
from fedistill.communication.protocol.message_coder import MessageCoder
from fedistill.communication.protocol.shared_state import EMPTY
from fedistill.communication.tensor_specs import Classes, Content, SharedKnowledge, TensorSpec
from fedistill.communication.varint import varint
from fedistill.errors import FrameError, TrainingError

M = TypeVar("M", bound=Message)
FP32, FP16 = create_codec("fp32"), create_codec("fp16")


def since(held: int, turn: int) -> Classes:
    """Turn t brings labels of the samples t, t + 7, t + 14, …; of turns after ``held``, up to ``turn``."""
    places = np.arange(20)
    return places[(places % 7 > held) & (places % 7 <= turn)]


SIZES = MessageContext(
    classes=3,
    parameters=7,
    samples=4,
    parts=((2, 3), (1,)),
    population=20,
    sampled=lambda round: np.arange(4) * 2 + round,
    since=since,
    width=4,
    generator=((2, 2),),
    private=5,
    length=8,
)


@dataclass(frozen=True)
class Case:
    """A message type, the tensor's name and shape under `SIZES`, the integer's name, and the kind.

    ``sent`` are the rows of the tensor that cross where not all do.
    """

    type: type[Message]
    tensor: str
    shape: tuple[int, ...]
    integer: str | None
    label: str
    sent: Callable[[], Classes] | None = None

    def message(self, values: Tensor, number: int = 2) -> Message:
        fields: dict[str, Any] = {self.tensor: values}
        if self.integer:
            fields[self.integer] = number
        return self.type(**fields)

    def tensor_of(self, message: Message) -> Tensor:
        found = getattr(message, self.tensor)
        assert isinstance(found, Tensor)
        return found

    def crossing(self, values: Tensor) -> Tensor:
        return values if self.sent is None else values[torch.from_numpy(self.sent())]

    def arriving(self, values: Tensor) -> Tensor:
        """What a receiver without memory has of it: zeros where nothing crossed."""
        if self.sent is None:
            return values
        arrived = torch.zeros_like(values)
        arrived[torch.from_numpy(self.sent())] = self.crossing(values)
        return arrived

    def sample(self, seed: int = 0) -> Tensor:
        noise = torch.randn(self.shape, generator=torch.Generator().manual_seed(seed))
        return noise.softmax(dim=1) if self.tensor == "probs" else noise


CASES = [
    Case(Weights, "values", (7,), None, "weights"),
    Case(TrainedWeights, "values", (7,), "samples", "weights"),
    Case(ClassOutputs, "means", (3, 3), None, "class-outputs"),
    Case(Logits, "scores", (4, 3), "sampled_round", "logits"),
    Case(SoftLabels, "probs", (4, 3), "sampled_round", "soft-labels"),
    Case(Votes, "probs", (4, 3), "sampled_round", "votes"),
    Case(FreshLabels, "probs", (20, 3), "turn", "fresh-labels", lambda: since(0, 2)),
    Case(DueLabels, "probs", (3, 3), "turn", "due-labels"),
    Case(PrivateLogits, "scores", (5, 3), None, "private-logits"),
]
SEVERAL = {
    ScoredLabels,
    ScoredWeights,
    WeightsAndOutputs,
    CountedWeights,
    GeneratorWeights,
    ChosenLabels,
    Prototypes,
    PrivateOutputs,
}
"""Of more than one tensor; tested below and with the others in test_exchange.py."""
LOSSLESS = {StatisticsRequest, WordCounts, FeatureMoments}
"""Without anything for a codec to code; tested in test_statistics_messages.py."""
STAGED = {BridgeRequest, BridgeReply, MaskedRequest, MaskedReply, TallyRequest, TallyReply}
"""What they have depends on the stage of a run; tested in test_bridge_messages.py and
test_tally_messages.py."""
each = pytest.mark.parametrize("case", CASES, ids=[case.type.__name__ for case in CASES])
both = pytest.mark.parametrize("codec", [FP32, FP16], ids=["fp32", "fp16"])


def test_every_message_type_is_tested() -> None:
    ours = {
        kind for kind in Message.__subclasses__() if kind.__module__.startswith("fedistill.communication.")
    }
    assert ours == {case.type for case in CASES} | SEVERAL | LOSSLESS | STAGED


def exchange(codec: Codec, kind: type[Message]) -> MessageCoder:
    return MessageCoder(codec, codec, seed=0, messages=[kind])


def pack(message: Message, codec: Codec = FP32, round: int = 2, client: int | None = None) -> bytes:
    """The frame of the server's first message to a client, or to everyone."""
    end = ServerEndpoint(exchange(codec, type(message)), {}, lambda client: EMPTY, round)
    return end.send(client or 0, "everyone" if client is None else client, message, SIZES)


def unpack(
    expected: type[M], data: bytes, codec: Codec = FP32, sizes: MessageContext = SIZES, client: int = 1
) -> M:
    """What a client reads from its first frame, in round 2."""
    return ClientEndpoint(exchange(codec, expected), {}, EMPTY, 2, client).receive(expected, data, sizes)


def refusal(expected: type[Message], data: bytes, codec: Codec = FP32, sizes: MessageContext = SIZES) -> str:
    """What is said about a frame in round 2 at client 1."""
    with pytest.raises(FrameError) as caught:
        unpack(expected, data, codec, sizes)
    return str(caught.value)


def framed(case: Case, payload: bytes) -> bytes:
    """A frame of round 2 with this payload for the tensor."""
    sections = {case.tensor: payload} | ({case.integer: b"\x02"} if case.integer else {})
    kind = case.type.kind
    return frames.encode(Frame(kind, 2, EVERYONE, tuple(sections[name] for name in case.type.needed_names())))


@each
@pytest.mark.parametrize("client", [None, 0, 1, 300])
def test_round_trip_fp32_is_exact(case: Case, client: int | None) -> None:
    number = 2**40 if case.integer == "samples" else 2
    sent = case.message(case.sample(), number)
    came = unpack(case.type, pack(sent, client=client), client=client or 0)
    assert type(came) is case.type
    assert torch.equal(case.tensor_of(came), case.arriving(case.tensor_of(sent)))
    assert case.tensor_of(came).dtype == torch.float32
    if case.integer:
        assert getattr(came, case.integer) == number


@each
def test_round_trip_fp16_rounds_to_half(case: Case) -> None:
    values = case.sample()
    came = unpack(case.type, pack(case.message(values), FP16), FP16)
    assert torch.equal(case.tensor_of(came), case.arriving(values).half().float())
    assert not torch.equal(case.tensor_of(came), case.arriving(values))


@each
@both
def test_bytes_are_little_endian_in_c_order(case: Case, codec: Codec) -> None:
    # A transposed and channels-last like view has other strides; what crosses must not show it.
    values = case.sample()
    strided = values.t().contiguous().t() if values.dim() == 2 else values.repeat_interleave(2)[::2]
    sections = frames.decode(pack(case.message(strided), codec)).sections
    crossing = case.crossing(values)
    letter = "f" if codec is FP32 else "e"
    expected = struct.pack(f"<{crossing.numel()}{letter}", *crossing.flatten().tolist())
    assert sections[case.type.names().index(case.tensor)] == expected


def test_a_tensor_with_a_gradient_or_another_type_can_be_sent() -> None:
    values = torch.arange(7.0, requires_grad=True)
    assert pack(Weights(values)) == pack(Weights(torch.arange(7.0)))
    assert pack(Weights(torch.arange(7).double())) == pack(Weights(torch.arange(7.0)))


def test_fp16_clips_to_its_largest_number() -> None:
    values = torch.tensor([1e6, -1e6, 65504.0, 65505.0, 65519.9, -65504.0, 0.0])
    came = unpack(Weights, pack(Weights(values), FP16), FP16)
    assert came.values.tolist() == [65504, -65504, 65504, 65504, 65504, -65504, 0]


@settings(max_examples=200)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=50))
def test_plain_codecs_against_struct(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    spec = TensorSpec(Content.SCORES, (len(values), 1))

    def crossed(codec: Codec) -> list[float]:
        encoded = codec.encode(array.reshape(spec.shape), spec, SharedKnowledge(), Sender())
        return codec.decode(encoded.payload, spec, SharedKnowledge()).values.ravel().tolist()

    assert crossed(FP32) == array.tolist()
    assert crossed(FP16) == [float(np.float16(min(max(value, -65504.0), 65504.0))) for value in values]


@each
@both
@pytest.mark.parametrize("way", ["up", "down"])
def test_length_by_hand(case: Case, codec: Codec, way: Any) -> None:
    # "fd", version, kind, round, peer, base and checksum: 11; a section: the length of its data, one byte,
    # and the data; an integer below 128: one byte. A cache is remembered: 4 more.
    # Foretold is turn 1, of 3 samples; of `FreshLabels` the first, since nothing is held; of prototypes, all.
    width = 4 if codec is FP32 else 2
    rows = 3 if case.integer in ("turn", "present") else case.shape[0]
    count = rows * int(np.prod(case.shape[1:]))
    expected = 11 + 1 + width * count + (2 if case.integer else 0) + 4 * case.type.caches
    assert exchange(codec, case.type).length(way, case.type, SIZES) == expected


@each
def test_another_kind_is_named(case: Case) -> None:
    other = next(one for one in CASES if one.label != case.label)
    said = refusal(case.type, pack(other.message(other.sample())))
    assert said == f"a frame of {other.label} came where {case.label} belong"


@each
def test_another_round_is_named(case: Case) -> None:
    said = refusal(case.type, pack(case.message(case.sample()), round=3))
    assert said == "a frame of round 3 came in round 2"


@each
def test_another_client_is_named(case: Case) -> None:
    said = refusal(case.type, pack(case.message(case.sample()), client=4))
    assert said == "a frame of client 4 came where client 1's belongs"


@each
@both
@pytest.mark.parametrize("change", [-1, 1])
def test_another_size_is_named(case: Case, codec: Codec, change: int) -> None:
    count = case.crossing(case.sample()).numel()
    width = 4 if codec is FP32 else 2
    said = refusal(case.type, framed(case, bytes(width * (count + change))), codec)
    assert said == (
        f"section '{case.tensor}': {width * (count + change)} bytes of {codec.name} where {count} numbers"
        f" were expected ({width * count} bytes)"
    )


@each
def test_the_shape_comes_from_the_receiver(case: Case) -> None:
    """Nothing in a frame says a shape: the numbers are read in the one that the receiver expects."""
    crossing = case.crossing(case.sample())
    payload = struct.pack(f"<{crossing.numel()}f", *crossing.flatten().tolist())
    came = unpack(case.type, framed(case, payload))
    assert torch.equal(case.tensor_of(came), case.arriving(case.sample()))


def test_a_receiver_that_expects_other_sizes_refuses() -> None:
    data = pack(Logits(torch.zeros(4, 3), 1))
    for sizes in (replace(SIZES, classes=4), replace(SIZES, samples=5), MessageContext(3)):
        assert "were expected" in refusal(Logits, data, sizes=sizes)


def test_a_frame_of_the_other_codec_is_refused() -> None:
    assert "bytes of fp16 where 7" in refusal(Weights, pack(Weights(torch.zeros(7))), FP16)
    assert "bytes of fp32 where 7" in refusal(Weights, pack(Weights(torch.zeros(7)), FP16), FP32)


@each
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(case: Case, bad: float) -> None:
    crossing = case.crossing(case.sample())
    crossing.view(-1)[3] = bad
    payload = struct.pack(f"<{crossing.numel()}f", *crossing.flatten().tolist())
    said = refusal(case.type, framed(case, payload))
    assert said == f"section '{case.tensor}': a number in the message is not finite"


@pytest.mark.parametrize("half", [b"\x00\x7c", b"\x00\xfc", b"\x01\x7c", b"\x00\x7e"])
def test_halves_that_are_not_finite_are_refused(half: bytes) -> None:
    said = refusal(Weights, framed(CASES[0], b"\0\0" * 6 + half), FP16)
    assert said == "section 'values': a number in the message is not finite"


def test_nan_does_not_become_a_number_by_fp16() -> None:
    values = torch.zeros(7)
    values[2] = torch.nan
    with pytest.raises(TrainingError, match="the message to send has NaN or infinite numbers in 'values'"):
        pack(Weights(values), FP16)
    # The codec alone does not hide it either.
    spec = TensorSpec(Content.WEIGHTS, (7,))
    payload = FP16.encode(
        values.numpy(), spec, SharedKnowledge(), Sender(None, np.random.default_rng(0))
    ).payload
    with pytest.raises(FrameError, match="a number in the message is not finite"):
        FP16.decode(payload, spec, SharedKnowledge())


@settings(max_examples=500)
@given(st.binary(max_size=100), st.binary(max_size=20))
def test_random_sections_are_refused_or_read(values: bytes, number: bytes) -> None:
    data = frames.encode(Frame(Kind.WEIGHTS, 2, 2, (values, number)))
    try:
        came = unpack(TrainedWeights, data)
    except FrameError:
        return
    assert len(values) == 28
    assert came.values.isfinite().all()


@each
def test_an_example_is_of_full_size(case: Case) -> None:
    found = case.tensor_of(example_message(case.type, SIZES))
    assert found.shape == {
        DueLabels: (3, 3),
    }.get(case.type, case.shape)
    if Content.PROBS in contents(case.type):
        assert torch.allclose(found.sum(dim=1), torch.ones(len(found)))


def test_contents() -> None:
    probs = {SoftLabels, Votes, FreshLabels, DueLabels}
    assert {case.type for case in CASES if contents(case.type) == {Content.PROBS}} == probs
    scores = {ClassOutputs, Logits, PrivateLogits}
    assert {case.type for case in CASES if contents(case.type) == {Content.SCORES}} == scores
    several = {Content.WEIGHTS, Content.SCORES}
    alike = {ChosenLabels, Prototypes, PrivateOutputs, ScoredLabels, ScoredWeights}
    assert {kind for kind in SEVERAL if contents(kind) == several} == SEVERAL - alike
    assert contents(PrivateOutputs) == {Content.SCORES}
    assert (contents(ScoredLabels), contents(ScoredWeights)) == ({Content.PROBS}, {Content.WEIGHTS})
    assert (contents(ChosenLabels), contents(Prototypes)) == ({Content.PROBS}, {Content.SCORES})
    assert {case.type for case in CASES if contents(case.type) == {Content.WEIGHTS}} == {
        Weights,
        TrainedWeights,
    }


def test_what_both_sides_know_of_a_tensor() -> None:
    """Worked out by hand for `SIZES`: round 3's samples are 3, 5, 7 and 9; turns 2 and 3 brought six."""
    spec = SoftLabels.specs(SIZES, {"sampled_round": 3})["probs"]
    assert (spec.content, spec.shape, spec.population, spec.count) == (Content.PROBS, (4, 3), 20, 12)
    assert spec.rows is not None
    assert spec.rows.tolist() == [3, 5, 7, 9]
    spec = FreshLabels.specs(SIZES, {"held": 1, "turn": 3})["probs"]
    assert spec.rows is not None
    assert (spec.rows.tolist(), spec.shape) == ([2, 3, 9, 10, 16, 17], (6, 3))
    spec = DueLabels.specs(SIZES, {"turn": 3})["probs"]
    assert spec.rows is not None
    assert (spec.rows.tolist(), spec.shape) == ([3, 10, 17], (3, 3))
    spec = Weights.specs(SIZES, {})["values"]
    assert (spec.shape, spec.parts, spec.rows, spec.population) == ((7,), ((2, 3), (1,)), None, 0)


def test_rows_have_no_place_where_nothing_is_drawn() -> None:
    spec = Logits.specs(MessageContext(classes=3, samples=4, population=20), {"sampled_round": 1})["scores"]
    assert (spec.rows, spec.population, spec.shape) == (None, 0, (4, 3))


@pytest.mark.parametrize("rows", [[], [0], [2], [0, 2], [0, 1, 2]])
def test_prototypes_of_absent_classes_do_not_cross(rows: list[int]) -> None:
    """A vector of zeros is one that is there."""
    table = torch.arange(12.0).reshape(3, 4)
    mask = torch.tensor([place in rows for place in range(3)])
    sent = Prototypes.of(table, mask)
    assert (sent.present, sent.classes.tolist()) == (len(rows), rows)
    data = pack(sent)
    marks = 4 if 0 < len(rows) < 3 else 0  # the range coder writes four bytes, or none where nothing is open
    assert 0 <= 11 + (1 + 4 * 4 * len(rows)) + (1 + marks) + 2 - len(data) <= marks
    vectors, known = unpack(Prototypes, data).table(3)
    assert torch.equal(known, mask)
    assert torch.equal(vectors, table * mask[:, None])


def test_prototypes_of_unknown_classes_are_refused() -> None:
    data = frames.encode(Frame(Kind.PROTOTYPES, 2, EVERYONE, (bytes(64), b"", b"\x04")))
    assert refusal(Prototypes, data) == "section 'classes': a subset cannot have 4 of 3 elements"
    beyond = Subset(2, 9).write(np.array([1, 7]))
    data = frames.encode(Frame(Kind.PROTOTYPES, 2, EVERYONE, (bytes(32), beyond, b"\x02")))
    assert "section 'classes'" in refusal(Prototypes, data)


def test_messages_of_several_tensors() -> None:
    """Shapes by hand: 7 weights, 3 classes, a generator of 4 numbers."""
    expected = {
        WeightsAndOutputs: {"values": (7,), "means": (3, 3), "integers": (0,)},
        CountedWeights: {"values": (7,), "counts": (1, 3), "integers": (0,)},
        GeneratorWeights: {"values": (7,), "generator": (4,), "shares": (1, 3), "integers": (0,)},
        ChosenLabels: {"probs": (4, 3), "places": (4,)},
        Prototypes: {"vectors": (3, 4), "classes": (3,)},
        PrivateOutputs: {"features": (5, 4), "scores": (5, 3), "labels": (5,)},
        ScoredLabels: {"probs": (4, 3), "scores": (20,)},
        ScoredWeights: {"values": (7,), "scores": (20,), "integers": (0,)},
    }
    assert set(expected) == SEVERAL
    for kind, shapes in expected.items():
        sent = example_message(kind, SIZES)
        assert {name: tuple(value.shape) for name, value in sent.tensors().items()} == shapes
        came = unpack(kind, pack(sent))
        assert came.numbers() == sent.numbers()
        assert all(torch.equal(value, sent.tensors()[name]) for name, value in came.tensors().items())


def test_labels_of_chosen_samples() -> None:
    """Round 2's samples are 2, 4, 6 and 8 of the public set; the sender chose the second and the fourth."""
    sent = ChosenLabels(torch.eye(3)[:2], torch.tensor([1, 3]), sampled_round=2, chosen=2)
    data = pack(sent, create_codec("onehot"))
    came = unpack(ChosenLabels, data, create_codec("onehot"))
    assert came.places.tolist() == [1, 3]
    assert torch.equal(came.probs, sent.probs)
    spec = ChosenLabels.specs(SIZES, {"sampled_round": 2, "chosen": 2, "places": np.array([1, 3])})["probs"]
    assert spec.rows is not None
    assert (spec.rows.tolist(), spec.shape, spec.population) == ([4, 8], (2, 3), 20)


def test_nothing_chosen_is_a_message_too() -> None:
    sent = ChosenLabels(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), sampled_round=2, chosen=0)
    came = unpack(ChosenLabels, pack(sent))
    assert (came.probs.shape, came.places.shape) == ((0, 3), (0,))


def test_more_chosen_than_there_are_is_refused() -> None:
    sections = (bytes(60), b"", b"\x02", b"\x05")
    frame = frames.encode(Frame(Kind.CHOSEN_LABELS, 2, EVERYONE, sections))
    assert refusal(ChosenLabels, frame) == "section 'places': a subset cannot have 5 of 4 elements"


def test_private_samples_are_labelled_or_not() -> None:
    """Five samples, of the classes 2, 0, 1, 1 and 2; the receiver's count of them, and no other, is read."""
    features, scores, labels = torch.ones(5, 4), torch.zeros(5, 3), torch.tensor([2, 0, 1, 1, 2])
    for labelled in (0, 1):
        sent = PrivateOutputs(features, scores, labels[: 5 * labelled], labelled)
        data = pack(sent)
        came = unpack(PrivateOutputs, data)
        assert came.labels.tolist() == sent.labels.tolist()
        assert torch.equal(came.features, features)
        assert "expected" in refusal(PrivateOutputs, data, sizes=replace(SIZES, private=6))
    assert len(frames.decode(pack(PrivateOutputs(features, scores, labels[:0], 0))).sections[2]) == 0


def test_private_samples_are_not_labelled_twice() -> None:
    frame = Frame(Kind.PRIVATE_OUTPUTS, 2, EVERYONE, (bytes(80), bytes(60), b"", varint(2**40)))
    said = refusal(PrivateOutputs, frames.encode(frame))
    assert said == "`labelled` is 1099511627776; it must be 0 or 1"

"""Fields that are sent until they are known to have arrived: bytes by hand, and all that can go wrong."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from communication_helpers import SIZES, Described, Plain, WithBackbone, message, once_seed
from communication_world import Fate, Talk, World, world
from torch import Tensor

from fedistill.communication.codecs.base import Encoded, Sender
from fedistill.communication.codecs.registry import CODECS, create_codec
from fedistill.communication.kinds import Direction, Kind
from fedistill.communication.messages.base import Message, MessageContext, Numbers, contents
from fedistill.communication.messages.integer_arrays import Symbols
from fedistill.communication.messages.weights import Weights
from fedistill.communication.protocol import frame as frames
from fedistill.communication.protocol.endpoints import ClientEndpoint, ServerEndpoint
from fedistill.communication.protocol.message_coder import DecodedMessage, EncodedMessage, MessageCoder
from fedistill.communication.protocol.shared_state import EMPTY, SharedState
from fedistill.communication.tensor_specs import Content, Floats, SharedKnowledge, TensorSpec
from fedistill.errors import FrameError
from fedistill.rng import SERVER

UP = Talk(Described, Weights)
BOTH = Talk(Described, Described, "each")
TO_ALL = Talk(WithBackbone, WithBackbone)
WAYS: list[Direction] = ["up", "down"]

# Of 4 private samples: 3 logits and 6 features each, in 4 bytes; their classes are range-coded.
SCORES, FEATURES = 4 * 3 * 4, 4 * 6 * 4
LABELS = len(Symbols(4, 3).write(torch.tensor([0, 1, 2, 0]).numpy()))
# Flat weights, and those of the part that nobody trains.
VALUES, BACKBONE = 10 * 4, (2 * 3 + 4) * 4
# "fd", version, kind, round, peer, no state and checksum; 4 more where a state is named; a length a section.
BARE, NAMED = 11, 15
WHOLE = NAMED + (1 + SCORES) + (1 + 1 + FEATURES) + (1 + 1 + LABELS)
MARKED = NAMED + (1 + SCORES) + (1 + 1) + (1 + 1)


def fp32(talk: Talk) -> World:
    return world(talk, create_codec("fp32"), create_codec("fp32"))


def sections(played: World, way: str, round: int, client: int = 0) -> list[int]:
    """Bytes of each section of a frame."""
    return [len(section) for section in frames.decode(played.frames[way, round, client]).sections]


def test_the_second_frame_is_shorter_by_the_payloads_and_nothing_else() -> None:
    played = fp32(UP)
    for round in (1, 2, 3):
        played.play(round, [Fate.WHOLE])
    assert [len(played.frames["up", round, 0]) for round in (1, 2, 3)] == [WHOLE - 4, MARKED, MARKED]
    assert WHOLE - MARKED == FEATURES + LABELS


def test_down_as_up() -> None:
    played = fp32(BOTH)
    for round in (1, 2):
        played.play(round, [Fate.WHOLE])
    assert [len(played.frames["down", round, 0]) for round in (1, 2)] == [WHOLE - 4, MARKED]
    # What the frame down brought is a state, which the first frame up names.
    assert [len(played.frames["up", round, 0]) for round in (1, 2)] == [WHOLE, MARKED]
    assert set(played.shared_states[0].parts) == {"once-up", "once-down"}


@pytest.mark.parametrize(
    ("fate", "again"),
    [
        (Fate.REPLY_LOST, True),
        (Fate.CRASHED_AND_LOST, True),
        (Fate.NOT_REACHED, True),
        (Fate.ABSENT, True),
        (Fate.WHOLE, False),
    ],
)
def test_it_is_sent_again_until_an_exchange_is_whole(fate: Fate, again: bool) -> None:
    played = fp32(BOTH)
    played.play(1, [fate])
    played.play(2, [Fate.WHOLE])
    played.play(3, [Fate.WHOLE])
    for way in WAYS:
        assert sections(played, way, 2)[1:] == ([1 + FEATURES, 1 + LABELS] if again else [1, 1])
    assert sections(played, "up", 3)[1:] == sections(played, "down", 3)[1:] == [1, 1]


def test_what_has_arrived_stays_held_while_a_client_is_away() -> None:
    played = fp32(UP)
    for round, fate in enumerate([Fate.WHOLE, Fate.ABSENT, Fate.REPLY_LOST], start=1):
        played.play(round, [fate])
    assert sections(played, "up", 3) == [SCORES, 1, 1]


def test_a_client_whose_state_was_not_saved_is_refreshed_and_sends_it_again() -> None:
    played = fp32(BOTH)
    for round, fate in enumerate([Fate.CRASHED, Fate.WHOLE, Fate.WHOLE], start=1):
        played.play(round, [fate])
    assert played.happened == {"exchange": 2, "refresh": 1}
    # Round 2: the server goes on from what the client does not hold.
    assert sections(played, "down", 2) == [SCORES, 1, 1]
    assert [len(played.frames[way, 3, 0]) for way in ("down", "up")] == [WHOLE - 4, WHOLE]


def test_a_client_that_forgot_is_refreshed_and_sent_everything_again() -> None:
    played = fp32(BOTH)
    for round, fate in enumerate([Fate.WHOLE, Fate.FORGOT, Fate.WHOLE], start=1):
        played.play(round, [fate])
    assert played.happened == {"exchange": 2, "refresh": 1}
    assert [len(played.frames[way, 3, 0]) for way in ("down", "up")] == [WHOLE - 4, WHOLE]


def test_a_server_that_falls_back_is_sent_it_again() -> None:
    """As one that goes on from an earlier checkpoint: the client goes back to what both hold."""
    coder = MessageCoder(create_codec("fp32"), create_codec("fp32"), seed=0, messages=[Described, Weights])
    kept: Any = {}
    lengths = []
    for round in (1, 2):
        server = ServerEndpoint(coder, {}, lambda client: EMPTY, round)
        client = ClientEndpoint(coder, kept, EMPTY, round, 0)
        client.receive(Weights, server.send(0, "all", message(Weights, -round, 0), SIZES), SIZES)
        reply = client.reply(message(Described, round, 0), SIZES)
        came = server.receive(0, Described, reply, SIZES)
        assert came is not None
        assert torch.equal(came.features, message(Described, round, 0).tensors()["features"])
        kept = client.kept()
        lengths.append(len(reply))
    assert lengths == [WHOLE - 4] * 2


def test_only_the_field_that_changed_is_sent_anew() -> None:
    """Features are others from round 4 on; classes are not."""
    assert once_seed(3, 0) != once_seed(4, 0) == once_seed(5, 0)
    played = fp32(UP)
    for round in range(1, 6):
        played.play(round, [Fate.WHOLE])
    assert [sections(played, "up", round)[1:] for round in (3, 4, 5)] == [[1, 1], [1 + FEATURES, 1], [1, 1]]


def test_clients_in_different_states_are_sent_different_frames() -> None:
    """Client 2 is absent in round 1, and the frame for client 1 is lost."""
    codec = Plain()
    played = world(TO_ALL, create_codec("fp32"), codec)
    played.play(1, [Fate.WHOLE, Fate.NOT_REACHED, Fate.ABSENT])
    assert codec.coded == 2  # two tensors, once
    played.play(2, [Fate.WHOLE] * 3)
    assert codec.coded == 2 + 2 * 2  # once for client 0, and once for the other two
    assert [sections(played, "down", 2, client) for client in range(3)] == [
        [VALUES, 1],
        [VALUES, 1 + BACKBONE],
        [VALUES, 1 + BACKBONE],
    ]
    played.play(3, [Fate.WHOLE] * 3)
    assert codec.coded == 2 + 2 * 2 + 2
    assert [sections(played, "down", 3, client) for client in range(3)] == [[VALUES, 1]] * 3


def write(
    coder: MessageCoder, way: Direction, sent: Message, shared: SharedState, round: int
) -> EncodedMessage:
    own, client = (None, SERVER) if way == "down" else ({}, 1)
    return coder.write(way, sent, SIZES, shared, sent=None, own=own, round=round, client=client)


def read(
    coder: MessageCoder, way: Direction, kind: type[Message], payloads: tuple[bytes, ...], shared: SharedState
) -> DecodedMessage[Any]:
    return coder.read(way, kind, payloads, SIZES, shared, sent=None, round=1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("kind", "name", "field"),
    [
        (kind, name, field)
        for kind, field in ((Described, "features"), (WithBackbone, "backbone"))
        for name, codec in CODECS.items()
        if contents(kind) <= codec.codes
    ],
)
def test_an_unchanged_value_is_not_sent_again_under_any_codec(
    way: Direction, kind: type[Message], name: str, field: str
) -> None:
    """Nor does the receiver's value change, whatever the codec loses, rounds by chance or remembers."""
    coder = MessageCoder(create_codec(name), create_codec(name), seed=0, messages=[kind])
    place = kind.names().index(field)
    shared, values, lengths = EMPTY, [], []
    for round in (1, 2, 3, 4):
        written = write(coder, way, message(kind, round, 0), shared, round)
        came = read(coder, way, kind, written.sections, shared)
        shared = came.shared
        values.append(came.message.tensors()[field])
        lengths.append(len(written.sections[place]))
    # The value is another one in round 4.
    assert lengths[1:3] == [1, 1]
    assert min(lengths[0], lengths[3]) > 1
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])
    assert not torch.equal(values[0], values[3])
    if name == "fp32":
        assert torch.equal(values[0], message(kind, 1, 0).tensors()[field])


class Dithered(Plain):
    """Rounds each number up or down by chance."""

    def encode(self, values: Floats, spec: TensorSpec, known: SharedKnowledge, sender: Sender) -> Encoded:
        rounded = np.floor(values + sender.random.random(values.shape)).astype(np.float32)
        return super().encode(rounded, spec, known, sender)


@pytest.mark.parametrize("way", WAYS)
def test_chance_is_the_same_in_each_round(way: Direction) -> None:
    coder = MessageCoder(Dithered(), Dithered(), seed=0, messages=[Described])
    first = write(coder, way, message(Described, 1, 0), EMPTY, 1)
    second = write(coder, way, message(Described, 2, 0), first.shared, 2)
    assert [len(section) for section in second.sections] == [SCORES, 1, 1]


@pytest.mark.parametrize("way", WAYS)
def test_both_sides_remember_where_a_message_has_such_a_field(way: Direction) -> None:
    codec = create_codec("fp32")
    assert not MessageCoder(codec, codec, seed=0, messages=[Weights]).remembers
    assert MessageCoder(codec, codec, seed=0, messages=[Weights, Described]).remembers
    coder = MessageCoder(codec, codec, seed=0, messages=[Described])
    assert set(write(coder, way, message(Described, 1, 0), EMPTY, 1).shared.parts) == {f"once-{way}"}


def test_a_foretold_length_is_that_of_the_first_frame() -> None:
    coder = MessageCoder(create_codec("fp32"), create_codec("fp32"), seed=0, messages=[Described])
    assert coder.length("up", Described, SIZES) == coder.length("down", Described, SIZES) == WHOLE


# What a stranger may send


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (b"\0", "it states that its value is held, but none is"),
        (b"", "it neither contains a value nor states that the value is held"),
        (b"\0\0", "it neither contains a value nor states that the value is held"),
        (b"\2" + bytes(FEATURES), "it neither contains a value nor states that the value is held"),
    ],
)
def test_odd_marks_are_refused_by_name(section: bytes, said: str) -> None:
    coder = MessageCoder(create_codec("fp32"), create_codec("fp32"), seed=0, messages=[Described])
    scores, _, labels = write(coder, "up", message(Described, 1, 0), EMPTY, 1).sections
    with pytest.raises(FrameError) as caught:
        read(coder, "up", Described, (scores, section, labels), EMPTY)
    assert str(caught.value) == f"section 'features': {said}"


@dataclass(frozen=True)
class Sized(Message):
    """Features of as many samples as it says, once."""

    kind = Kind.PRIVATE_LOGITS
    once = frozenset({"features"})
    features: Tensor
    count: int

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return {"features": TensorSpec(Content.SCORES, (numbers["count"], context.width))}


def test_what_is_held_must_be_what_is_expected_now() -> None:
    """A frame that says "as held" of features that it also says to be of another number of samples."""
    coder = MessageCoder(create_codec("fp32"), create_codec("fp32"), seed=0, messages=[Sized])
    shared = write(coder, "up", Sized(torch.ones(4, 6), 4), EMPTY, 1).shared
    assert torch.equal(read(coder, "up", Sized, (b"\0", b"\4"), shared).message.features, torch.ones(4, 6))
    for count in (b"\0", b"\5"):
        with pytest.raises(FrameError, match="section 'features'"):
            read(coder, "up", Sized, (b"\0", count), shared)
    longer = write(coder, "up", Sized(torch.ones(5, 6), 5), shared, 2)
    assert [len(section) for section in longer.sections] == [1 + 5 * 6 * 4, 1]


def test_a_refused_frame_commits_nothing() -> None:
    played = fp32(UP)
    played.play(1, [Fate.WHOLE])
    server = ServerEndpoint(played.coder, played.shared_states, lambda client: EMPTY, 2)
    server.send(0, "all", message(Weights, -2, 0), SIZES)
    state_id = played.shared_states[0].state_id
    good = frames.Frame(Kind.PRIVATE_LOGITS, 2, 1, (bytes(SCORES), b"\0", b"\0"), state_id)
    bad = replace(good, sections=(bytes(SCORES), b"\1", b"\0"))
    with pytest.raises(FrameError, match="section 'features'"):
        server.receive(0, Described, frames.encode(bad), SIZES)
    assert server.shared_states[0] == played.shared_states[0]
    came = server.receive(0, Described, frames.encode(good), SIZES)
    assert came is not None
    assert torch.equal(came.features, message(Described, 1, 0).tensors()["features"])

"""A server and its clients in small, and what can go wrong between them."""

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum

import torch
from communication_helpers import (
    POPULATION,
    SIZES,
    digests,
    message,
    since,
)
from torch import Tensor

from fedistill.communication.codecs.base import Codec
from fedistill.communication.messages.base import Message
from fedistill.communication.messages.weights import Weights
from fedistill.communication.protocol.endpoints import ClientEndpoint, ServerEndpoint, StaleState
from fedistill.communication.protocol.message_coder import MessageCoder
from fedistill.communication.protocol.shared_state import EMPTY, SharedState, dump_states, load_states
from fedistill.communication.tensor_specs import Content
from fedistill.state import decode_state, encode_state

CLIENTS = 3
COUNT = SIZES.parameters


class Fate(Enum):
    """What becomes of a client in a round."""

    WHOLE = "takes part"
    ABSENT = "is not asked"
    NOT_REACHED = "the frame down is lost"
    REPLY_LOST = "the frame up is lost"
    CRASHED = "the frame up arrives, but the client's new state is not saved"
    CRASHED_AND_LOST = "neither arrives nor is saved"
    FORGOT = "has lost its state before the round"
    FORGOT_AND_LOST = "has lost its state before the round, and the frame up is lost"

    @property
    def reached(self) -> bool:
        return self not in (Fate.ABSENT, Fate.NOT_REACHED)

    @property
    def forgot(self) -> bool:
        return self in (Fate.FORGOT, Fate.FORGOT_AND_LOST)

    @property
    def saves(self) -> bool:
        return self not in (Fate.CRASHED, Fate.CRASHED_AND_LOST)

    @property
    def arrives(self) -> bool:
        return self not in (Fate.REPLY_LOST, Fate.CRASHED_AND_LOST, Fate.FORGOT_AND_LOST)


@dataclass(frozen=True)
class Talk:
    """Which messages are exchanged; ``broadcast_group`` "each" has a message for each client apart."""

    up: type[Message]
    down: type[Message]
    broadcast_group: str = "everyone"


Standing = tuple[int, ...]
NOTHING: Standing = (0,)
START: Standing = (0, -1)


@dataclass
class World:
    """A server and its clients, whose states go through bytes after each round.

    For each client: what names the state after the exchange that the server stands at (`NOTHING`; `START`;
    else the exchange), and after the two that the client holds.
    """

    coder: MessageCoder
    talk: Talk
    shared_states: dict[int, SharedState] = field(default_factory=dict)
    kept: dict[int, bytes] = field(default_factory=dict)
    at_server: dict[int, Standing] = field(default_factory=dict)
    at_client: dict[int, tuple[Standing, Standing]] = field(default_factory=dict)
    exchanges: int = 0
    frames: dict[tuple[str, int, int], bytes] = field(default_factory=dict)
    """By direction, round and client."""
    happened: Counter[str] = field(default_factory=Counter)

    @property
    def start(self) -> SharedState:
        return self.coder.start(torch.ones(SIZES.parameters) if self.talk.down is Weights else None)

    @property
    def marked(self) -> bool:
        """Whether memories of different exchanges differ in more than their number."""
        up, down = self.coder.up, self.coder.down
        return up.remembers or down.remembers or down.relative or self.talk.down.caches

    def play(self, round: int, fates: list[Fate]) -> None:
        server = ServerEndpoint(self.coder, self.shared_states, lambda client: self.start, round)
        for client, fate in enumerate(fates):
            if fate is not Fate.ABSENT:
                self._meet(server, client, round, fate)
        self.shared_states = load_states(decode_state(encode_state(dump_states(server.shared_states))))

    def _meet(self, server: ServerEndpoint, client: int, round: int, fate: Fate) -> None:
        broadcast_group: Hashable = client if self.talk.broadcast_group == "each" else "everyone"
        down = message(self.talk.down, -round, client if self.talk.broadcast_group == "each" else 0)
        data = server.send(client, broadcast_group, down, SIZES)
        self.frames["down", round, client] = data
        if fate.forgot:
            self.kept.pop(client, None)
            self.at_client.pop(client, None)
        if not fate.reached:
            return
        kept = decode_state(self.kept[client]) if client in self.kept else {}
        end = ClientEndpoint(self.coder, kept, self.start, round, client)
        at_server = self.at_server.get(client, START)
        at_client = self.at_client.get(client, (START, START))
        # The one reason for a refresh: the server goes on from something that the client does not hold.
        foreseen = self.coder.remembers and at_server != NOTHING and at_server not in at_client
        try:
            came = end.receive(self.talk.down, data, SIZES)
        except StaleState:
            assert foreseen
            self.happened["refresh"] += 1
            if fate.arrives:
                assert server.receive(client, self.talk.up, end.refresh(), SIZES) is None
                assert server.shared_states[client] == EMPTY
                self.at_server[client] = NOTHING
            return
        assert not foreseen
        self.arrived(down, came, self.coder.down)
        up = message(self.talk.up, round, client)
        reply = end.reply(up, SIZES)
        self.frames["up", round, client] = reply
        self.exchanges += 1
        # Where nothing else differs, states are told apart by their version and by what was sent once.
        sent_once = tuple(abs(round) // 4 for kind in (self.talk.up, self.talk.down) if kind.once)
        number = (self.exchanges,) if self.marked else (at_server[0] + 1, *sent_once)
        if fate.saves:
            self.kept[client] = encode_state(end.kept())
            self.at_client[client] = (at_server, number)
        if not fate.arrives:
            return
        read = server.receive(client, self.talk.up, reply, SIZES)
        assert read is not None
        # Where references differ, weights are read as though the client had started from what was meant.
        shift = _weights(down) - _weights(came) if self.behind(client) else None
        self.arrived(up, read, self.coder.up, shift)
        if shift is not None and shift.any():
            self.happened["shift"] += 1
        self.at_server[client] = number
        self.happened["exchange"] += 1
        if fate.saves and self.coder.remembers:
            theirs = SharedState.of(decode_state(self.kept[client])["after"]["memory"])
            assert server.shared_states[client].state_id == theirs.state_id
            assert digests(server.shared_states[client]) == digests(theirs)

    def behind(self, client: int) -> bool:
        """Whether, for all that the server knows, another client holds other weights of this model."""
        own = _reference(self.shared_states.get(client, self.start))
        others = [_reference(shared) for shared in self.shared_states.values()]
        return own is not None and any(
            other is not None and len(other) == len(own) and not torch.equal(other, own) for other in others
        )

    def arrived(self, sent: Message, came: Message, codec: Codec, shift: Tensor | None = None) -> None:
        """``shift``: what is added to the weights (P,) on the way."""
        assert type(came) is type(sent)
        assert came.numbers() == sent.numbers()
        moves = () if shift is None else _weight_names(sent)
        for name, values in came.tensors().items():
            assert values.isfinite().all()
            if codec.lossiness == "nothing":
                wanted = expected(sent.tensors()[name], sent)
                assert torch.equal(values, wanted if name not in moves else wanted + shift)


def _weight_names(what: Message) -> list[str]:
    specs = type(what).specs(SIZES, {**what.numbers(), "held": 0})
    weights = [name for name, spec in specs.items() if spec.content is Content.WEIGHTS]
    return [name for name in weights if name not in what.once and what.tensors()[name].shape == (COUNT,)]


def _weights(what: Message) -> Tensor:
    (name,) = _weight_names(what)
    return what.tensors()[name]


def _reference(shared: SharedState) -> Tensor | None:
    return shared.value("reference").get("weights")


def expected(values: Tensor, sent: Message) -> Tensor:
    """What a receiver has that missed nothing: rows that have a label by this turn."""
    if not sent.caches:
        return values
    there = torch.zeros(POPULATION, 1)
    there[torch.from_numpy(since(0, sent.numbers()["turn"]))] = 1
    return values * there


def world(talk: Talk, up: Codec, down: Codec) -> World:
    return World(MessageCoder(up, down, seed=3, messages=(talk.up, talk.down)), talk)

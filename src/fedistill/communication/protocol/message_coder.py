"""Codes complete messages with an arm's two codecs, and adds what each message tells to the shared state."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from fedistill.communication.codecs.base import Codec, Sender
from fedistill.communication.kinds import Direction
from fedistill.communication.messages.base import Message, MessageContext, check_message, example_message
from fedistill.communication.protocol import frame as frames
from fedistill.communication.protocol.plain_end import decode_tensor, encode_tensor
from fedistill.communication.protocol.shared_parts import (
    LAST_LABELS,
    SENT_ONCE,
    held_payloads,
    held_turn,
    last_labels,
    read_once,
    with_labels,
    with_payloads,
    with_rows,
    write_once,
)
from fedistill.communication.protocol.shared_state import EMPTY, SharedState, StatePart
from fedistill.communication.protocol.value_checks import check_values, mean_size
from fedistill.communication.tensor_specs import Classes, Content, Floats, SharedKnowledge, TensorSpec
from fedistill.communication.varint import read_varint, varint
from fedistill.errors import FrameError, TrainingError
from fedistill.rng import numpy_stream
from fedistill.state import State

M = TypeVar("M", bound=Message)
Sections = tuple[bytes, ...]
_NO_ROUND = 0
"""Stands for the round where every round must draw the same, so that equal values have equal bytes."""


@dataclass(frozen=True)
class EncodedMessage:
    """A coded message.

    Attributes:
        shared: the state that both sides share once the message has arrived.
        own: what the sender alone keeps.
        weights: the weights (P,) that the receiver will have, or None where nothing depends on them.
        meant: the first of the weights that were to be sent, or None if there are none.
        size: the root mean square of the weights, without buffers; 0 if it has none.
    """

    sections: Sections
    shared: SharedState
    own: State
    weights: Floats | None = None
    meant: Floats | None = None
    size: float = 0.0


@dataclass(frozen=True)
class DecodedMessage(Generic[M]):
    """A decoded message.

    Attributes:
        shared: the state that both sides share from now on.
        weights: its weights (P,), of several the first, or None if it has none.
        moves: names of the tensors that are weights, except those that are sent once.
        largest: the largest size of a number of these.
    """

    message: M
    shared: SharedState
    weights: Floats | None
    moves: tuple[str, ...] = ()
    largest: float = 0.0


class MessageCoder:
    """The codecs up and down of an arm; one object serves all clients."""

    def __init__(self, up: Codec, down: Codec, seed: int, messages: Collection[type[Message]] = ()) -> None:
        """Check the messages that will cross, and find out whether both sides share a state.

        Args:
            up, down: the codecs of the two directions.
            seed: of all random streams.
            messages: the classes of the messages that will cross, up or down.

        Raises:
            ExperimentError: one of these classes could not be sent.
        """
        for message in messages:
            check_message(message)
        self.up, self.down, self._seed = up, down, seed
        stateful = any(message.caches or message.once for message in messages)
        self.remembers = up.remembers or down.remembers or up.keeps or down.relative or stateful
        """Whether both sides share a state; if not, no frame names one."""

    def start(self, weights: Tensor | None) -> SharedState:
        """Return what both sides know before round 1: the initial weights of the model that travels."""
        if weights is None or not self.down.relative:
            return EMPTY
        return SharedState(0, {"reference": StatePart({"weights": weights})})

    def write(
        self,
        way: Direction,
        message: Message,
        context: MessageContext,
        shared: SharedState,
        *,
        sent: Floats | None,
        own: State | None,
        round: int,
        client: int,
        behind: bool = False,
    ) -> EncodedMessage:
        """Code a message.

        Args:
            sent: on the uplink, the weights (P,) that came down in this round, or None if none did.
            own: what `EncodedMessage` said to keep; None on the downlink, where nothing is kept.
            round, client: name the random stream.
            behind: as in `Sender`.

        Raises:
            TrainingError: a number of the message is NaN or infinite.
        """
        codec = self._codec(way)
        kept: State = {}
        meant, size = None, 0.0
        known_numbers = {**message.numbers(), **held_turn(shared)}
        tensors = message.tensors()
        payloads = {name: varint(number) for name, number in message.numbers().items()}
        arrays: dict[str, Classes] = {}
        for name, expected in type(message).integer_arrays(context, known_numbers).items():
            arrays[name] = tensors[name].numpy()
            payloads[name] = expected.write(arrays[name])
        for name, spec in type(message).specs(context, {**known_numbers, **arrays}).items():
            once = name in message.once
            stream = partial(
                numpy_stream, self._seed, f"code {way} {name}", client, _NO_ROUND if once else round
            )
            sender = Sender(None, stream, behind=behind)
            if own is not None and not once:
                weight = context.weights[context.client] if context.weights else 1.0
                sender = Sender(own.get(name, {}), stream, weight, context.weights or (1.0,))
            if _is_absent(spec):
                payloads[name] = b""
                continue
            values = tensors[name].detach().to(torch.float32).contiguous().numpy()
            if message.caches:
                values = values[spec.rows]
            if values.shape != spec.shape:
                raise TrainingError(
                    f"{name!r} of a message has the shape {values.shape}, but both sides expect {spec.shape}"
                )
            if not np.isfinite(values).all():
                raise TrainingError(
                    f"the message to send has NaN or infinite numbers in {name!r}: lower"
                    " train.optimizer.lr, or look for extreme inputs"
                )
            if spec.content is Content.WEIGHTS and not once and way == "down":
                meant = values if meant is None else meant
                size = max(size, mean_size(values[: spec.count - spec.plain]))
            known = SharedKnowledge() if once else self._known(way, name, spec, shared, sent)
            encoded = encode_tensor(codec, values, spec, known, sender)
            payloads[name] = encoded.payload
            if encoded.own:
                kept[name] = encoded.own
        held = held_payloads(shared, way)
        for name in message.once:
            payloads[name] = write_once(payloads[name], held.get(name))
        sections = _without_empty_ends(type(message), payloads)
        if not self._reads_back(way, message):
            return EncodedMessage(sections, self.counted(way, shared), kept, meant=meant, size=size)
        # The sender reads what it wrote: both sides share what the receiver got, not what the sender meant.
        read = self.read(way, type(message), sections, context, shared, sent=sent, round=round)
        return EncodedMessage(sections, read.shared, kept, read.weights, meant, size)

    def read(
        self,
        way: Direction,
        expected: type[M],
        sections: Sections,
        context: MessageContext,
        shared: SharedState,
        *,
        sent: Floats | None,
        round: int,
    ) -> DecodedMessage[M]:
        """Read the message that the receiver expects.

        Args:
            sent: as in `write`.

        Raises:
            FrameError: it has other sections, tensors of another size, or numbers that `value_checks` refuse.
        """
        names = expected.names()
        if not len(expected.needed_names()) <= len(sections) <= len(names):
            needed = expected.needed_names()
            raise FrameError(f"frame has {len(sections)} sections, not {len(needed)} ({', '.join(needed)})")
        payloads = dict(zip_longest(names, sections, fillvalue=b""))
        held = held_payloads(shared, way)
        once = [name for name in names if name in expected.once]
        for name in once:
            with _section(name):
                payloads[name] = read_once(payloads[name], held.get(name))
        numbers = {name: _number(name, payloads[name]) for name in expected.number_names()}
        for name, number in numbers.items():
            if name in ("sampled_round", "turn") and number > round:
                raise FrameError(f"{name.replace('_', ' ')} {number} came in round {round}")
        known_numbers = {**numbers, **held_turn(shared)}
        arrays: dict[str, Classes] = {}
        for name, array in expected.integer_arrays(context, known_numbers).items():
            with _section(name):
                arrays[name] = array.read(payloads[name])
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        codec = self._codec(way)
        codec_states: State = {}
        parts = dict(shared.parts)
        weights, largest = None, 0.0
        moves: list[str] = []
        for name, spec in expected.specs(context, {**known_numbers, **arrays}).items():
            if _is_absent(spec):
                if payloads[name]:
                    raise FrameError(f"{name}: it has bytes, but both sides expect no weights")
                tensors[name] = torch.zeros(0)
                continue
            known = SharedKnowledge() if name in once else self._known(way, name, spec, shared, sent)
            with _section(name):
                decoded = decode_tensor(codec, payloads[name], spec, known)
                size = check_values(decoded.values, spec)
            tensors[name] = torch.from_numpy(decoded.values)
            if name in once:
                continue
            codec_states[name] = decoded.memory
            if expected.caches:
                parts["cache"] = with_rows(shared.value("cache"), spec, tensors[name], numbers["turn"])
                tensors[name] = parts["cache"].value["probs"]
            if spec.content is Content.WEIGHTS:
                weights = decoded.values if weights is None else weights
                largest = max(largest, size)
                moves.append(name)
            other = self._codec("down" if way == "up" else "up")
            if spec.rows is not None and other.remembers:
                table = LAST_LABELS[way]
                parts[table] = with_labels(shared.value(table), spec, decoded.values)
        if codec.remembers:
            parts[way] = StatePart(codec_states)
        if any(payloads[name] != held.get(name) for name in once):
            parts[SENT_ONCE[way]] = with_payloads({name: payloads[name] for name in once})
        if way == "down" and codec.relative and weights is not None:
            parts["reference"] = StatePart({"weights": torch.from_numpy(weights)})
        after = self.counted(way, SharedState(shared.version, parts))
        return DecodedMessage(expected(**numbers, **tensors), after, weights, tuple(moves), largest)

    def length(self, way: Direction, kind: type[Message], context: MessageContext) -> int:
        """Estimate the bytes of a first frame: exact for codecs of fixed width, else for random numbers."""
        sent = np.zeros(context.parameters, np.float32)
        shared = self.start(torch.from_numpy(sent))
        message = example_message(kind, context)
        written = self.write(way, message, context, shared, sent=sent, own={}, round=2, client=0)
        state_id = frames.StateId(1, bytes(4)) if self.remembers else None
        return len(frames.encode(frames.Frame(kind.kind, 1, 1, written.sections, state_id)))

    def _codec(self, way: Direction) -> Codec:
        return self.up if way == "up" else self.down

    def _reads_back(self, way: Direction, message: Message) -> bool:
        if way == "up":
            return self.up.remembers or self.down.remembers or bool(message.once)
        return self.remembers or self.up.relative

    def counted(self, way: Direction, shared: SharedState) -> SharedState:
        """Count an exchange, which a message up ends."""
        if not self.remembers:
            return EMPTY
        return SharedState(shared.version + (way == "up"), shared.parts)

    def _known(
        self, way: Direction, name: str, spec: TensorSpec, shared: SharedState, sent: Floats | None
    ) -> SharedKnowledge:
        codec = self._codec(way)
        reference = sent
        if way == "down":
            held = shared.value("reference")
            reference = held["weights"].numpy() if held else None
        return SharedKnowledge(
            memory=shared.value(way).get(name, {}) if codec.remembers else {},
            reference=reference if codec.relative else None,
            other_labels=last_labels(shared, "down" if way == "up" else "up", spec),
        )


def _is_absent(spec: TensorSpec) -> bool:
    """Whether a message has no weights where another of its class has: nothing is coded or kept."""
    return spec.content is Content.WEIGHTS and spec.count == 0


def _without_empty_ends(kind: type[Message], payloads: dict[str, bytes]) -> Sections:
    """Return the sections of a message; fields that it need not have are left out at its end if empty."""
    names = kind.names()
    while len(names) > len(kind.needed_names()) and not payloads[names[-1]]:
        names.pop()
    return tuple(payloads[name] for name in names)


def _number(name: str, payload: bytes) -> int:
    with _section(name):
        value, end = read_varint(payload, 0)
        if end != len(payload):
            raise FrameError(f"{len(payload) - end} bytes follow the integer")
    return value


@contextmanager
def _section(name: str) -> Iterator[None]:
    """Name the section that is at fault."""
    try:
        yield
    except FrameError as error:
        raise FrameError(f"section {name!r}: {error}") from None

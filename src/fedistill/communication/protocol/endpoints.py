"""The two ends of a link: frames in, messages out, and a shared state that never falls out of step.

One rule keeps it in step: **an exchange is atomic**. At the server, a reply commits both
the message down and the message up; without a reply, the server keeps the state from before the exchange. The
client cannot know whether its reply arrived, so it keeps the states before and after its last exchange, and
the `StateId` in the next frame identifies which of the two the server holds. A sender may always code
without shared state; both sides then start from an empty one. A client that does not hold the state that a
frame names replies with a refresh, and is sent everything again when it next takes part.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

from fedistill.communication.codecs.updates import finite
from fedistill.communication.kinds import Kind, kind_label
from fedistill.communication.messages.base import Message, MessageContext
from fedistill.communication.protocol import frame as frames
from fedistill.communication.protocol.frame import EVERYONE, Frame, StateId
from fedistill.communication.protocol.message_coder import DecodedMessage, EncodedMessage, MessageCoder
from fedistill.communication.protocol.shared_state import EMPTY, SharedState
from fedistill.communication.protocol.value_checks import check_direction, check_growth
from fedistill.communication.tensor_specs import Floats
from fedistill.errors import FrameError
from fedistill.rng import SERVER
from fedistill.state import State, as_bytes, as_tensor, decode_state, encode_state

M = TypeVar("M", bound=Message)
_DOWN_PARTS = ("down", "reference", "told", "cache", "once-down")
"""Parts of the shared state that a message down changes."""


class StaleState(FrameError):
    """A frame was coded against a shared state that the receiver does not hold."""


class ServerEndpoint:
    """The server's end of all links of an arm, in one round."""

    def __init__(
        self,
        coder: MessageCoder,
        shared_states: Mapping[int, SharedState],
        start: Callable[[int], SharedState],
        round: int,
        local: int = 1,
    ) -> None:
        """Begin a round.

        Args:
            shared_states: of each client that has taken part before.
            start: returns the shared state of a client that has not.
            local: rounds of local training that the frames ask for.
        """
        self._coder, self._round, self._start, self._local = coder, round, start, local
        self.shared_states = dict(shared_states)
        self._open: dict[int, tuple[SharedState, EncodedMessage, bool]] = {}
        self._written: dict[Hashable, EncodedMessage] = {}
        self._broadcast: dict[Frame, bytes] = {}
        self._references = {_reference(shared) for shared in shared_states.values()}

    def send(
        self, client: int, broadcast_group: Hashable, message: Message, context: MessageContext
    ) -> bytes:
        """Return the frame of a message, coded once for all clients of a group whose shared states agree."""
        before = self._shared_state(client)
        key = (
            broadcast_group,
            *(before.parts[name].digest for name in (*_DOWN_PARTS, "said") if name in before.parts),
        )
        behind = self._differs(before)
        written = self._written.get(key)
        if written is None:
            written = self._coder.write(
                "down",
                message,
                context,
                before,
                sent=None,
                own=None,
                round=self._round,
                client=SERVER,
                behind=behind,
            )
            self._written[key] = written
        # Parts that a client's own messages made stay its own, even if the coding is another client's.
        changed = {name: part for name, part in written.shared.parts.items() if name in _DOWN_PARTS}
        pending = SharedState(before.version, {**before.parts, **changed})
        self._open[client] = (pending, written, behind)
        before.pack_memories()
        pending.pack_memories()
        peer = client + 1 if broadcast_group == client else EVERYONE
        frame = Frame(message.kind, self._round, peer, written.sections, before.state_id, self._local)
        if peer != EVERYONE:
            return frames.encode(frame)
        if frame not in self._broadcast:
            self._broadcast[frame] = frames.encode(frame)
        return self._broadcast[frame]

    def receive(
        self,
        client: int,
        expected: type[M] | tuple[type[M], ...],
        data: bytes,
        context: MessageContext,
        check: Callable[[M], None] | None = None,
        *,
        even_turned: bool = False,
    ) -> M | None:
        """Read a reply and commit the exchange; return None if the client asks to be sent everything again.

        Args:
            expected: the type of the message, or the types that it may have.
            check: refuses the message by raising `FrameError`, as `Message.check` does before it.
            even_turned: whether to take weights that point against those that were sent.

        Raises:
            TurnedAround: its weights do; nothing is committed.
            FrameError: the frame is damaged or not the one that was expected, or its message is refused;
                nothing is committed.
            StaleState: it was coded against another shared state; nothing is committed.
        """
        frame = frames.decode(data)
        _check(frame, self._round, client)
        if frame.peer == EVERYONE:
            raise FrameError("a reply is addressed to everyone")
        if frame.local != 1:
            raise FrameError("a reply asks for local training")
        if frame.kind == Kind.REFRESH:
            if frame.sections:
                raise FrameError("a refresh frame has sections, but must have none")
            self.shared_states[client] = EMPTY
            return None
        kind = _type_of(frame, expected)
        shared, down, behind = self._open.get(client, (self._shared_state(client), None, False))
        if frame.state_id is None:
            shared = EMPTY
        elif frame.state_id != shared.state_id:
            raise _stale(frame.state_id, [shared])
        read = self._coder.read(
            "up",
            kind,
            frame.sections,
            context,
            shared,
            sent=down.weights if down else None,
            round=self._round,
        )
        trained = None if read.weights is None else read.weights[: len(read.weights) - context.buffers]
        if trained is not None:
            check_growth(trained, down.size if down else 0.0, read.largest)
        message = _from_meant(read, down) if down and behind else read.message
        message.check()
        meant = None if down is None or even_turned else down.meant
        if trained is not None and meant is not None and len(meant) == len(trained) + context.buffers:
            check_direction(trained, meant[: len(trained)])
        if check is not None:
            check(message)
        shared.pack_memories()
        read.shared.pack()
        self.shared_states[client] = read.shared
        return message

    def acknowledged(self, client: int, state_id: StateId | None) -> SharedState:
        """Return what is shared once a client has received what was sent, though no message comes up.

        It is not committed: in a secure sum, the server reads the message of no single client.

        Args:
            state_id: in the client's frame.

        Raises:
            StaleState: it is that of another shared state.
        """
        shared, _, _ = self._open.get(client, (self._shared_state(client), None, False))
        if state_id is None:
            shared = EMPTY
        elif state_id != shared.state_id:
            raise _stale(state_id, [shared])
        return self._coder.counted("up", shared)

    def _differs(self, shared: SharedState) -> bool:
        """Whether a client's reference differs from another client's for the same kind of model.

        Then some were away: rounding errors differ between clients and would build up, in their references
        and in the mean of their replies. Where all hold one reference, the server's model takes on the same
        error as they do.
        """
        own = _reference(shared)
        return own is not None and any(one and one[0] == own[0] and one != own for one in self._references)

    def _shared_state(self, client: int) -> SharedState:
        return self.shared_states[client] if client in self.shared_states else self._start(client)


class ClientEndpoint:
    """A client's end of its link, in one round."""

    def __init__(self, coder: MessageCoder, kept: State, start: SharedState, round: int, client: int) -> None:
        """Begin a round.

        Args:
            kept: what `kept` returned after the client's last exchange; empty before the first.
            start: the shared state before the first exchange.
        """
        self._coder, self._round, self._client = coder, round, client
        self._kept, self._received = kept, False
        held = [kept["after"], kept["before"]] if kept else []
        self._held = [
            (SharedState.of(pair["memory"]), decode_state(as_bytes(pair["own"]))) for pair in held
        ] or [(start, {})]
        self._before: tuple[SharedState, State] = (EMPTY, self._held[0][1])
        self._shared, self._own = self._before
        self._sent: Floats | None = None
        self._after: tuple[SharedState, State] | None = None

    def receive(self, expected: type[M] | tuple[type[M], ...], data: bytes, context: MessageContext) -> M:
        """Read what the server sent.

        Args:
            expected: the type of the message, or the types that it may have.

        Raises:
            FrameError: the frame is damaged or not the one that was expected.
            StaleState: it was coded against a shared state that this client does not hold; answer with
                `refresh`.
        """
        frame = frames.decode(data)
        _check(frame, self._round, self._client)
        kind = _type_of(frame, expected)
        self._received = True
        self._before = self._find(frame)
        shared, self._own = self._before
        read = self._coder.read("down", kind, frame.sections, context, shared, sent=None, round=self._round)
        self._shared, self._sent = read.shared, read.weights
        return read.message

    def reply(self, message: Message, context: MessageContext) -> bytes:
        """Return the frame of the client's message."""
        written = self._coder.write(
            "up",
            message,
            context,
            self._shared,
            sent=self._sent,
            own=self._own,
            round=self._round,
            client=self._client,
        )
        self._after = (written.shared, written.own)
        frame = Frame(message.kind, self._round, self._client + 1, written.sections, self._shared.state_id)
        return frames.encode(frame)

    def acknowledge(self) -> StateId | None:
        """Count the exchange, though the message itself does not go up; return the id for what does."""
        self._after = (self._coder.counted("up", self._shared), self._own)
        return self._shared.state_id

    def refresh(self) -> bytes:
        """Return the frame that asks to be sent everything again."""
        return frames.encode(Frame(Kind.REFRESH, self._round, self._client + 1, ()))

    def kept(self) -> State:
        """Return what the client must keep until it takes part again; empty if both sides share no state.

        Its tensors are bytes (`state.as_tensor`), of which many are those of the exchange before.
        """
        if not self._coder.remembers:
            return {}
        if not self._received and self._after is None:
            return self._kept  # nothing crossed in this round
        after = self._after or (self._shared, self._own)
        pairs = {"before": self._before, "after": after}
        return {
            name: {"memory": shared.plain(), "own": as_tensor(encode_state(own))}
            for name, (shared, own) in pairs.items()
        }

    def _find(self, frame: Frame) -> tuple[SharedState, State]:
        if frame.state_id is None:
            return EMPTY, {}
        for shared, own in self._held:
            if shared.state_id == frame.state_id:
                return shared, own
        raise _stale(frame.state_id, [shared for shared, _ in self._held])


def _from_meant(read: DecodedMessage[M], down: EncodedMessage) -> M:
    """Return a reply as though the client had started from the weights that the server meant to send."""
    if down.meant is None or down.weights is None:
        return read.message
    shift = down.meant - down.weights
    tensors = read.message.tensors()
    for name in read.moves:
        if len(tensors[name]) == len(shift):
            tensors[name] = torch.from_numpy(finite(tensors[name].numpy() + shift))
    return type(read.message)(**read.message.numbers(), **tensors)


def _reference(shared: SharedState) -> tuple[int, bytes] | None:
    """Return the size and the digest of a client's reference, or None if it has none."""
    if "reference" not in shared.parts:
        return None
    part = shared.parts["reference"]
    return len(part.value["weights"]), part.digest


def _stale(state_id: StateId | None, held: list[SharedState]) -> StaleState:
    ids = " and ".join(str(shared.state_id or "nothing") for shared in held)
    return StaleState(f"a frame coded against shared state {state_id} came where {ids} is held")


def _check(frame: Frame, round: int, client: int) -> None:
    if frame.round != round:
        raise FrameError(f"a frame of round {frame.round} came in round {round}")
    if frame.peer not in (EVERYONE, client + 1):
        raise FrameError(f"a frame of client {frame.peer - 1} came where client {client}'s belongs")


def _type_of(frame: Frame, expected: type[M] | tuple[type[M], ...]) -> type[M]:
    """Return the type, among those expected, of the message in a frame."""
    types = expected if isinstance(expected, tuple) else (expected,)
    for one in types:
        if frame.kind == one.kind:
            return one
    belong = " or ".join(kind_label(one.kind) for one in types)
    raise FrameError(f"a frame of {kind_label(frame.kind)} came where {belong} belong")

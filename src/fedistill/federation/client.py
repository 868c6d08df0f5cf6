"""What happens at a client: a frame and its state in, a frame and its new state out.

Only bytes enter and leave, whatever carries them.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fedistill.attacks.base import Liar
from fedistill.communication.kinds import SECURE_TURNS
from fedistill.communication.messages.base import Message, MessageContext
from fedistill.communication.protocol import frame as frames
from fedistill.communication.protocol.endpoints import ClientEndpoint, StaleState
from fedistill.errors import FrameError, TrainingError
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client_states import LINK, METHOD, PRIVACY
from fedistill.federation.failures import failing_at
from fedistill.federation.privacy_settings import check_steps
from fedistill.methods.base import AnyState
from fedistill.methods.participants import Client
from fedistill.privacy.local import private_message
from fedistill.privacy.mechanisms import LocalMechanism
from fedistill.rng import scoped
from fedistill.state import State, decode_state, encode_state, from_plain, to_plain
from fedistill.training.cost import Cost, counting
from fedistill.training.model_state import ModelState


@dataclass(frozen=True, slots=True)
class ClientResult:
    """What a client's work gives.

    Attributes:
        state: what the client keeps.
        frame: its reply, empty if there is none.
        seconds: of the whole work.
        cost: of the method's step; messages and their coding are not in it.
        kept: what a secure sum needs of the client in its next turn; it never leaves the client's side.
        stacked: whether its model was trained together with those of others (`client_stacks`).
    """

    state: bytes
    frame: bytes
    seconds: float
    cost: Cost
    kept: bytes = b""
    stacked: bool = False


def run_client(
    arm: ReadyArm,
    client: int,
    round: int,
    state: bytes,
    frame: bytes,
    draw_secrets: Callable[[int], bytes] | None = None,
) -> ClientResult:
    """Do a client's part of a round.

    Args:
        state: as the last `ClientResult` left it; empty before the client's first round. In the turns of a
            secure sum that follow the client's work, its ``kept``.
        frame: what the server sent; empty where it sent nothing.
        draw_secrets: returns as many random bytes for a secure sum; by default, from the arm's seed, as
            suits a simulation alone.

    Raises:
        TrainingError: anything that goes wrong in the work, with the round and the client.

    A frame that was coded against a memory that the client has lost is answered by a refresh, without work.
    """
    clock = Stopwatch()
    with failing_at(f"round {round}, client {client}"):
        if arm.secure_sums is not None:
            # Their libraries are an extra.
            from fedistill.federation import secure_client

            if is_secure_turn(frame):
                reply, pending = secure_client.next_turn(arm, client, round, state, frame)
                return ClientResult(b"", reply, clock.seconds(), Cost(), pending)
        work = begin_work(arm, client, round, state, frame, clock)
        if isinstance(work, ClientResult):
            return work
        # Dropout layers know only torch's global generator.
        alone = arm.draws_by_torch_alone
        with scoped(arm.seed, "layers", client, round, torch_alone=alone), counting() as counter:
            after, message = arm.method.client_step(work.before, work.own, work.received)
        return end_work(arm, work, after, message, counter.cost, draw_secrets)


class Stopwatch:
    """Seconds of one client's work, which may be interrupted by others'; it runs from the start."""

    def __init__(self) -> None:
        self._before = 0.0
        self._since: float | None = time.perf_counter()

    def stop(self) -> None:
        self._before = self.seconds()
        self._since = None

    def start(self) -> None:
        self._since = time.perf_counter()

    def add(self, seconds: float) -> None:
        """Count what was done for this client while the watch stood."""
        self._before += seconds

    def seconds(self) -> float:
        return self._before + (0.0 if self._since is None else time.perf_counter() - self._since)


@dataclass(slots=True)
class ClientWork:
    """A client in a round, between what it is sent and what it answers.

    Attributes:
        own: what it has to work with.
        before: the state of the method, before its step.
        kept: what the client kept, by its parts (`client_states`).
        received: the message down, if there is one.
        clock: runs while the client, and no other, is worked for.
    """

    own: Client
    before: AnyState
    kept: State
    end: ClientEndpoint
    context: MessageContext
    received: Message | None
    clock: Stopwatch


def begin_work(
    arm: ReadyArm, client: int, round: int, state: bytes, frame: bytes, clock: Stopwatch
) -> ClientWork | ClientResult:
    """Read what a client has kept and what it was sent, up to the method's step; see `run_client`.

    Returns:
        The work, or the result where the frame was coded against a memory that the client has lost.
    """
    own = arm.client(client, round, arm.local_rounds(round, frame))
    attack = arm.attack_by(client, round)
    if attack is not None:
        own = attack.at(own)
    kept = decode_state(state) if state else {}
    held = kept.get(METHOD)
    before = from_plain(arm.method.ClientState, held) if held else arm.method.start_client(own)
    context = arm.message_context(client)
    end = ClientEndpoint(arm.coder, kept.get(LINK, {}), arm.initial_shared_state(client), round, client)
    received: Message | None = None
    if frame:
        try:
            received = end.receive(arm.method.downlinks, frame, context)
        except StaleState:
            # What the link kept, a residual too, belongs to a memory that is given up.
            return ClientResult(
                _kept(before, {}, kept.get(PRIVACY, {})), end.refresh(), clock.seconds(), Cost()
            )
    return ClientWork(own, before, kept, end, context, received, clock)


def end_work(
    arm: ReadyArm,
    work: ClientWork,
    after: AnyState,
    message: Message | None,
    cost: Cost,
    draw_secrets: Callable[[int], bytes] | None = None,
    *,
    stacked: bool = False,
) -> ClientResult:
    """Return what a client's work gives, after the method's step.

    Args:
        after, message: what the step has returned.
        cost: of the step.
        draw_secrets: as in `run_client`.
        stacked: as in `ClientResult`.

    Raises:
        TrainingError: a number of the state or of the message is NaN or infinite.
    """
    own, end, context = work.own, work.end, work.context
    check_finite(after)
    kept_answers = work.kept.get(PRIVACY, {})
    if arm.privacy is not None:
        check_steps(arm.privacy, own)
        if isinstance(arm.privacy, LocalMechanism) and message is not None:
            draws = own.stream(f"private answers of {own.noise_name}")
            message, kept_answers = private_message(message, kept_answers, arm.privacy, context, draws)
    attack = arm.attack_by(own.id, own.round)
    if attack is not None and message is not None:
        message = attack.sent(message, Liar(arm.seed, own.id, own.round, work.received, context))
    reply, pending = b"", b""
    if message is not None and arm.secure_sums is not None:
        from fedistill.federation import secure_client

        reply, pending = secure_client.begin_sum(arm, own, message, end.acknowledge(), draw_secrets)
    elif message is not None:
        reply = end.reply(message, context)
    kept = _kept(after, end.kept(), kept_answers)
    return ClientResult(kept, reply, work.clock.seconds(), cost, pending, stacked)


def is_secure_turn(frame: bytes) -> bool:
    """Whether a frame from the server is of a turn of a secure sum, once the client has done its work."""
    try:
        return bool(frame) and frames.decode(frame).kind in SECURE_TURNS
    except FrameError:
        return False


def client_state(arm: ReadyArm, client: int, state: bytes) -> AnyState:
    """What the method keeps at a client, from the bytes of a `ClientResult`, as its ``ClientState``.

    Before the client's first round it is the state that it starts from.
    """
    held = decode_state(state).get(METHOD) if state else None
    if held:
        return from_plain(arm.method.ClientState, held)
    return arm.method.start_client(arm.client(client, round=0))


def _kept(method: AnyState, link: State, answers: State) -> bytes:
    """What a client keeps until it takes part again: the method's state, its link's, and its private answers.

    Empty if there is none of them.
    """
    parts = {METHOD: to_plain(method), LINK: link, PRIVACY: answers}
    kept = {name: part for name, part in parts.items() if part}
    return encode_state(kept) if kept else b""


def check_finite(state: AnyState) -> None:
    """Raise `TrainingError` where a state's model has weights that are NaN or infinite."""
    model = getattr(state, "model", None)
    if isinstance(model, ModelState) and not torch.isfinite(model.weights).all():
        raise TrainingError("the model's weights are not finite after training: lower train.optimizer.lr")

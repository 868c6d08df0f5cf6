"""The round loop: sample, send, run clients, receive, aggregate, evaluate, record. Read this first.

An arm between two rounds is an `ArmRun`: plain data that can be saved after any round and resumed later.
A round is atomic: the `ArmRun` is changed only at its end, by `_record`.
"""

import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import asdict
from typing import Protocol

from fedistill.communication.messages.base import Message
from fedistill.communication.protocol.endpoints import ServerEndpoint
from fedistill.config.schema import WhenWorth
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client import ClientResult, check_finite
from fedistill.federation.client_sampling import sample_clients, sample_dropouts
from fedistill.federation.client_states import ClientStates
from fedistill.federation.executor import Executor, Jobs
from fedistill.federation.failures import ClientFailure, failing_at
from fedistill.federation.history import ArmRun, RoundRecord
from fedistill.federation.local_rounds import relative_change, scheduled_rounds
from fedistill.federation.replies import Replies, RoundPlan
from fedistill.federation.round_evaluation import RoundEvaluation, evaluate_round
from fedistill.federation.running_mean import as_measured, running_mean
from fedistill.methods.base import AnyState, Reply
from fedistill.methods.participants import Server
from fedistill.rng import SERVER, scoped
from fedistill.state import from_plain, ordered, to_plain
from fedistill.training.cost import counting_loops
from fedistill.training.model_state import ModelState


class Observer(Protocol):
    """Sees what the server of a round has in the clear: messages that it sends, and those that it accepts.

    What it is given belongs to the round, and must not be changed.
    """

    def sent(self, client: int, message: Message | None) -> None:
        """Take what a client is sent, before its codec; None if that is nothing."""

    def accepted(self, client: int, message: Message) -> None:
        """Take a client's message, as it was decoded and checked."""


def play_round(
    run: ArmRun, arm: ReadyArm, executor: Executor, observer: Observer | None = None
) -> RoundRecord:
    """Play the next round.

    Args:
        observer: sees all messages; changes nothing.

    Raises:
        TrainingError: the arm failed, in the work of a client on this machine, at the server, in evaluation,
            or by too few valid replies; names the round and the client or the server (`federation.failures`).
        RuntimeFailure: the machine failed.
    """
    started = time.perf_counter()
    number = run.round + 1
    local = scheduled_rounds(arm.config.accumulate, run.exchanges(), number, arm.rounds)
    if local == 0:
        return _record_idle(run, number)
    plan = _sample(arm, number, local)
    endpoint = ServerEndpoint(
        arm.coder, run.shared_states, arm.initial_shared_state, number, local if _adapts(arm) else 1
    )
    frames = _send(run, arm, endpoint, plan, observer)
    results = _run_clients(run, arm, executor, plan, frames)
    check = _reply_check(run, arm, number, observer)
    kind = _kind_of_replies(arm)
    replies = kind(arm, executor.quorum, check, endpoint, plan, frames, results, states=run.clients.none())
    with counting_loops() as counter:
        server, reliability, server_seconds = _aggregate(run, arm, number, replies, executor)
    seconds = time.perf_counter() - started
    mean = None if arm.config.ema is None else running_mean(run.mean, run.server, server, arm.config.ema)
    states = run.clients.after(replies.states)
    known = {client: scores for client, scores in run.scores.items() if client not in replies.states}
    evaluation = evaluate_round(arm, executor, plan, as_measured(server, mean), states, known)
    change = _change(run, arm, server, replies)
    record = RoundRecord(
        round=number,
        clients=plan.clients,
        dropped=sorted({*plan.dropped, *replies.failures}),
        seconds=seconds,
        server_seconds=server_seconds,
        work=replies.work,
        views=evaluation.views,
        traffic=replies.crossed(),
        local=local,
        change=change,
        missing={str(client): failure.reason for client, failure in sorted(replies.failures.items())},
        carried=asdict(executor.transport_overhead()),
        multiply_adds=[cost.multiply_adds for cost in replies.costs],
        memory=[cost.memory for cost in replies.costs],
        server_multiply_adds=counter.cost.multiply_adds,
        stacked=replies.stacked,
        measured=evaluation.measured,
        reliability={}
        if arm.evaluate.hide_sites
        else {str(client): figure for client, figure in sorted(reliability.items())},
    )
    _record(run, record, server, mean, states, replies, evaluation)
    return record


def _adapts(arm: ReadyArm) -> bool:
    """Return whether the number of local rounds depends on how much an exchange changes."""
    return isinstance(arm.config.accumulate, WhenWorth)


def _sample(arm: ReadyArm, number: int, local: int) -> RoundPlan:
    """Draw who takes part, and whose reply is lost."""
    clients: list[int] = []
    if arm.method.clients_work:
        clients = sample_clients(arm.sampling, len(arm.federation.clients), arm.seed, number)
    return RoundPlan(number, local, clients, sample_dropouts(arm.sampling, clients, arm.seed, number))


def _send(
    run: ArmRun, arm: ReadyArm, endpoint: ServerEndpoint, plan: RoundPlan, observer: Observer | None = None
) -> list[bytes]:
    """Return one frame for each client; an empty one stands for nothing."""
    server = arm.server(plan.number)
    messages: dict[Hashable, Message | None] = {}
    frames = []
    with failing_at(f"round {plan.number}, server"):
        for client in plan.clients:
            group = arm.method.broadcast_group(run.server, arm.federation.clients[client])
            if group not in messages:
                messages[group] = arm.method.send(run.server, server, client)
            message = messages[group]
            if observer is not None:
                observer.sent(client, message)
            frames.append(
                b"" if message is None else endpoint.send(client, group, message, arm.message_context(client))
            )
    return frames


def _reply_check(
    run: ArmRun, arm: ReadyArm, number: int, observer: Observer | None = None
) -> Callable[[int, Message], None]:
    """Return the method's check of a client's message against the server's state before the round.

    The observer takes what passes it.
    """
    server = arm.server(number)

    def check(client: int, message: Message) -> None:
        arm.method.check_reply(run.server, server, Reply(client, message))
        if observer is not None:
            observer.accepted(client, message)

    return check


def _run_clients(
    run: ArmRun, arm: ReadyArm, executor: Executor, plan: RoundPlan, frames: list[bytes]
) -> Iterator[tuple[int, ClientResult | ClientFailure]]:
    """Give the clients their frames; each client's result comes with its number, in client order."""
    jobs = Jobs(plan.clients, run.clients, frames)
    return zip(plan.clients, executor.run_clients(arm.name, plan.number, jobs), strict=True)


def _kind_of_replies(arm: ReadyArm) -> type[Replies]:
    if arm.secure_sums is None:
        return Replies
    # Their libraries are an extra.
    from fedistill.federation.secure_replies import SecureReplies

    return SecureReplies


def _server_step(
    run: ArmRun, arm: ReadyArm, server: Server, replies: Replies, executor: Executor
) -> AnyState:
    """Return the server's new state: from each reply, or, with secure sums, from their sum alone."""
    if arm.secure_sums is None:
        return arm.method.server_step(run.server, server, replies)
    from fedistill.federation.secure_replies import SecureReplies

    assert isinstance(replies, SecureReplies)
    total = replies.total(executor)
    return run.server if total is None else arm.adds_up.server_step_of_sum(run.server, server, total)


def _aggregate(
    run: ArmRun, arm: ReadyArm, number: int, replies: Replies, executor: Executor
) -> tuple[AnyState, dict[int, float], float]:
    """Return the server's new state, how far it followed each client, and the seconds that its step took.

    Who is followed like all others is not named; waiting for clients is not in the seconds.
    """
    started = time.perf_counter()
    server = arm.server(number)
    with failing_at(f"round {number}, server"):
        with scoped(arm.seed, "layers", SERVER, number):
            state = _server_step(run, arm, server, replies, executor)
        check_finite(state)
        replies.finish()
        replies.leave_out(server.left_out)
        # As it would come from disk, so that a resumed run goes over its entries in the same order.
        state = from_plain(arm.method.ServerState, ordered(to_plain(state)))
    return state, server.reliability, time.perf_counter() - started - replies.waited


def _record(
    run: ArmRun,
    record: RoundRecord,
    server: AnyState,
    mean: ModelState | None,
    states: ClientStates,
    replies: Replies,
    evaluation: RoundEvaluation,
) -> None:
    """Move the run on by a round that has happened whole."""
    run.round, run.server, run.mean, run.clients = record.round, server, mean, states
    run.scores = evaluation.scores
    run.shared_states = replies.endpoint.shared_states
    run.ledger.entries += record.traffic
    run.records.append(record)


def _record_idle(run: ArmRun, number: int) -> RoundRecord:
    """Record a round in which nothing crosses; clients make up for its training at the next exchange."""
    record = RoundRecord(
        number,
        clients=[],
        dropped=[],
        seconds=0.0,
        server_seconds=0.0,
        work=[],
        views={},
        traffic=[],
        local=0,
        change=None,
        missing={},
        carried={},
        multiply_adds=[],
        memory=[],
        server_multiply_adds=0,
    )
    run.round = number
    run.records.append(record)
    return record


def _change(run: ArmRun, arm: ReadyArm, server: AnyState, replies: Replies) -> float | None:
    """Return how far this round has moved what the server sends, or None if the arm does not adapt to it."""
    # Without a reply nothing has moved, and that says nothing about what an exchange brings.
    if not (_adapts(arm) and replies.heard):
        return None
    number, client = replies.plan.number, replies.heard[0]
    with failing_at(f"round {number}, server"):
        states = run.server, server
        before, after = (arm.method.compared(state, arm.server(number), client) for state in states)
        if before is None or after is None:
            return None
        return relative_change(before, after, arm.message_context(client))

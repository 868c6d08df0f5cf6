"""The round loop: sample, send, work, receive, aggregate, evaluate. Read this first.

An arm between two rounds is an `ArmRun`: plain data that can be saved after any round and gone on with
later. A round either happens whole or not at all: the `ArmRun` is changed only at its end.
"""

import time
from collections.abc import Hashable, Iterator
from dataclasses import asdict
from typing import Any

import torch

from fedistill.communication.messages.base import Message
from fedistill.communication.protocol.endpoints import ServerEndpoint
from fedistill.config.schema import WhenWorth
from fedistill.errors import FedistillError, FrameError, TrainingError
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client import (
    ClientFailure,
    ClientResult,
    check_finite,
    client_state,
    describe_error,
)
from fedistill.federation.client_sampling import sample_clients, sample_dropouts
from fedistill.federation.evaluation import views
from fedistill.federation.executor import Executor
from fedistill.federation.history import ArmRun, RoundRecord
from fedistill.federation.ledger import SETUP_ROUND, Ledger
from fedistill.federation.local_rounds import relative_change, scheduled_rounds
from fedistill.methods.base import Reply
from fedistill.rng import SERVER, scoped
from fedistill.state import from_plain, ordered, to_plain


def play_round(run: ArmRun, arm: ReadyArm, executor: Executor) -> RoundRecord:
    """Play the next round.

    Raises:
        TrainingError: training failed; names the client, or the server, and the round.
        RuntimeFailure: the machine failed.
    """
    started = time.perf_counter()
    number = run.round + 1
    local = scheduled_rounds(arm.config.accumulate, run.exchanges(), number, arm.rounds)
    if local == 0:
        return _idle(run, number)
    traffic = Ledger()
    updated: dict[int, bytes] = {}
    work: list[float] = []

    clients: list[int] = []
    if arm.method.clients_work:
        clients = sample_clients(arm.sampling, len(arm.federation.clients), arm.seed, number)
    dropped = sample_dropouts(arm.sampling, clients, arm.seed, number)

    adapts = isinstance(arm.config.accumulate, WhenWorth)
    end = ServerEndpoint(
        arm.coder, run.shared_states, arm.initial_shared_state, number, local if adapts else 1
    )
    frames = _send(run, arm, end, number, clients)
    for client, frame in zip(clients, frames, strict=True):
        if frame:
            traffic.count(number, client, "down", frame)

    missing: dict[int, ClientFailure] = {}
    heard: list[int] = []
    jobs = [
        (client, run.clients.get(client, b""), frame) for client, frame in zip(clients, frames, strict=True)
    ]
    outcomes = zip(clients, executor.run_clients(arm.name, number, jobs), strict=True)

    def received() -> Iterator[Reply[Message]]:
        for client, outcome in outcomes:
            if isinstance(outcome, ClientFailure):
                missing[client] = outcome
                work.append(0.0)
                continue
            updated[client] = outcome.state
            work.append(outcome.seconds)
            if outcome.frame:
                traffic.count(number, client, "up", outcome.frame)
            if outcome.frame and client not in dropped:
                try:
                    reply = _receive(arm, end, number, client, outcome)
                except TrainingError as error:
                    if not executor.tolerates_failures:
                        raise
                    missing[client] = ClientFailure(error.what, reached=True)
                else:
                    if reply is not None:
                        heard.append(client)
                        yield reply

    replies = received()
    server, server_seconds = _aggregate(run, arm, number, replies)
    for _ in replies:  # a method may not care to look at all replies; their bytes still crossed
        pass
    executor.settle(number, len(clients), missing)
    seconds = time.perf_counter() - started
    unreached = {client for client, gone in missing.items() if not gone.reached}
    crossed = [entry for entry in traffic.entries if entry.client not in unreached]

    states = {client: state for client, state in {**run.clients, **updated}.items() if state}
    stale = {client: right for client, right in run.correct.items() if client not in updated}
    found: dict[str, float] = {}
    if arm.evaluates(number, local):
        try:
            found, stale = _evaluate(arm, server, states, stale, executor)
            if not executor.private_counts_known:
                found.pop("client@own", None)
        except TrainingError as error:
            raise TrainingError(error.what, f"round {number}, {error.place}") from error

    # Where nobody was heard, nothing has moved, and that says nothing of what an exchange brings.
    moved = _change(run, arm, server, number, heard[0]) if adapts and heard else None
    record = RoundRecord(
        round=number,
        clients=clients,
        dropped=sorted({*dropped, *missing}),
        seconds=seconds,
        server_seconds=server_seconds,
        work=work,
        views=found,
        traffic=crossed,
        local=local,
        change=moved,
        missing={str(client): gone.reason for client, gone in sorted(missing.items())},
        carried=asdict(executor.carried()),
    )
    run.round, run.server, run.clients, run.correct = number, server, states, stale
    run.shared_states = end.shared_states
    run.ledger.entries += crossed
    run.records.append(record)
    return record


def _idle(run: ArmRun, number: int) -> RoundRecord:
    """A round in which clients train on and nothing crosses; the next exchange makes up for the training."""
    record = RoundRecord(number, [], [], 0.0, 0.0, [], {}, [], local=0, change=None, missing={}, carried={})
    run.round = number
    run.records.append(record)
    return record


def _change(run: ArmRun, arm: ReadyArm, server: Any, number: int, client: int) -> float | None:
    """How far what the server says to a client has moved by this round's exchange."""
    before, after = (arm.method.send(state, arm.server(number), client) for state in (run.server, server))
    return (
        None
        if before is None or after is None
        else relative_change(before, after, arm.message_context(client))
    )


def _send(run: ArmRun, arm: ReadyArm, end: ServerEndpoint, number: int, clients: list[int]) -> list[bytes]:
    """One frame for each client; empty: nothing."""
    server = arm.server(number)
    messages: dict[Hashable, Message | None] = {}
    frames = []
    for client in clients:
        broadcast_group = arm.method.broadcast_group(run.server, arm.federation.clients[client])
        if broadcast_group not in messages:
            messages[broadcast_group] = arm.method.send(run.server, server, client)
        message = messages[broadcast_group]
        frames.append(
            b""
            if message is None
            else end.send(client, broadcast_group, message, arm.message_context(client))
        )
    return frames


def _receive(
    arm: ReadyArm, end: ServerEndpoint, number: int, client: int, outcome: ClientResult
) -> Reply[Message] | None:
    """The client's message, or None where it asks to be sent everything anew."""
    assert arm.method.uplink is not None
    try:
        message = end.receive(client, arm.method.uplink, outcome.frame, arm.message_context(client))
        if message is not None:
            message.check()
    except FrameError as error:
        place = f"round {number}, client {client}"
        raise TrainingError(f"its reply is refused: {error}", place) from None
    return None if message is None else Reply(client, message)


def _aggregate(
    run: ArmRun, arm: ReadyArm, number: int, replies: Iterator[Reply[Message]]
) -> tuple[Any, float]:
    """The server step, and the seconds that it took besides waiting for clients."""
    waited = 0.0

    def timed() -> Iterator[Reply[Message]]:
        nonlocal waited
        while True:
            before = time.perf_counter()
            reply = next(replies, None)
            waited += time.perf_counter() - before
            if reply is None:
                return
            yield reply

    started = time.perf_counter()
    place = f"round {number}, server"
    try:
        with scoped(arm.seed, "layers", SERVER, number):
            state = arm.method.server_step(run.server, arm.server(number), timed())
        check_finite(state)
    except TrainingError as error:
        # A client's own failure reaches us through the replies and has its place already.
        raise error if error.place else TrainingError(error.what, place) from error
    except FedistillError:
        raise
    except Exception as error:  # a user's own model at the server may raise anything
        raise TrainingError(describe_error(error), place) from error
    # As it would come from disk, so that a resumed run goes over its entries in the same order.
    plain = ordered(to_plain(state))
    return from_plain(arm.method.ServerState, plain), time.perf_counter() - started - waited


def _evaluate(
    arm: ReadyArm,
    server: Any,
    clients: dict[int, bytes],
    known: dict[int, list[int]],
    executor: Executor,
) -> tuple[dict[str, float], dict[int, list[int]]]:
    """Return the views, and the clients' right answers for as long as their models stay the same."""
    classes = arm.task.signature.classes

    def own(client: int) -> Any:
        return client_state(arm, client, clients.get(client, b""))

    try:
        right = []
        if executor.holds_client_states or not arm.method.needs.evaluation_at_clients:
            right = [
                arm.correct_by_class(name, model)
                for name, model in arm.method.server_eval_models(server, arm.server(SETUP_ROUND), own)
            ]
    except Exception as error:  # as in `_aggregate`
        raise TrainingError(describe_error(error), "evaluation, server") from error
    if arm.method.has_client_models:
        missing = [info.id for info in arm.federation.clients if info.id not in known]
        jobs = [(client, clients.get(client, b""), b"") for client in missing]
        counts = executor.count_correct(arm.name, jobs)
        found = zip(missing, counts, strict=True)
        known = {**known, **{client: right for client, right in found if right is not None}}
    by_client = [torch.tensor(known[client]) for client in sorted(known)]
    test = torch.bincount(arm.task.test.labels, minlength=classes)
    # The mean over one model is exact.
    answers = torch.stack(right).double().mean(dim=0) if right else None
    return views(answers, by_client, test, arm.task.class_counts()[sorted(known)]), known

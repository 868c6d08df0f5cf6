"""Plays the rounds of a run again, sees that it is that run, and keeps what its server had.

Since a run is a function of its experiment and its data, its messages need not have been saved: they are made
again, bit for bit, and compared with the frames, the views and the server's state in the run's folder.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fedistill.communication.messages.base import Message
from fedistill.errors import ExperimentError
from fedistill.experiment.results import ArmJson
from fedistill.experiment.run_folder import RunFolder
from fedistill.experiment.summary import round_json
from fedistill.federation.arm import ReadyArm
from fedistill.federation.executor import Executor
from fedistill.federation.history import TIMED, ArmRun, Event, RoundRecord
from fedistill.federation.round import play_round
from fedistill.federation.setup import start_run
from fedistill.state import encode_state
from fedistill.studies.audit.evidence import is_rare

_NOT_COMPARED = {*TIMED, "carried", "multiply_adds", "memory", "server_multiply_adds"}
"""What may differ in a replay: times, what a network adds, and what older versions did not count."""


@dataclass(frozen=True)
class Exchange:
    """A client's part in a round, as its server has it, but for ``state``.

    Attributes:
        local: rounds of local training behind it.
        received: what the client was sent, before its codec; None if that was nothing.
        message: what the server decoded; None if nothing arrived, or if this round is not kept.
        state: the client's state after a round that is kept, else empty. The server does not have it: it only
            serves to say what the client would have answered to other public samples.
    """

    round: int
    local: int
    received: Message | None
    message: Message | None
    state: bytes


@dataclass(frozen=True)
class Replayed:
    """An arm that was played again, with the exchanges of each client that is audited, in order."""

    arm: ReadyArm
    exchanges: dict[int, list[Exchange]]

    def kept(self, client: int) -> list[Exchange]:
        """Return the exchanges of which the message was kept."""
        return [one for one in self.exchanges[client] if one.message is not None]


class _Observer:
    """Keeps what crosses in one round."""

    def __init__(self) -> None:
        self.received: dict[int, Message | None] = {}
        self.messages: dict[int, Message] = {}

    def sent(self, client: int, message: Message | None) -> None:
        self.received[client] = message

    def accepted(self, client: int, message: Message) -> None:
        self.messages[client] = message


def replay(
    folder: RunFolder,
    arm: ReadyArm,
    result: ArmJson,
    executor: Executor,
    clients: Sequence[int],
    rounds: int,
    shown: Callable[[RoundRecord], None] = lambda record: None,
) -> Replayed:
    """Play the rounds of an arm again.

    Args:
        result: the arm in the folder's results.json.
        clients: those whose exchanges are kept.
        rounds: of how many rounds messages are kept, for each client and kind of message: the first, the
            last, and others evenly between them; besides, those that are rare.
        shown: called after each round.

    Raises:
        ExperimentError: a round comes out otherwise than the folder has it.
        TrainingError, RuntimeFailure: as in a run.
    """
    records = folder.records(arm.name)
    if len(records) < len(result["rounds"]):
        raise ExperimentError(
            f"{folder.path}: events.jsonl lacks rounds of arm {arm.name!r} that results.json has; resume the"
            " run first"
        )
    wanted = {client: kept_rounds(records, client, rounds) for client in clients}
    exchanges: dict[int, list[Exchange]] = {client: [] for client in clients}
    run = start_run(arm)
    for before in records[: len(result["rounds"])]:
        observer = _Observer()
        record = play_round(run, arm, executor, observer)
        _check(folder, arm, run, record, before, result)
        for client in [one for one in clients if one in record.clients]:
            message = observer.messages.get(client)
            kept = record.round in wanted[client] or is_rare(message)
            exchanges[client].append(
                Exchange(
                    record.round,
                    record.local,
                    observer.received.get(client),
                    message if kept else None,
                    run.clients.get(client, b"") if kept else b"",
                )
            )
        shown(record)
    _check_state(folder, arm, run)
    return Replayed(arm, exchanges)


def kept_rounds(records: Sequence[RoundRecord], client: int, most: int) -> set[int]:
    """Return the rounds whose message of a client is kept, at most ``most`` of each kind of message."""
    by_kind: dict[str, list[int]] = {}
    for record in records:
        for entry in record.traffic:
            if entry.client == client and entry.direction == "up" and client not in record.dropped:
                by_kind.setdefault(entry.kind, []).append(record.round)
    return {number for found in by_kind.values() for number in spread(found, most)}


def spread(numbers: Sequence[int], most: int) -> list[int]:
    """Return at most so many of some numbers, evenly spread, the last one always and the first if two may be.

    Examples:
        >>> spread(range(1, 11), 4)
        [1, 4, 7, 10]
        >>> spread([2, 5], 4), spread([2, 5], 1)
        ([2, 5], [5])
    """
    if most == 1:
        return list(numbers[-1:])
    places = np.unique(np.linspace(0, len(numbers) - 1, min(most, len(numbers))).round().astype(int))
    return [numbers[place] for place in places] if len(numbers) else []


def _check(
    folder: RunFolder, arm: ReadyArm, run: ArmRun, record: RoundRecord, before: RoundRecord, result: ArmJson
) -> None:
    """See that a round is the one that the folder has, in events.jsonl and in results.json."""
    ours, theirs = _comparable(record.to_json()), _comparable(before.to_json())
    differ = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
    entry = json.loads(json.dumps(round_json(run, record)))
    shown = result["rounds"][record.round - 1]
    for key in ("round", "bytes_up", "bytes_down", "views"):
        if entry[key] != shown[key]:
            differ.append(f"{key} of results.json")
    if differ:
        raise ExperimentError(
            f"{folder.path}: arm {arm.name!r}, round {record.round}: the replay is not the run: it differs in"
            f" {', '.join(differ)}. A run can be audited with the version of fedistill and torch, the kind of"
            " processor and the data that it was made with, if its settings did not change on the way"
        )


def _check_state(folder: RunFolder, arm: ReadyArm, run: ArmRun) -> None:
    """See that the server's state is that of the checkpoint, if there is one of the same round."""
    if folder.last_round(arm.name) != run.round:
        return
    saved = folder.restore(arm)
    if encode_state(saved.server) != encode_state(run.server):
        raise ExperimentError(
            f"{folder.path}: arm {arm.name!r}: frames and views of the replay are those of the run, but the"
            " server's last state differs: the checkpoint is of another run"
        )


def _comparable(event: Event) -> Event:
    """Return what must be equal, as JSON has it."""
    found: Event = json.loads(json.dumps({k: v for k, v in event.items() if k not in _NOT_COMPARED}))
    return found

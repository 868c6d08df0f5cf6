"""The state of an arm between two rounds, and the record of each round."""

from dataclasses import asdict, dataclass, field
from typing import Any

from fedistill.communication.protocol.shared_state import SharedState
from fedistill.federation.client_states import ClientStates
from fedistill.federation.evaluation import Measured
from fedistill.federation.ledger import Entry, Ledger
from fedistill.federation.local_rounds import PastExchange
from fedistill.federation.scores import Scores
from fedistill.methods.base import AnyState
from fedistill.training.model_state import ModelState

Event = dict[str, Any]
"""A line of ``events.jsonl``: ``event`` says what happened, and the other keys depend on it."""
TIMED = ("seconds", "server_seconds", "work")
"""What differs between equal rounds: how long they took."""


@dataclass(frozen=True)
class RoundRecord:
    """What happened in a round; the names are the keys of its line in ``events.jsonl``.

    Attributes:
        clients: who took part, empty if no exchange was due. ``dropped``: whose reply was lost, refused or
            left out.
        missing: why a client was left out, by its number (`federation.failures`); replies that are lost
            because `sampling.dropout` asks for it have no reason.
        carried: the fields of the round's `TransportOverhead`, empty if there was no exchange.
        local: rounds of local training behind the exchange, or 0 if there was none.
        change: the relative change of what the server sends, or None if the arm does not adapt to it
            (`local_rounds`).
        seconds: wall-clock time without evaluation; ``server_seconds``: of the server step alone.
        work: seconds of each client's work, in the order of ``clients``.
        multiply_adds, memory: the `Cost` of each client's work, in the same order; None in a round that an
            earlier version played, which did not count it. ``server_multiply_adds``: of the loops over
            samples in the server's step, likewise.
        stacked: how many of the clients were trained together with others (`runtime.fast`).
        views: accuracy (0 to 1) by view, empty if nothing was evaluated.
        traffic: every frame.
        measured: what the evaluation found beside the views (`evaluation.Measured`).
        reliability: how far the server followed each client, from 0 to 1, by its number; empty for methods
            and settings that follow all alike, and with `evaluate.hide_sites`.
    """

    round: int
    clients: list[int]
    dropped: list[int]
    seconds: float
    server_seconds: float
    work: list[float]
    views: dict[str, float]
    traffic: list[Entry]
    local: int
    change: float | None
    missing: dict[str, str]
    carried: dict[str, int]
    multiply_adds: list[int] | None = None
    memory: list[int] | None = None
    server_multiply_adds: int | None = None
    measured: Measured = field(default_factory=Measured)
    reliability: dict[str, float] = field(default_factory=dict)
    stacked: int = 0

    def to_json(self) -> Event:
        """Return it for JSON; a frame is [client, direction, kind, bytes, payload]."""
        frames = [[e.client, e.direction, e.kind, e.bytes, e.payload] for e in self.traffic]
        found = {**asdict(self), "traffic": frames}
        for empty in [name for name in ("measured", "reliability", "stacked") if not found[name]]:
            del found[empty]
        return found

    @classmethod
    def from_json(cls, event: Event) -> "RoundRecord":
        """Return the record that `to_json` has written; other keys are ignored.

        Raises:
            KeyError: a key is missing.
        """
        absent: Event = {
            "multiply_adds": None,
            "memory": None,
            "server_multiply_adds": None,
            "measured": {},
            "reliability": {},
            "stacked": 0,
        }
        fields = {name: (absent | event)[name] for name in cls.__dataclass_fields__}
        fields["traffic"] = [Entry(event["round"], *frame) for frame in event["traffic"]]
        return cls(**fields)


@dataclass
class ArmRun:
    """The state of an arm between two rounds.

    Attributes:
        round: the last complete round, 0 before the first.
        server: the server's state; ``clients``: the saved state of each client that has worked.
        shared_states: what the server shares with each client that has replied.
        mean: the running mean of the server's model (`running_mean`), if the arm has one.
        scores: of each client's own model, as last evaluated.
    """

    round: int
    server: AnyState
    clients: ClientStates
    ledger: Ledger
    shared_states: dict[int, SharedState] = field(default_factory=dict)
    records: list[RoundRecord] = field(default_factory=list)
    scores: dict[int, Scores] = field(default_factory=dict)
    mean: ModelState | None = None

    def exchanges(self) -> list[PastExchange]:
        """Return the exchanges so far."""
        return [
            PastExchange(record.round, record.local, sum(e.bytes for e in record.traffic), record.change)
            for record in self.records
            if record.local
        ]

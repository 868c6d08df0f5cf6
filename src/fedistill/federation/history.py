"""What an arm is between two rounds, and what each of its rounds was."""

from dataclasses import asdict, dataclass, field
from typing import Any

from fedistill.communication.protocol.shared_state import SharedState
from fedistill.federation.ledger import Entry, Ledger
from fedistill.federation.local_rounds import PastExchange
from fedistill.methods.base import AnyState


@dataclass(frozen=True)
class RoundRecord:
    """What a round was.

    Attributes:
        clients: who took part; none where no exchange was due. ``dropped``: whose reply was lost.
        missing: of the dropped, those whose failure is known, by number; and what it was.
        carried: bytes around the frames, ``up`` and ``down``, and replies that came too ``late``.
        local: rounds of local training behind the exchange; 0: there was none.
        change: how far what the server says has moved, where the arm goes by it (`local_rounds`).
        seconds: wall-clock, without evaluation; ``server_seconds``: of the server step alone.
        work: seconds of each client's work, in the order of ``clients``.
        views: accuracy by view; empty where nothing was evaluated.
        traffic: every frame.
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

    def plain(self) -> dict[str, Any]:
        """As JSON has it; frames are [client, direction, kind, bytes, payload]."""
        frames = [[e.client, e.direction, e.kind, e.bytes, e.payload] for e in self.traffic]
        return {**asdict(self), "traffic": frames}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> "RoundRecord":
        """The inverse of `plain`; other keys are ignored."""
        fields = {name: plain[name] for name in cls.__dataclass_fields__}
        fields["traffic"] = [Entry(plain["round"], *frame) for frame in plain["traffic"]]
        return cls(**fields)


@dataclass
class ArmRun:
    """All that an arm is between two rounds.

    Attributes:
        round: the last whole round, 0 before the first.
        server: the server's state; ``clients``: the saved state of each client that has worked.
        shared_states: what the server and each client that has replied both remember of their exchanges.
        correct: right answers by class of each client's model, as last evaluated.
    """

    round: int
    server: AnyState
    clients: dict[int, bytes]
    ledger: Ledger
    shared_states: dict[int, SharedState] = field(default_factory=dict)
    records: list[RoundRecord] = field(default_factory=list)
    correct: dict[int, list[int]] = field(default_factory=dict)

    def exchanges(self) -> list[PastExchange]:
        """The rounds in which there was an exchange."""
        return [
            PastExchange(one.round, one.local, sum(entry.bytes for entry in one.traffic), one.change)
            for one in self.records
            if one.local
        ]

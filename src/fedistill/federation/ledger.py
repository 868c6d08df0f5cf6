"""The ledger: every frame that crossed, counted as ``len(frame)``, by round, client, direction and kind.

Public data is not traffic of a round: the ledger has a column of its own for it, and one for what is sent
once to set an arm up. Totals are integers, summed over clients; a frame to all clients is counted once per
client that received it.
"""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from operator import attrgetter

from fedistill.communication.kinds import Direction, kind_label
from fedistill.communication.protocol.frame import decode
from fedistill.errors import FrameError

SETUP_ROUND = 0
"""Stands for the time before round 1 where rounds are counted."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One frame: who sent or received it in which round, its length and that of its payload, in bytes."""

    round: int
    client: int
    direction: Direction
    kind: str
    bytes: int
    payload: int


@dataclass
class Ledger:
    """What one arm has cost so far.

    Attributes:
        entries: every frame, in the order in which it crossed, round by round; round 0 is set-up.
        public: bytes of the public set, one copy per client that needs it.
    """

    entries: list[Entry] = field(default_factory=list)
    public: int = 0

    def count(self, round: int, client: int, direction: Direction, frame: bytes) -> None:
        """Count a frame; one that cannot be read has crossed as well, and has no payload."""
        try:
            read = decode(frame)
        except FrameError:
            kind, payload = "unreadable", 0
        else:
            kind, payload = kind_label(read.kind), sum(len(section) for section in read.sections)
        self.entries.append(Entry(round, client, direction, kind, len(frame), payload))

    def of_round(self, round: int) -> list[Entry]:
        """Return the frames of one round, in the order in which they crossed."""
        first, after = (bisect_left(self.entries, at, key=attrgetter("round")) for at in (round, round + 1))
        return self.entries[first:after]

    def kinds(self, round: int, direction: Direction) -> dict[str, int]:
        """Return the bytes of one round and direction by kind of message."""
        kinds: Counter[str] = Counter()
        for entry in self.of_round(round):
            if entry.direction == direction:
                kinds[entry.kind] += entry.bytes
        return dict(kinds)

    @property
    def setup(self) -> int:
        """Bytes of all frames before round 1."""
        return sum(entry.bytes for entry in self.of_round(SETUP_ROUND))

    @property
    def total(self) -> int:
        """Bytes of all frames, set-up included, public data not."""
        return sum(entry.bytes for entry in self.entries)

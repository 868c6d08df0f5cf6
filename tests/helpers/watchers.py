"""Watchers of runs."""

from collections.abc import Callable, Sequence

from fedistill.experiment.findings import Finding
from fedistill.federation.history import RoundRecord


class Watcher:
    """Remembers how a run went on; ``at_round`` is called after each round."""

    def __init__(self, at_round: Callable[[str, RoundRecord], None] = lambda name, record: None) -> None:
        self.begun: dict[str, int] = {}
        """Rounds that each arm had done when it was started or resumed."""
        self.records: list[RoundRecord] = []
        self.found: list[Finding] = []
        self._at_round = at_round

    def findings(self, findings: Sequence[Finding]) -> None:
        self.found += findings

    def arm(self, name: str, rounds: int, done: int) -> None:
        self.begun[name] = done

    def round(self, name: str, record: RoundRecord) -> None:
        self.records.append(record)
        self._at_round(name, record)

    def failed(self, name: str, error: str) -> None: ...

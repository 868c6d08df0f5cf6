"""A callback that remembers what it is told."""

import os
from typing import Any

import fedistill


class Recorder(fedistill.Callback):
    """Remembers all that it is told; fails where it is asked to, once."""

    def __init__(self, fail_at: str = "") -> None:
        self.told: list[str] = []
        self.records: list[Any] = []
        self.outcomes: list[Any] = []
        self.start: Any = None
        self.results: Any = None
        self.process = 0
        self._fail_at = fail_at

    def _note(self, what: str) -> None:
        self.told.append(what)
        if what == self._fail_at:
            self._fail_at = ""
            raise OSError("the disk of the tracker is full")

    def on_run_start(self, run: Any) -> None:
        self.start = run
        self._note("start")

    def on_round_end(self, arm: Any, record: Any) -> None:
        self.process = os.getpid()
        self.records.append(record)
        self._note(f"{arm.name} {arm.seed} {record['round']}/{arm.rounds}")

    def on_arm_end(self, arm: Any, outcome: Any) -> None:
        self.outcomes.append(outcome)
        self._note(f"{arm.name} {arm.seed} {outcome['status']}")

    def on_run_end(self, results: Any) -> None:
        self.results = results
        self._note("end")

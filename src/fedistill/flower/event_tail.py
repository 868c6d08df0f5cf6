"""Follows the events that a run on a network writes."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedistill.experiment.progress import Watcher
from fedistill.federation.history import RoundRecord


class EventTail:
    """Passes the events of a run to a watcher, each once.

    Reading resumes at the last position, or starts over if the file was replaced: resuming a run drops the
    rounds that were not saved.
    """

    def __init__(self, out: Path, watcher: Watcher) -> None:
        self._path, self._watcher = out / "events.jsonl", watcher
        self._file, self._at = -1, 0
        self._failures: Counter[str] = Counter()
        self._told: set[tuple[str, str, int]] = set()
        for _ in self._new():
            pass

    def tell(self) -> None:
        """Pass on the events written since the last call."""
        for event in self._new():
            if event["event"] == "round":
                self._watcher.round(event["arm"], RoundRecord.from_json(event))
            else:
                self._watcher.failed(event["arm"], event["error"])

    def _new(self) -> Iterator[dict[str, Any]]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            number = os.fstat(file.fileno()).st_ino
            if number != self._file:
                self._file, self._at = number, 0
                self._failures.clear()
            file.seek(self._at)
            for line in file:
                if not line.endswith(b"\n"):  # still being written
                    return
                self._at += len(line)
                event = json.loads(line)
                kind, arm = event["event"], event.get("arm", "")
                self._failures[arm] += kind == "failed"
                key = kind, arm, event.get("round", self._failures[arm])
                if kind in ("round", "failed") and key not in self._told:
                    self._told.add(key)
                    yield event

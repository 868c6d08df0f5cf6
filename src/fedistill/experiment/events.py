"""``events.jsonl``: one line for each thing that happened in a run; rounds with every frame."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from fedistill.errors import ExperimentError
from fedistill.federation.history import TIMED, Event
from fedistill.state import write_file


class EventLog:
    """The events of a run, in the order in which they happened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: Event) -> None:
        """Add a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a round that a checkpoint names must not be lost

    def read(self) -> list[Event]:
        """Return all events; a last line that a crash cut short is left out.

        Raises:
            ExperimentError: a line that is not the last one is damaged, or the file cannot be read.
        """
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ExperimentError(f"{self.path}: cannot be read ({error})") from None
        found: list[Event] = []
        for number, line in enumerate(lines, start=1):
            event = _event(line)
            if event is not None:
                found.append(event)
            elif number < len(lines):
                raise ExperimentError(
                    f"{self.path}: line {number} of {len(lines)} is damaged; nothing was changed: restore the"
                    " file from a copy, or start a new run"
                )
        return found

    def rounds(self, arm: str) -> list[Event]:
        """Return the rounds of an arm, complete or not.

        Raises:
            ExperimentError: as `read`.
        """
        return [event for event in self.read() if event["event"] == "round" and event["arm"] == arm]

    def drop_rounds_after(self, rounds: dict[str, int]) -> None:
        """Drop the events of rounds whose state was not saved, which are played again.

        Args:
            rounds: the last complete round of each arm.

        Raises:
            ExperimentError: as `read`; nothing was changed.
        """
        remaining = [
            event
            for event in self.read()
            if event["event"] != "round" or event["round"] <= rounds.get(event["arm"], 0)
        ]
        whole = "".join(json.dumps(event) + "\n" for event in remaining).encode()
        if whole != self.path.read_bytes():
            write_file(self.path, whole)


def digest(events: Iterable[Event], before: str = "") -> str:
    """Return a digest of rounds, which tells whether any of them was changed.

    How long they took is left out, so that equal runs have equal digests.

    Args:
        before: the digest of earlier rounds, which these follow.
    """
    for event in events:
        # As it comes from a file, where all keys are strings, which their order depends on.
        plain = json.loads(json.dumps({key: value for key, value in event.items() if key not in TIMED}))
        line = before + json.dumps(plain, sort_keys=True)
        before = hashlib.blake2b(line.encode(), digest_size=16).hexdigest()
    return before


def _event(line: bytes) -> Event | None:
    """Return what a line says, or None if it is damaged."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return None
    if event["event"] == "round" and not (
        isinstance(event.get("arm"), str) and isinstance(event.get("round"), int)
    ):
        return None
    return event

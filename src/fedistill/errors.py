"""Errors, grouped by what the reader of the message can do about them."""

import re
from collections.abc import Iterable


class FedistillError(Exception):
    """Base class of errors that end in one clear message and are never shown with a traceback."""


class ExperimentError(FedistillError):
    """The experiment file, the command line or the data they name must be fixed (exit status 2)."""


class Refusal(ExperimentError):
    """A method cannot do what the experiment asks of it; raised before round 1 (exit status 2)."""


class FrameError(FedistillError):
    """Bytes from the other side are not the expected frame."""


class TrainingError(FedistillError):
    """An arm failed in one place (NaN, a crash in a model, too few replies); the other arms continue.

    Attributes:
        what: the reason.
        place: the round and, if it is of one of them, the client or the server; empty while unknown.
    """

    def __init__(self, what: str, place: str = "") -> None:
        super().__init__(what, place)
        self.what, self.place = what, place

    def __str__(self) -> str:
        return f"{self.place}: {self.what}" if self.place else self.what


class MissingMainGuard(ExperimentError):
    """A script starts a run where worker processes start it as well, since they import the script."""

    def __init__(self) -> None:
        super().__init__(
            "worker processes import the script that starts them, and would start the run again: put the call"
            ' under `if __name__ == "__main__":`, or set runtime.kind = "serial"'
        )


class RuntimeFailure(FedistillError):
    """The machine or a worker process failed; the run can be resumed (exit status 1)."""


_SHORTEST_WORD = 3


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known word that ``word`` may stand for, or an empty string.

    Only what a slip of the fingers explains is suggested: one insertion, deletion, substitution or swap of
    neighbours for every four letters (one for fewer); other capitals, hyphens or underscores; or a name that
    was cut short at a separator. Words of fewer than three letters are near to everything, and get nothing.
    """
    if len(word) < _SHORTEST_WORD:
        return ""
    plain, best = _plain(word), None
    for name in known:
        if name == word:
            continue
        shape = _plain(name)
        distance = _edits(plain, shape)
        if name.casefold().startswith(tuple(word.casefold() + mark for mark in "-_@")):
            distance = min(distance, 1)
        if distance <= max(1, max(len(plain), len(shape)) // 4) and (best is None or distance < best[0]):
            best = distance, name
    return "" if best is None else f" Did you mean {best[1]!r}?"


def _plain(name: str) -> str:
    return re.sub(r"[-_\s]", "", name.casefold())


def _edits(one: str, other: str) -> int:
    """Return the optimal string alignment distance."""
    before: list[int] = []
    last = list(range(len(other) + 1))
    for row, letter in enumerate(one, start=1):
        current = [row]
        for column, wanted in enumerate(other, start=1):
            cost = min(last[column] + 1, current[-1] + 1, last[column - 1] + (letter != wanted))
            if row > 1 and column > 1 and one[row - 2] == wanted and letter == other[column - 2]:
                cost = min(cost, before[column - 2] + 1)
            current.append(cost)
        before, last = last, current
    return last[-1]

"""Errors, grouped by what the reader of the message can do about them."""

import difflib
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


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known word nearest to ``word``, or an empty string."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""

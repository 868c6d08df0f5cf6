"""Errors, classed by what the reader of the message can do about them."""

import difflib
from collections.abc import Iterable


class FedistillError(Exception):
    """Anything that ends in one clear message; never shown with a traceback."""


class ExperimentError(FedistillError):
    """The experiment file, the command line or the data they name must be mended (exit status 2)."""


class Refusal(ExperimentError):
    """A method cannot do what the experiment asks of it; said before round 1 (exit status 2)."""


class FrameError(FedistillError):
    """Bytes from the other side are not the frame that was expected."""


class TrainingError(FedistillError):
    """Training went wrong in one place (NaN, a crash in a model); the arm stops, others go on.

    Attributes:
        place: the round and the client, or the server, where it went wrong; empty while unknown.
    """

    def __init__(self, what: str, place: str = "") -> None:
        super().__init__(what, place)
        self.what, self.place = what, place

    def __str__(self) -> str:
        return f"{self.place}: {self.what}" if self.place else self.what


class RuntimeFailure(FedistillError):
    """The machine or a worker process failed; the run can be resumed (exit status 1)."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known word nearest to ``word``, or an empty text."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""

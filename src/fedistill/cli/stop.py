"""What asks a running command to end: Ctrl-C, SIGTERM and SIGHUP, which are all taken for Ctrl-C."""

import contextlib
import signal
import weakref
from collections.abc import Iterator
from types import FrameType

from fedistill.stop_signals import STOP_SIGNALS

INTERRUPTED = 128 + signal.SIGINT
"""Exit status after Ctrl-C; shells expect 128 and the number of the signal that ended a program."""


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end; everything that handles Ctrl-C handles it."""


class StopRequests:
    """The signals that asked this command to end.

    Attributes:
        first: the first of them, or None.
    """

    def __init__(self) -> None:
        self.first: signal.Signals | None = None
        self._unwinding: weakref.ref[Stopped] | None = None

    def exit_status(self, status: int) -> int:
        """Return the exit status for shells, where that for Ctrl-C stands for any of the signals."""
        return 128 + self.first if self.first is not None and status == INTERRUPTED else status

    def take(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal.

        Raises:
            Stopped: unless an earlier one is still on its way out, whose cleaning up must not be cut short.
        """
        if self._unwinding is not None and self._unwinding() is not None:
            return
        if self.first is None:
            self.first = signal.Signals(number)
        stopped = Stopped(
            "stopped" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
        )
        self._unwinding = weakref.ref(stopped)
        try:
            raise stopped
        finally:
            del stopped  # the traceback holds this frame, and would keep the exception alive


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Take the signals for Ctrl-C inside the context, but not those that are ignored, as under ``nohup``."""
    requests = StopRequests()
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    taken = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in taken:
        signal.signal(number, requests.take)
    try:
        yield requests
    finally:
        for number in taken:
            signal.signal(number, before[number])

"""What asks a running command to end: Ctrl-C, SIGTERM and SIGHUP, which are all taken for Ctrl-C."""

import contextlib
import signal
import weakref
from collections.abc import Iterator
from types import FrameType

from fedistill.stop_signals import STOP_SIGNALS


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end; everything that handles Ctrl-C handles it."""


class _Requests:
    """Raises `Stopped` for a signal that asks this command to end."""

    def __init__(self) -> None:
        self._unwinding: weakref.ref[Stopped] | None = None

    def take(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal.

        Raises:
            Stopped: unless an earlier one is still on its way out, whose cleaning up must not be cut short.
        """
        if self._unwinding is not None and self._unwinding() is not None:
            return
        stopped = Stopped(
            "stopped" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
        )
        self._unwinding = weakref.ref(stopped)
        try:
            raise stopped
        finally:
            del stopped  # the traceback holds this frame, and would keep the exception alive


@contextlib.contextmanager
def stop_requests() -> Iterator[None]:
    """Take the signals for Ctrl-C inside the context, but not those that are ignored, as under ``nohup``."""
    requests = _Requests()
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    taken = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in taken:
        signal.signal(number, requests.take)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])

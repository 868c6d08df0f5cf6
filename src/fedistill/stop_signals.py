"""The signals that ask a run to end: Ctrl-C, SIGTERM and SIGHUP, which may all be taken for Ctrl-C."""

import contextlib
import signal
import threading
import weakref
from collections.abc import Iterator
from types import FrameType

STOP_SIGNALS = tuple(
    signal.Signals(getattr(signal, name)) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Ctrl-C, a request to terminate, and a terminal that closes; Windows lacks the last."""


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end; everything that handles Ctrl-C handles it."""


class _Requests:
    """Raises `Stopped` for a signal that asks this process to end."""

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
    with _taking([one for one in STOP_SIGNALS if signal.getsignal(one) not in (signal.SIG_IGN, None)]):
        yield


@contextlib.contextmanager
def stop_requests_of_guest() -> Iterator[None]:
    """Take for Ctrl-C inside the context what would end the process on the spot.

    Signals that have a handler keep it. In a thread, which cannot set handlers, all keep theirs.
    """
    main = threading.current_thread() is threading.main_thread()
    with _taking([one for one in STOP_SIGNALS if main and signal.getsignal(one) is signal.SIG_DFL]):
        yield


@contextlib.contextmanager
def _taking(numbers: list[signal.Signals]) -> Iterator[None]:
    requests = _Requests()
    before = {number: signal.signal(number, requests.take) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

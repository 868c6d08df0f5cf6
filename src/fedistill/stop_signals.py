"""The signals that ask a run to end."""

import signal

STOP_SIGNALS = tuple(
    signal.Signals(getattr(signal, name)) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Ctrl-C, a request to terminate, and a terminal that closes; Windows lacks the last."""

"""Ends an app's process with its parent: Flower's tend to live on, trying to reach their parents forever."""

import functools
import os
import threading
import time

_POLL_SECONDS = 0.5


@functools.cache  # a process may handle many messages, and needs one watch only
def end_with_parent() -> None:
    """Exit at once when the parent process has ended. This is always safe: files are written atomically."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

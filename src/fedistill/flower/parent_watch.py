"""Flower's processes for an app tend to outlive those that started them, trying to reach them for ever."""

import functools
import os
import threading
import time

_POLL_SECONDS = 0.5


@functools.cache  # a process may be handed many messages, and one watch will do
def end_with_parent() -> None:
    """End this process at once when the one that started it has ended; its files are whole at any time."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

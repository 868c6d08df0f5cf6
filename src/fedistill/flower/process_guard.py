"""A process of its own that ends what a trial started if the trial itself is killed and cannot."""

import contextlib
import os
import signal
import subprocess
import sys
from typing import IO, Self

_START, _END = "+", "-"


class ProcessGuard:
    """Ends process groups once this process is gone, however it ended; use as a context manager.

    The guard reads from a pipe that only this process holds open, so that it learns of a SIGKILL too.
    """

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()

    def watch(self, group: int) -> None:
        """Have a process group ended with this process."""
        self._tell(_START, group)

    def forget(self, group: int) -> None:
        """Leave a group alone, since it has ended and another may get its number."""
        self._tell(_END, group)

    def _tell(self, what: str, group: int) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # without its guard a trial runs as well
            self._process.stdin.write(f"{what}{group}\n".encode())
            self._process.stdin.flush()


def guard(orders: IO[str]) -> None:
    """Follow orders until they end, then kill the groups that are still watched."""
    groups: set[int] = set()
    for order in orders:
        (groups.add if order[0] == _START else groups.discard)(int(order[1:]))
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    guard(sys.stdin)

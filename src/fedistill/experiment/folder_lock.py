"""Only one process at a time plays in a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fedistill.errors import ExperimentError

NAME = ".lock"


@contextmanager
def alone_in(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold the folder, which is made if it is not there; a process that dies lets go of it.

    May be nested within a thread.

    Args:
        wait: whether to wait for another process, or to raise.

    Raises:
        ExperimentError: another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / NAME, is_singleton=True)
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise ExperimentError(
            f"{folder}: another process is running in this folder: wait until it has ended, or name another"
            " folder with --out"
        ) from None
    except OSError as error:
        raise ExperimentError(
            f"{folder}: cannot be written ({error}); choose another folder with --out"
        ) from None
    try:
        yield
    finally:
        lock.release()

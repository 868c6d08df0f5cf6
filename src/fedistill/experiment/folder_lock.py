"""Only one process at a time plays in a folder, and only one has a network play in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fedistill.errors import ExperimentError

NAME = ".lock"
_OF_NETWORK = Path("flower", NAME)


@contextmanager
def alone_in(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold the folder, which is made if it is not there; a process that dies lets go of it.

    May be nested within a thread.

    Args:
        wait: whether to wait for another process, as the server of a network does, or to raise.

    Raises:
        ExperimentError: another process holds it, or has a network play in it (`network_in`), or it cannot be
            written.
    """
    lock = _lock_of(folder, NAME)
    nested = lock.is_locked
    with _held(lock, folder, wait):
        # Only after the own lock is held: of two that begin at once, one at least then sees the other.
        if not (nested or wait) and (folder / _OF_NETWORK).exists():
            with _held(_lock_of(folder, _OF_NETWORK), folder):
                pass
        yield


@contextmanager
def network_in(folder: Path) -> Iterator[None]:
    """Hold the folder for a network, whose server is a process of its own and does `alone_in` itself.

    Raises:
        ExperimentError: as `alone_in`, but for a server of an earlier network that has not ended yet.
    """
    with _held(_lock_of(folder, _OF_NETWORK), folder):
        yield


def _lock_of(folder: Path, name: str | Path) -> FileLock:
    return FileLock(folder / name, is_singleton=True)


@contextmanager
def _held(lock: FileLock, folder: Path, wait: bool = False) -> Iterator[None]:
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
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

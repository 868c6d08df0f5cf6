"""What the round loop asks of whatever carries frames to the clients and back."""

import contextlib
import ctypes
import multiprocessing
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from fedistill.config.schema import RuntimeConfig
from fedistill.errors import ExperimentError
from fedistill.federation.client import ClientFailure, ClientResult

TORCH_THREADS = 1
"""In each process that computes: another number would round otherwise."""

Job = tuple[int, bytes, bytes]
"""A client, its state and the frame for it; either may be empty."""


@dataclass(frozen=True)
class TransportOverhead:
    """What carrying a round's frames has taken besides them.

    Attributes:
        up, down: bytes around the frames, of all clients.
        late: replies that came after their round had ended, and were dropped.
    """

    up: int = 0
    down: int = 0
    late: int = 0


WORKER_NAME = "fedistill-worker-"
"""What the names of worker processes begin with."""
NO_MAIN_GUARD = 97
"""Exit status of a worker that was about to run the user's script again."""


class MissingMainGuard(ExperimentError):
    """A script starts a run where worker processes start it as well, since they import the script."""

    def __init__(self) -> None:
        super().__init__(
            "worker processes import the script that starts them, and would start the run again: put the call"
            ' under `if __name__ == "__main__":`, or set runtime.kind = "serial"'
        )


def check_main_guard() -> None:
    """See that a run is not started by a script that a new process is only about to import.

    A worker of ours ends here at once and without a word: its parent says what is wrong, once.

    Raises:
        MissingMainGuard: the process was started by something else that imports the script.
    """
    process = multiprocessing.current_process()
    if getattr(process, "_inheriting", False):  # as multiprocessing itself finds out
        if process.name.startswith(WORKER_NAME):
            os._exit(NO_MAIN_GUARD)
        raise MissingMainGuard


class Executor(ABC):
    """Does clients' work. Use as a context manager; inside, torch computes with one thread."""

    tolerates_failures: ClassVar[bool] = False
    """A reply that is not what was expected leaves its client out of the round, and does not end the run."""
    holds_client_states: ClassVar[bool] = True
    """Clients' states come to the server with their outcomes; elsewhere they stay at their sites."""
    private_counts_known: bool = True
    """Clients' private samples are those of the task: their classes are known, and so is `client@own`."""

    def __enter__(self) -> Self:
        self._threads = torch.get_num_threads()
        prepare_process()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
        torch.set_num_threads(self._threads)

    @abstractmethod
    def run_clients(
        self, arm: str, round: int, jobs: Sequence[Job]
    ) -> Iterator[ClientResult | ClientFailure]:
        """Do the jobs of a round; outcomes come in the order of the jobs.

        Raises:
            TrainingError: a client's work failed.
            RuntimeFailure: a worker process ended, or too few clients replied.
        """

    @abstractmethod
    def count_correct(self, arm: str, jobs: Sequence[Job]) -> Iterator[list[int] | None]:
        """Evaluate clients' own models on the global test set; counts come in the order of the jobs.

        None stands for a client that cannot be reached.
        """

    def settle(self, round: int, clients: int, missing: Mapping[int, ClientFailure]) -> None:
        """Is told, before a round is kept, how many clients were asked and which of them it lacks.

        Raises:
            RuntimeFailure: too few replied; the round is not kept.
        """
        assert not missing, "within a machine a client that fails ends the run"

    def transport_overhead(self) -> TransportOverhead:
        """What has been carried since this was last asked; nothing within a machine."""
        return TransportOverhead()

    @abstractmethod
    def close(self) -> None:
        """Stop whatever was started."""


def prepare_process() -> None:
    """One thread, and a heap that keeps what it has.

    Training frees and asks for the same large blocks in every step. glibc gives them back to the kernel
    each time, and the page faults of getting them again cost a fifth of the time of a small network.
    """
    torch.set_num_threads(TORCH_THREADS)
    if sys.platform == "linux":
        mmap_threshold, trim_threshold = -3, -1
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.mallopt(mmap_threshold, 1 << 30)
            libc.mallopt(trim_threshold, 1 << 30)


def worker_count(settings: RuntimeConfig, clients: int) -> int:
    """Worker processes that the settings ask for; 1 is this process alone."""
    if settings.kind == "serial":
        return 1
    return min(settings.workers or cores(), clients)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""What the round loop asks of whatever carries frames to the clients and back."""

import contextlib
import ctypes
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from fedistill.config.schema import RuntimeConfig
from fedistill.federation.client import ClientFailure, ClientResult

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
    torch.set_num_threads(1)
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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(settings.workers or cores or 1, clients)

"""What the round loop asks of an executor, which carries frames to the clients and back."""

import contextlib
import ctypes
import multiprocessing
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self, overload

import torch

from fedistill.config.schema import FlowerConfig, RuntimeConfig
from fedistill.errors import MissingMainGuard
from fedistill.federation.client import ClientResult
from fedistill.federation.failures import ClientFailure
from fedistill.federation.processes import cores
from fedistill.federation.scores import Scores
from fedistill.training.devices import CPU, computing, current_device
from fedistill.training.threads import TORCH_THREADS, threads

Job = tuple[int, bytes, bytes]
"""A client, its state and the frame for it; either may be empty."""


class Jobs(Sequence[Job]):
    """The jobs of a round, each with its client's state, which is read when the job is asked for."""

    def __init__(self, clients: Sequence[int], states: Mapping[int, bytes], frames: Sequence[bytes]) -> None:
        """``frames``: one for each client."""
        self._clients, self._states, self._frames = clients, states, frames

    def __len__(self) -> int:
        return len(self._clients)

    @overload
    def __getitem__(self, place: int) -> Job: ...
    @overload
    def __getitem__(self, place: slice) -> list[Job]: ...
    def __getitem__(self, place: int | slice) -> Job | list[Job]:
        if isinstance(place, slice):
            return [self[one] for one in range(len(self))[place]]
        client = self._clients[place]
        return client, self._states.get(client, b""), self._frames[place]


@dataclass(frozen=True)
class TransportOverhead:
    """What it takes to carry a round's frames, besides the frames.

    Attributes:
        up, down: bytes around the frames, summed over clients.
        late: number of replies that came after their round had ended, and were dropped.
    """

    up: int = 0
    down: int = 0
    late: int = 0


_MOST_SHARING = 4
"""Processes that share a device, unless more are asked for: each takes some 0.5 GB of it for itself."""
WORKER_NAME = "fedistill-worker-"
"""What the names of worker processes begin with."""
NO_MAIN_GUARD = 97
"""Exit status of a worker that was about to run the user's script again."""


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
    """Runs clients. Use as a context manager; inside, torch computes with one thread, on the device set."""

    runtime: RuntimeConfig = RuntimeConfig()
    """Where the server's models compute, and those of clients in this process."""
    quorum: float = FlowerConfig().quorum
    """The share of a round's clients that must remain in it, or the arm ends (`federation.failures`)."""
    holds_client_states: ClassVar[bool] = True
    """Clients' states come to the server with their results; on a network they stay at the clients."""
    private_counts_known: bool = True
    """Clients' private samples are those of the task, so that their classes, and `client@own`, are known."""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(threads(TORCH_THREADS))
            stack.callback(self.close)
            prepare_process()
            stack.enter_context(computing(self.runtime))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @abstractmethod
    def run_clients(
        self, arm: str, round: int, jobs: Sequence[Job]
    ) -> Iterator[ClientResult | ClientFailure]:
        """Do the jobs of a round; results come in the order of the jobs.

        A `ClientFailure` stands for a client elsewhere that failed or cannot be reached, and leaves it out of
        the round. Whether a reply is valid is not for the executor to say.

        Raises:
            TrainingError: the work of a client on this machine failed, which ends the arm.
            RuntimeFailure: a worker process ended.
        """

    @abstractmethod
    def evaluate(self, arm: str, jobs: Sequence[Job]) -> Iterator[Scores | None]:
        """Evaluate models at clients; their scores come in the order of the jobs.

        A job without a frame asks for the client's own model; one with a frame, for the server's in it
        (`client_evaluation`). None stands for a client that cannot be reached.
        """

    def transport_overhead(self) -> TransportOverhead:
        """Return the overhead since the last call; none within a machine."""
        return TransportOverhead()

    @abstractmethod
    def close(self) -> None:
        """Stop whatever was started."""


def prepare_process() -> None:
    """Let torch use one thread, and the heap keep the memory that it has.

    Training frees and allocates the same large blocks in every step. glibc returns them to the kernel each
    time, and the page faults of allocating them again cost a fifth of the time of a small network.
    """
    torch.set_num_threads(TORCH_THREADS)
    if sys.platform == "linux":
        mmap_threshold, trim_threshold = -3, -1
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.mallopt(mmap_threshold, 1 << 30)
            libc.mallopt(trim_threshold, 1 << 30)


def worker_count(settings: RuntimeConfig, clients: int) -> int:
    """Return how many worker processes the settings ask for; 1 stands for this process alone."""
    if settings.kind == "serial":
        return 1
    most = cores() if current_device() == CPU else min(cores(), _MOST_SHARING)
    return min(settings.workers or most, clients)

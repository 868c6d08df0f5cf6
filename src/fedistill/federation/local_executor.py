"""Clients on this machine: one after the other, or in persistent worker processes.

Both are bit-identical: every client's work is a function of bytes (`federation.client`), one torch thread
does it, and results are returned in client order, whichever came first.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Literal

from fedistill.config.schema import Experiment, RuntimeConfig
from fedistill.data.nameless_file import NamelessFile
from fedistill.data.task import Task
from fedistill.errors import MissingMainGuard, RuntimeFailure, TrainingError
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client import ClientResult
from fedistill.federation.client_evaluation import evaluate_client
from fedistill.federation.client_stacks import run_jobs, why_alone
from fedistill.federation.executor import (
    NO_MAIN_GUARD,
    WORKER_NAME,
    Executor,
    Job,
    check_main_guard,
    prepare_process,
    worker_count,
)
from fedistill.federation.processes import process_context
from fedistill.federation.scores import Scores
from fedistill.stop_signals import STOP_SIGNALS
from fedistill.training.devices import computing
from fedistill.training.stacked import STACK

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

_LARGEST_CHUNK = 16
_What = Literal["work", "evaluate"]
"""A job is a client's work in a round, or an evaluation."""
_Result = ClientResult | Scores
_Chunk = tuple[list[bytes], list[tuple[int, bytes, int]]]
"""Frames, and jobs that name their frame by its place among them."""


def start_executor(experiment: Experiment, task: Task) -> Executor:
    """Return the executor that the settings ask for; ``auto`` takes processes if there are several cores."""
    settings = experiment.runtime
    with computing(settings):
        count = worker_count(settings, len(task.clients))
    if settings.kind == "processes" or count > 1:
        return ProcessExecutor(count, experiment, task)
    return SerialExecutor(experiment, task)


class SerialExecutor(Executor):
    """One client after the other, in this process."""

    def __init__(self, experiment: Experiment, task: Task) -> None:
        self.quorum, self.runtime = experiment.flower.quorum, experiment.runtime
        self._arms = _ready_arms(experiment, task)

    def run_clients(self, arm: str, round: int, jobs: Sequence[Job]) -> Iterator[ClientResult]:
        yield from run_jobs(self._arms[arm], round, jobs, self.runtime)

    def evaluate(self, arm: str, jobs: Sequence[Job]) -> Iterator[Scores]:
        for client, state, frame in jobs:
            yield evaluate_client(self._arms[arm], client, state, frame)

    def close(self) -> None:
        pass


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    busy: bool = False


class ProcessExecutor(Executor):
    """Persistent worker processes with one torch thread each; they live through all arms.

    Workers are forked from a server process that has imported torch and done nothing else, so they start
    fast, share its memory, and inherit no threads or locks of the caller. Any worker can do any client's
    work, since a client's state travels with its job. The task lies in a file without a name, which all of
    them read as they need it; nothing is left of it, however the run ends.
    """

    def __init__(self, worker_count: int, experiment: Experiment, task: Task) -> None:
        check_main_guard()
        self.quorum, self.runtime = experiment.flower.quorum, experiment.runtime
        context = process_context()
        self._ticket = 0
        self._stacks = _that_stack(experiment, task) if self.runtime.fast else frozenset[str]()
        self._workers: list[_Worker] = []
        try:
            for number in range(worker_count):
                self._start(context, number, experiment)
            self._send_task(task)
        except BaseException:
            self.close()
            raise

    def _start(
        self, context: "ForkServerContext | SpawnContext", number: int, experiment: Experiment
    ) -> None:
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve,
            args=(theirs, experiment.model_dump_json(exclude_none=True)),
            name=f"{WORKER_NAME}{number}",
            daemon=True,
        )
        process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours))

    def _send_task(self, task: Task) -> None:
        file = task.file()
        for worker in self._workers:
            try:
                worker.connection.send(task.scratch)
                assert worker.process.pid is not None
                reduction.send_handle(worker.connection, file.handle, worker.process.pid)
            except OSError:
                raise self._died(worker) from None

    def run_clients(self, arm: str, round: int, jobs: Sequence[Job]) -> Iterator[ClientResult]:
        for result in self._map("work", arm, round, jobs):
            assert isinstance(result, ClientResult)
            yield result

    def evaluate(self, arm: str, jobs: Sequence[Job]) -> Iterator[Scores]:
        for scores in self._map("evaluate", arm, 0, jobs):
            assert isinstance(scores, Scores)
            yield scores

    def close(self) -> None:
        for worker in self._workers:
            worker.connection.close()
            if worker.busy:
                worker.process.kill()
        for worker in self._workers:
            worker.process.join(timeout=5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    def _map(self, what: _What, arm: str, round: int, jobs: Sequence[Job]) -> Iterator[_Result]:
        self._ticket += 1
        size = max(1, min(_LARGEST_CHUNK, len(jobs) // (len(self._workers) * 8)))
        if what == "work" and arm in self._stacks:
            size = STACK  # whatever the number of workers
        starts = range(0, len(jobs), size)
        waiting = deque(starts)
        done: dict[int, list[_Result | TrainingError]] = {}
        for start in starts:
            while start not in done:
                self._hand_out(jobs, size, waiting, what, arm, round)
                self._collect(done, patience=None)
            for result in done.pop(start):
                if isinstance(result, TrainingError):
                    raise result
                yield result
                # The server may have worked on that reply for a while; keep the clients busy.
                self._collect(done, patience=0)
                self._hand_out(jobs, size, waiting, what, arm, round)

    def _hand_out(
        self, jobs: Sequence[Job], size: int, waiting: deque[int], what: _What, arm: str, round: int
    ) -> None:
        """Give each idle worker a chunk, one at a time, since two full pipes would block both ends."""
        for worker in self._workers:
            if waiting and not worker.busy:
                start = waiting.popleft()
                chunk = _chunk(jobs[start : start + size])  # only now are their states read
                try:
                    worker.connection.send((self._ticket, start, what, arm, round, chunk))
                except OSError:
                    raise self._died(worker) from None
                worker.busy = True

    def _collect(self, done: dict[int, list[_Result | TrainingError]], patience: float | None) -> None:
        """Receive the results that are there; wait at most ``patience`` seconds, or None for no limit."""
        for connection in wait([worker.connection for worker in self._workers], patience):
            worker = next(w for w in self._workers if w.connection is connection)
            try:
                ticket, start, results = worker.connection.recv()
            except (EOFError, OSError):
                raise self._died(worker) from None
            worker.busy = False
            # Results of an arm that has failed since are of no use to the next one.
            if ticket == self._ticket:
                done[start] = results

    def _died(self, worker: _Worker) -> RuntimeFailure | MissingMainGuard:
        worker.process.join(timeout=1)
        code = worker.process.exitcode
        if code == NO_MAIN_GUARD:
            return MissingMainGuard()
        cause = f"exit code {code}"
        if code is not None and code < 0:
            cause = f"signal {-code}: {signal.strsignal(-code)}"
        return RuntimeFailure(
            f"{worker.process.name} ended ({cause}); if memory ran out, set runtime.workers lower or"
            " runtime.kind = 'serial' in the run's experiment.toml"
        )


def _chunk(jobs: Sequence[Job]) -> _Chunk:
    """Return the jobs with each different frame once: a broadcast is not copied for every client."""
    frames: dict[bytes, int] = {}
    packed = [(client, state, frames.setdefault(frame, len(frames))) for client, state, frame in jobs]
    return list(frames), packed


def _serve(connection: Connection, experiment: str) -> None:
    """Take the task, then do jobs in a worker process until the other end of the connection is closed."""
    # What asks a run to end may reach all processes of a terminal; the parent decides what it means.
    for request in STOP_SIGNALS:
        signal.signal(request, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare_process()
    try:
        scratch = connection.recv()
        task = Task.in_file(NamelessFile.received(reduction.recv_handle(connection)), scratch)
    except (EOFError, OSError):
        return
    wanted = Experiment.model_validate_json(experiment)
    with computing(wanted.runtime):
        _work(connection, _ready_arms(wanted, task), wanted.runtime)


def _work(connection: Connection, arms: dict[str, ReadyArm], runtime: RuntimeConfig) -> None:
    """Do jobs until the other end of the connection is closed."""
    while True:
        try:
            ticket, start, what, arm, round, (frames, jobs) = connection.recv()
        except (EOFError, OSError):
            return
        handed = [(client, state, frames[frame]) for client, state, frame in jobs]
        results: list[_Result | TrainingError] = []
        try:
            if what == "work":
                results.extend(run_jobs(arms[arm], round, handed, runtime))
            else:
                results.extend(evaluate_client(arms[arm], *job) for job in handed)
        except TrainingError as error:
            results.append(error)
        with contextlib.suppress(OSError):
            connection.send((ticket, start, results))


def _end_with_parent() -> None:
    """End this process at once when the parent has ended, killed perhaps, and the work is of no more use."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _that_stack(experiment: Experiment, task: Task) -> frozenset[str]:
    """Return the names of arms of which clients may be trained together."""
    with computing(experiment.runtime):
        return frozenset(
            name for name, arm in _ready_arms(experiment, task).items() if why_alone(arm) is None
        )


def _ready_arms(experiment: Experiment, task: Task) -> dict[str, ReadyArm]:
    return {arm.name: ReadyArm.of(arm, experiment, task) for arm in experiment.arms}

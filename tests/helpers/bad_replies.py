"""Replies that are not what their clients sent: damaged on their way, or written by a client that lies."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from fedistill.communication.protocol import frame as frames
from fedistill.communication.protocol.frame import Frame
from fedistill.config.schema import Experiment
from fedistill.data.task import Task
from fedistill.experiment.runner import StartExecutor
from fedistill.federation.client import ClientResult
from fedistill.federation.executor import Executor, Job
from fedistill.federation.failures import ClientFailure
from fedistill.federation.local_executor import start_executor
from fedistill.federation.scores import Scores

Change = Callable[[int, int, bytes], bytes]
"""From a round, a client and its reply to what arrives in place of it."""


class Changing(Executor):
    """Hands jobs on and changes replies on their way back."""

    def __init__(self, inner: Executor, change: Change, arm: str | None = None) -> None:
        """Change the replies of one arm, or of all."""
        self._inner, self._change, self._arm = inner, change, arm
        self.quorum = inner.quorum

    def run_clients(
        self, arm: str, round: int, jobs: Sequence[Job]
    ) -> Iterator[ClientResult | ClientFailure]:
        for result, (client, _, _) in zip(self._inner.run_clients(arm, round, jobs), jobs, strict=True):
            if isinstance(result, ClientResult) and self._arm in (None, arm):
                yield replace(result, frame=self._change(round, client, result.frame))
            else:
                yield result

    def evaluate(self, arm: str, jobs: Sequence[Job]) -> Iterator[Scores | None]:
        return self._inner.evaluate(arm, jobs)

    def close(self) -> None:
        self._inner.close()


def changing(change: Change, arm: str | None = None) -> StartExecutor:
    """Start the executor that the settings ask for, with replies changed."""

    def start(experiment: Experiment, task: Task) -> Executor:
        return Changing(start_executor(experiment, task), change, arm)

    return start


def only(rounds: Sequence[int], clients: Sequence[int], change: Callable[[bytes], bytes]) -> Change:
    """Change the replies of some clients in some rounds."""
    return lambda round, client, reply: change(reply) if round in rounds and client in clients else reply


def damaged(reply: bytes) -> bytes:
    """One bit of it is another."""
    middle = len(reply) // 2
    return reply[:middle] + bytes([reply[middle] ^ 1]) + reply[middle + 1 :]


def rewritten(change: Callable[[Frame], Frame]) -> Callable[[bytes], bytes]:
    """Write another frame, whole and with its own checksum."""
    return lambda reply: frames.encode(change(frames.decode(reply)))


def with_section(place: int, section: bytes) -> Callable[[bytes], bytes]:
    """Write another section in place of one."""

    def change(frame: Frame) -> Frame:
        sections = list(frame.sections)
        sections[place] = section
        return replace(frame, sections=tuple(sections))

    return rewritten(change)


def turned_around(reply: bytes) -> bytes:
    """All numbers of its first section, in fp32, have the other sign."""
    numbers = np.frombuffer(frames.decode(reply).sections[0], "<f4")
    return with_section(0, (-numbers).tobytes())(reply)

"""The server's part: the round loop in a Flower ServerApp, with SuperNodes as its clients."""

import contextlib
import fcntl
import math
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedistill.arm import ReadyArm, resolved
from fedistill.config import Experiment
from fedistill.doctor import Finding
from fedistill.errors import ExperimentError, FedistillError, RuntimeFailure
from fedistill.experiment import compare, resume
from fedistill.experiment_file import dump
from fedistill.report.record import RunFolder
from fedistill.round import RoundRecord
from fedistill.runtime.flower.client import _experiment
from fedistill.runtime.flower.envelope import Answer, Order
from fedistill.runtime.flower.mail import Mail, bounded, brief
from fedistill.runtime.flower.parent import end_with_parent
from fedistill.runtime.flower.project import ended
from fedistill.runtime.runtime import Carried, Job, Runtime
from fedistill.site import Missing, Outcome, describe
from fedistill.state import write
from fedistill.tasks.task import Task
from fedistill.wire import codecs
from fedistill.wire.exchange import Exchange

app = ServerApp()
_POLL_SECONDS = 0.5
"""Between looks for replies. Each is a request for each node, which costs the SuperLink 10 ms and more."""
_HELLO_SECONDS = 60.0
"""For a node to say who it is; it builds its share of the data before it does."""


class FlowerRuntime(Runtime):
    """Clients are SuperNodes; each knows which client it is."""

    forgives = True
    has_states = False

    def __init__(self, grid: Grid, experiment: Experiment, task: Task, session: str) -> None:
        """Wait until all clients are there, or, as long as the settings say, for the quorum.

        Raises:
            RuntimeFailure: fewer came.
        """
        self._mail, self._settings, self._session = Mail(grid), experiment.flower, session
        self._longest = {arm.name: _longest(ReadyArm.of(arm, experiment, task)) for arm in experiment.arms}
        self._clients = len(task.clients)
        self._tested = torch.bincount(task.test.labels, minlength=len(task.classes)).tolist()
        self._fingerprint = task.fingerprint()
        self._nodes: dict[int, int] = {}
        self._first: dict[int, int] = {}
        self._hellos: dict[int, _Hello] = {}
        self._outstanding: set[str] = set()
        self.private_counts_known = True
        self._counts: dict[tuple[str, int], list[int]] = {}
        until = time.monotonic() + self._settings.wait
        while len(self._nodes) < self._clients and time.monotonic() < until:
            self._greet()
            time.sleep(_POLL_SECONDS)
        what = f"are connected after {self._settings.wait:g} s"
        self._need(len(self._nodes), self._clients, what, self._strangers())

    def work(self, arm: str, round: int, jobs: Sequence[Job]) -> Iterator[Outcome | Missing]:
        if not jobs:  # a method may leave clients alone
            return
        self._greet()
        while self._listening():
            time.sleep(_POLL_SECONDS)
            self._greet()
        orders = {client: Order(self._session, arm, round, frame) for client, _, frame in jobs}
        answers = self._ask(orders, "train")
        for client, answer in answers.items():
            if isinstance(answer, Answer) and len(answer.frame) > self._longest[arm]:
                self._mail.count(answer)
                what = (
                    f"it sent {len(answer.frame):,} bytes where at most {self._longest[arm]:,} are expected"
                )
                answers[client] = Missing(what, reached=True)
        self.settle(
            round, len(jobs), {client: gone for client, gone in answers.items() if isinstance(gone, Missing)}
        )
        for client, _, _ in jobs:
            answer = answers[client]
            if isinstance(answer, Missing):
                yield answer
            else:
                self._note(arm, client, answer)
                yield Outcome(b"", answer.frame, _seconds(answer))

    def settle(self, round: int, clients: int, missing: Mapping[int, Missing]) -> None:
        reasons = "; ".join(f"client {client}: {gone.reason}" for client, gone in sorted(missing.items()))
        self._need(clients - len(missing), clients, f"replied in round {round}", reasons)

    def correct(self, arm: str, jobs: Sequence[Job]) -> Iterator[list[int] | None]:
        # Who has just worked has said it already: a message of its own would start one more process.
        asked = [client for client, _, _ in jobs if (arm, client) not in self._counts]
        answers = self._ask({client: Order(self._session, arm) for client in asked}, "evaluate")
        for client, answer in answers.items():
            if isinstance(answer, Answer):
                self._note(arm, client, answer)
            else:
                _say(f"arm {arm}: client {client} is not evaluated: {answer.reason}")
        for client, _, _ in jobs:
            yield self._counts.pop((arm, client), None)

    def carried(self) -> Carried:
        return self._mail.carried()

    def close(self) -> None:
        pass

    def _note(self, arm: str, client: int, answer: Answer) -> None:
        if "counts" not in answer.words:
            return
        counts = answer.words["counts"]
        whole = isinstance(counts, list) and len(counts) == len(self._tested)
        if whole and all(
            type(right) is int and 0 <= right <= samples
            for right, samples in zip(counts, self._tested, strict=True)
        ):
            self._counts[arm, client] = counts
        else:
            said = brief(repr(counts))
            _say(f"arm {arm}: client {client} says {said} of {self._tested} samples right: not counted")

    def _greet(self) -> None:
        """Ask nodes that are new which client they are, and hear what they say; waits for nobody.

        Who has not answered, or not well, is asked again after a while, or when it comes back.
        """
        there, now = self._mail.nodes(), time.monotonic()
        self._nodes = {client: node for client, node in self._nodes.items() if node in there}
        self._hellos = {node: hello for node, hello in self._hellos.items() if node in there}
        waiting = {node for node, hello in self._hellos.items() if now < hello.asked + _HELLO_SECONDS}
        new = there - set(self._nodes.values()) - waiting
        hello = Order(self._session, frame=self._fingerprint.encode())
        for message, node in self._mail.push(dict.fromkeys(new, hello), "query").items():
            met = self._hellos.get(node)
            self._hellos[node] = _Hello(message, now, met.met if met else now, met.refused if met else "")
        with bounded(0):
            came = {node: self._mail.pull(one.message) for node, one in self._hellos.items() if one.message}
        for node, answer in came.items():
            if answer is not None:
                self._meet(node, answer)

    def _meet(self, node: int, answer: Answer | Missing) -> None:
        """Let a node in as the client that it says it is, or say why not."""
        why = self._stranger(node, answer)
        if why:
            self._hellos[node] = replace(self._hellos[node], message="", refused=why)
            _say(f"node {node} is refused: {why}")
        elif isinstance(answer, Answer):
            client = answer.words["client"]
            del self._hellos[node]
            self._nodes[client] = self._first[client] = node
            self.private_counts_known &= answer.words.get("own-data") is False

    def _stranger(self, node: int, answer: Answer | Missing) -> str:
        """Why a node is none of the clients; empty: it is."""
        if isinstance(answer, Missing):
            return answer.reason
        client = answer.words.get("client")
        if type(client) is not int or not 0 <= client < self._clients:
            return f"it says that it is client {brief(repr(client))} of {self._clients}"
        if answer.words.get("fingerprint") != self._fingerprint:
            return f"client {client} has built other data than the server"
        if self._first.get(client, node) != node:
            return (
                f"client {client} is node {self._first[client]} in this run; a site with a new key gets in"
                " when the run is started again"
            )
        return ""

    def _strangers(self) -> str:
        silent = (
            "it has not said who it is; its log says why, or raise flower.wait if it builds its data still"
        )
        found = ((node, hello.refused or silent) for node, hello in self._hellos.items())
        return "; ".join(f"node {node}: {why}" for node, why in sorted(found))

    def _listening(self) -> bool:
        """Whether a node that has come lately may still say who it is."""
        now = time.monotonic()
        return any(hello.message and now < hello.met + _HELLO_SECONDS for hello in self._hellos.values())

    def _ask(self, orders: dict[int, Order], kind: str) -> dict[int, Answer | Missing]:
        """Send each client its order; an answer of each, in words where there is none."""
        to = {self._nodes[client]: client for client in orders if client in self._nodes}
        answers = self._exchange({node: orders[client] for node, client in to.items()}, kind)
        found = {to[node]: answer for node, answer in answers.items()}
        strangers = self._strangers()
        why = "it is not connected" + (f" ({strangers})" if strangers else "")
        return {client: found.get(client, Missing(why, reached=False)) for client in orders}

    def _exchange(self, orders: dict[int, Order], kind: str) -> dict[int, Answer | Missing]:
        waiting = self._mail.push(orders, kind)
        refused = Missing("Flower did not take the message for it; its log says why", reached=False)
        answers: dict[int, Answer | Missing] = dict.fromkeys(set(orders) - set(waiting.values()), refused)
        until = time.monotonic() + self._settings.deadline
        with bounded(max(self._longest.values()) * len(waiting)):
            while waiting and time.monotonic() < until:
                time.sleep(_POLL_SECONDS)
                for message in list(waiting):
                    answer = self._mail.pull(message)
                    if answer is not None:
                        answers[waiting.pop(message)] = answer
                for message in list(self._outstanding):
                    late = self._mail.pull(message)
                    if late is not None:
                        self._outstanding.discard(message)
                        self._mail.late(late)
        self._outstanding |= set(waiting)
        gone = Missing(f"no reply within {self._settings.deadline:g} s", reached=True)
        return answers | dict.fromkeys(waiting.values(), gone)

    def _need(self, there: int, of: int, what: str, why: str) -> None:
        needed = min(of, max(1, math.ceil(self._settings.quorum * of - 1e-9)))
        if there < needed:
            asked = f"{there} of {of} clients {what}, but flower.quorum asks for {needed}"
            raise RuntimeFailure(asked + (f" ({why})" if why else ""))


@dataclass(frozen=True)
class _Hello:
    """What a node is asked first.

    Attributes:
        message: which its answer is to; empty: it has answered, and was refused.
        asked, met: when it was asked last, and first.
        refused: why it was refused last; empty: it has not been.
    """

    message: str
    asked: float
    met: float
    refused: str


def _longest(arm: ReadyArm) -> int:
    """Bytes that no reply of an arm reaches: numbers of 8 bytes, and room for what is not numbers."""
    kind = arm.method.uplink
    if kind is None:
        return 0
    plain = Exchange(*codecs.pair("fp32"), arm.seed)
    sizes = [arm.sizes(client) for client in range(len(arm.task.clients))]
    return 2 * max(plain.length("up", kind, one) for one in sizes) + 65_536


def _seconds(answer: Answer) -> float:
    seconds = answer.words.get("seconds")
    return seconds if isinstance(seconds, float) and 0 <= seconds < float("inf") else 0.0


def _say(what: str) -> None:
    print(what, flush=True)


class _Said:
    """Prints how a run goes on; Flower keeps it in its log."""

    def findings(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            _say(f"{finding.level} {finding}")

    def arm(self, name: str, rounds: int, done: int) -> None:
        _say(f"arm {name}: round {done} of {rounds} is done")

    def round(self, name: str, record: RoundRecord) -> None:
        shown = ", ".join(f"{view} {value:.1%}" for view, value in record.views.items())
        _say(f"arm {name}: round {record.round}: {shown}")
        for client, why in record.missing.items():
            _say(f"arm {name}: round {record.round}: without client {client}: {why}")

    def failed(self, name: str, error: str) -> None:
        _say(f"arm {name} failed: {error}")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Play the experiment of the run config, or go on with it where its folder holds a part of it."""
    end_with_parent()
    run: dict[str, Any] = dict(context.run_config)
    if not isinstance(run.get("out"), str):
        raise ExperimentError("run config: `out` must be the folder for the results")
    out = Path(run["out"])
    said = ""
    try:
        with alone(out):
            _play(grid, _experiment(run), out, str(run.get("command", "flwr run")))
    except FedistillError as failure:
        said = str(failure)
        raise
    except BaseException as failure:
        said = describe(failure)
        raise
    finally:
        write(ended(out, context.run_id), said.encode())


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Wait until no other process plays in a folder: one whose SuperLink has died may not know it yet."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _play(grid: Grid, asked: Experiment, out: Path, command: str) -> None:
    """Begin, or go on with what the folder holds of the same experiment; `[flower]` may have changed.

    Raises:
        ExperimentError: the folder holds another run.
    """
    folder = RunFolder(out)
    begun = (out / "experiment.toml").exists()
    if begun:
        _check_same(folder, asked)
    else:
        write(folder.session, secrets.token_hex(8).encode())
    session = folder.session.read_text()

    def start(experiment: Experiment, task: Task) -> Runtime:
        return FlowerRuntime(grid, experiment.model_copy(update={"flower": asked.flower}), task, session)

    if begun:
        resume(out, _Said(), start)
    else:
        compare(asked, out, command, _Said(), start)


def _check_same(folder: RunFolder, asked: Experiment) -> None:
    if not folder.on_network:
        raise ExperimentError(
            f"{folder.path} holds a run that was begun in one process: go on with it by: {folder.again()},"
            " or name another folder for the results"
        )
    arms = [resolved(arm) for arm in asked.arms]
    held = folder.experiment().model_copy(update={"flower": asked.flower})
    if dump(held) != dump(asked.model_copy(update={"arms": arms})):
        raise ExperimentError(
            f"{folder.path} holds a run of another experiment: name another folder for the results (`out` in"
            " the run config), or run the app of that experiment to go on with it"
        )

"""The server's part: the round loop in a Flower ServerApp, with SuperNodes as its clients."""

import contextlib
import fcntl
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from fedistill.arm import ReadyArm
from fedistill.config import Experiment
from fedistill.doctor import Finding
from fedistill.errors import FedistillError, FrameError, RuntimeFailure
from fedistill.experiment import compare, resume
from fedistill.round import RoundRecord
from fedistill.runtime.flower.client import _experiment
from fedistill.runtime.flower.envelope import Answer, Order, open_answer, overhead, seal_order
from fedistill.runtime.flower.parent import end_with_parent
from fedistill.runtime.flower.project import ended
from fedistill.runtime.runtime import Carried, Job, Runtime
from fedistill.site import Missing, Outcome, describe
from fedistill.state import write
from fedistill.tasks.task import Task
from fedistill.wire import codecs
from fedistill.wire.exchange import Exchange

app = ServerApp()
_POLL_SECONDS = 0.1


class FlowerRuntime(Runtime):
    """Clients are SuperNodes; each knows which client it is."""

    forgives = True

    def __init__(self, grid: Grid, experiment: Experiment, task: Task, session: str) -> None:
        """Wait until all clients are there, or, as long as the settings say, for the quorum.

        Raises:
            RuntimeFailure: fewer came.
        """
        self._grid, self._settings, self._session = grid, experiment.flower, session
        self._longest = {arm.name: _longest(ReadyArm.of(arm, experiment, task)) for arm in experiment.arms}
        self._clients, self._classes = len(task.clients), len(task.classes)
        self._fingerprint = task.fingerprint()
        self._nodes: dict[int, int] = {}
        self._refused: dict[int, str] = {}
        self._outstanding: set[str] = set()
        self._up = self._down = self._late = 0
        self.private_counts_known = True
        self._counts: dict[tuple[str, int], list[int]] = {}
        until = time.monotonic() + self._settings.wait
        while len(self._nodes) < self._clients and time.monotonic() < until:
            self._greet()
            time.sleep(_POLL_SECONDS)
        self._need(len(self._nodes), self._clients, f"are connected after {self._settings.wait:g} s")

    def work(self, arm: str, round: int, jobs: Sequence[Job]) -> Iterator[Outcome | Missing]:
        self._greet()
        orders = {client: Order(self._session, arm, round, frame) for client, _, frame in jobs}
        answers = self._ask(orders, "train")
        for client, answer in answers.items():
            if isinstance(answer, Answer) and len(answer.frame) > self._longest[arm]:
                what = (
                    f"it sent {len(answer.frame):,} bytes where at most {self._longest[arm]:,} are expected"
                )
                answers[client] = Missing(what, reached=True)
        good = sum(isinstance(answer, Answer) for answer in answers.values())
        reasons = [
            f"client {client}: {answer.reason}"
            for client, answer in answers.items()
            if isinstance(answer, Missing)
        ]
        self._need(good, len(jobs), f"replied in round {round}", "; ".join(reasons))
        for client, _, _ in jobs:
            answer = answers[client]
            if isinstance(answer, Missing):
                yield answer
            else:
                self._note(arm, client, answer)
                yield Outcome(b"", answer.frame, _seconds(answer))

    def correct(self, arm: str, jobs: Sequence[Job]) -> Iterator[list[int] | None]:
        # Who has just worked has said it already: a message of its own would start one more process.
        asked = [client for client, _, _ in jobs if (arm, client) not in self._counts]
        answers = self._ask({client: Order(self._session, arm) for client in asked}, "evaluate")
        for client, answer in answers.items():
            if isinstance(answer, Answer):
                self._note(arm, client, answer)
        for client, _, _ in jobs:
            yield self._counts.pop((arm, client), None)

    def carried(self) -> Carried:
        found = Carried(self._up, self._down, self._late)
        self._up = self._down = self._late = 0
        return found

    def close(self) -> None:
        pass

    def _note(self, arm: str, client: int, answer: Answer) -> None:
        counts = answer.words.get("counts")
        if isinstance(counts, list) and len(counts) == self._classes and all(type(n) is int for n in counts):
            self._counts[arm, client] = counts

    def _greet(self) -> None:
        """Ask nodes that are new which client they are."""
        there = set(self._grid.get_node_ids())
        self._nodes = {client: node for client, node in self._nodes.items() if node in there}
        new = there - set(self._nodes.values()) - set(self._refused)
        for node, answer in self._exchange({node: Order(self._session) for node in new}, "query").items():
            if isinstance(answer, Missing):
                continue
            client, fingerprint = answer.words.get("client"), answer.words.get("fingerprint")
            self.private_counts_known &= answer.words.get("own-data") is False
            if not isinstance(client, int) or not 0 <= client < self._clients:
                self._refuse(node, f"it says that it is client {client!r} of {self._clients}")
            elif fingerprint != self._fingerprint:
                self._refuse(node, f"client {client} has built other data than the server")
            elif client in self._nodes:
                self._refuse(node, f"client {client} is there already")
            else:
                self._nodes[client] = node

    def _refuse(self, node: int, why: str) -> None:
        self._refused[node] = why
        print(f"node {node} is refused: {why}", flush=True)

    def _ask(self, orders: dict[int, Order], kind: str) -> dict[int, Answer | Missing]:
        """Send each client its order; an answer of each, in words where there is none."""
        to = {self._nodes[client]: client for client in orders if client in self._nodes}
        answers = self._exchange({node: orders[client] for node, client in to.items()}, kind)
        found = {to[node]: answer for node, answer in answers.items()}
        nowhere = Missing("it is not connected", reached=False)
        return {client: found.get(client, nowhere) for client in orders}

    def _exchange(self, orders: dict[int, Order], kind: str) -> dict[int, Answer | Missing]:
        if not orders:
            return {}
        nodes = list(orders)
        messages = [seal_order(orders[node], node, kind) for node in nodes]
        self._down += sum(
            overhead(one, orders[node].frame) for one, node in zip(messages, nodes, strict=True)
        )
        ids = list(self._grid.push_messages(messages))
        waiting = dict(zip(ids, nodes, strict=True))
        answers: dict[int, Answer | Missing] = {}
        until = time.monotonic() + self._settings.deadline
        while waiting and time.monotonic() < until:
            came = list(self._grid.pull_messages([*waiting, *self._outstanding]))
            for message in came:
                asked = message.metadata.reply_to_message_id
                if asked in waiting:
                    answers[waiting.pop(asked)] = answer = _read(message)
                    self._up += overhead(message, b"" if isinstance(answer, Missing) else answer.frame)
                else:
                    self._outstanding.discard(asked)
                    self._late += 1
            if not came:
                time.sleep(_POLL_SECONDS)
        self._outstanding |= set(waiting)
        gone = Missing(f"no reply within {self._settings.deadline:g} s", reached=True)
        return answers | dict.fromkeys(waiting.values(), gone)

    def _need(self, there: int, of: int, what: str, why: str = "") -> None:
        needed = max(1, -(-int(self._settings.quorum * of * 1000) // 1000))
        if there < needed:
            asked = f"{there} of {of} clients {what}, but flower.quorum asks for {needed}"
            raise RuntimeFailure(asked + (f" ({why})" if why else ""))


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


def _read(message: Message) -> Answer | Missing:
    if message.has_error():
        return Missing(f"Flower says: {message.error.reason or message.error.code}", reached=True)
    try:
        answer = open_answer(message)
    except FrameError as error:
        return Missing(str(error), reached=True)
    if "error" in answer.words:
        return Missing(str(answer.words["error"]), reached=True)
    return answer


class _Said:
    """Prints how a run goes on; Flower keeps it in its log."""

    def findings(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            print(f"{finding.level} {finding}", flush=True)

    def arm(self, name: str, rounds: int, done: int) -> None:
        print(f"arm {name}: round {done} of {rounds} is done", flush=True)

    def round(self, name: str, record: RoundRecord) -> None:
        shown = ", ".join(f"{view} {value:.1%}" for view, value in record.views.items())
        print(f"arm {name}: round {record.round}: {shown}", flush=True)
        for client, why in record.missing.items():
            print(f"arm {name}: round {record.round}: without client {client}: {why}", flush=True)

    def failed(self, name: str, error: str) -> None:
        print(f"arm {name} failed: {error}", flush=True)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Play the experiment of the run config, or go on with it where its folder holds a part of it."""
    end_with_parent()
    run: dict[str, Any] = dict(context.run_config)
    experiment, out = _experiment(run), Path(str(run["out"]))
    said = ""
    try:
        with alone(out):
            _play(grid, experiment, out, str(run.get("command", "flwr run")))
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


def _play(grid: Grid, experiment: Experiment, out: Path, command: str) -> None:
    begun = (out / "experiment.toml").exists()
    name = out / "session"
    if not name.exists():
        write(name, secrets.token_hex(8).encode())
    session = name.read_text()

    def start(experiment: Experiment, task: Task) -> Runtime:
        return FlowerRuntime(grid, experiment, task, session)

    if begun:
        resume(out, _Said(), start)
    else:
        compare(experiment, out, command, _Said(), start)

"""The runtime whose clients are SuperNodes, each of which may be several of them."""

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from flwr.serverapp import Grid

from fedistill.communication.codecs import registry as codecs
from fedistill.communication.protocol.message_coder import MessageCoder
from fedistill.communication.secure_aggregation.sizes import round_bytes
from fedistill.config.schema import Experiment
from fedistill.data.task import Task
from fedistill.errors import FrameError, RuntimeFailure
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client import ClientResult
from fedistill.federation.client_evaluation import asked_of_clients
from fedistill.federation.executor import Executor, Job, TransportOverhead
from fedistill.federation.failures import ClientFailure, quorum_of
from fedistill.federation.scores import Scores
from fedistill.flower.log import say
from fedistill.flower.node_registry import NodeRegistry
from fedistill.flower.serde import Answer, Order, Reply
from fedistill.flower.transport import LONGEST_TEXT, Transport, bounded, brief, failed
from fedistill.training.cost import Cost

_POLL_SECONDS = 0.5
"""Between looks for replies. Each is a request for each node, which costs the SuperLink 10 ms and more."""


class FlowerExecutor(Executor):
    """Clients are at SuperNodes; each knows which clients it is."""

    holds_client_states = False

    def __init__(self, grid: Grid, experiment: Experiment, task: Task, session: str) -> None:
        """Wait until all clients are there, or, as long as the settings say, for the quorum.

        Raises:
            RuntimeFailure: fewer came.
        """
        self._mail, self._settings, self._session = Transport(grid), experiment.flower, session
        most = experiment.flower.clients_per_node
        self._register = NodeRegistry(self._mail, session, len(task.clients), most, task.fingerprint())
        self._arms = {arm.name: ReadyArm.of(arm, experiment, task) for arm in experiment.arms}
        self._longest = {name: _longest(arm) for name, arm in self._arms.items()}
        self._longest_words = max(2 * asked_of_clients(arm).longest() for arm in self._arms.values())
        self._outstanding: dict[str, int] = {}
        self._scores: dict[tuple[str, int], Scores] = {}
        until, clients = time.monotonic() + self._settings.wait, len(task.clients)
        while len(self._register.nodes) < clients and time.monotonic() < until:
            self._greet()
            time.sleep(_POLL_SECONDS)
        self.quorum, self.runtime = self._settings.quorum, experiment.runtime
        there, needed = len(self._register.nodes), quorum_of(self.quorum, clients)
        if there < needed:
            asked = (
                f"{there} of {clients} clients are connected after {self._settings.wait:g} s, but"
                f" flower.quorum asks for {needed}"
            )
            why = self._register.strangers()
            raise RuntimeFailure(asked + (f" ({why})" if why else ""))

    def run_clients(
        self, arm: str, round: int, jobs: Sequence[Job]
    ) -> Iterator[ClientResult | ClientFailure]:
        if not jobs:  # a method may leave clients alone
            return
        self._greet()
        while self._register.listening():
            time.sleep(_POLL_SECONDS)
            self._greet()
        frames = {client: frame for client, _, frame in jobs}
        answers = self._ask(Order(self._session, arm, round, frames), "train")
        for client, answer in answers.items():
            if isinstance(answer, Answer) and len(answer.frame) > self._longest[arm]:
                self._mail.count(answer)
                what = (
                    f"it sent {len(answer.frame):,} bytes where at most {self._longest[arm]:,} are expected"
                )
                answers[client] = ClientFailure(what, reached=True)
        for client, _, _ in jobs:
            answer = answers[client]
            if isinstance(answer, ClientFailure):
                yield answer
            else:
                if "counts" in answer.words:
                    scores = self._read(arm, client, answer)
                    if scores is not None:
                        self._scores[arm, client] = scores
                yield ClientResult(b"", answer.frame, _seconds(answer), _cost(answer))

    def evaluate(self, arm: str, jobs: Sequence[Job]) -> Iterator[Scores | None]:
        # Who has just worked has said it already: a message of its own would start one more process.
        frames = {client: frame for client, _, frame in jobs if frame or (arm, client) not in self._scores}
        found: dict[int, Scores | None] = {}
        for client, answer in self._ask(Order(self._session, arm, frames=frames), "evaluate").items():
            if isinstance(answer, ClientFailure):
                say(f"arm {arm}: client {client} is not evaluated: {answer.reason}")
            else:
                found[client] = self._read(arm, client, answer, frames[client])
        for client, _, _ in jobs:
            yield found[client] if client in found else self._scores.pop((arm, client), None)

    def transport_overhead(self) -> TransportOverhead:
        return self._mail.transport_overhead()

    def close(self) -> None:
        pass

    def _read(self, arm: str, client: int, answer: Answer, frame: bytes = b"") -> Scores | None:
        """Return a client's scores, or None, and a word to the log, where it says nothing possible."""
        counts, beyond = answer.words.get("counts"), answer.words.get("scores", "")
        if frame:
            counts, beyond = [], answer.frame
        try:
            return asked_of_clients(self._arms[arm], frame).scores(counts, beyond)
        except FrameError as error:
            say(f"arm {arm}: client {client} says {brief(str(error))}: not counted")
            return None

    def _greet(self) -> None:
        self._register.greet()
        self.private_counts_known = not self._register.own_data

    def _ask(self, order: Order, kind: str) -> dict[int, Answer | ClientFailure]:
        """Send the nodes of an order's clients their parts of it; return what each says, or why not."""
        nodes: dict[int, dict[int, bytes]] = {}
        for client, frame in order.frames.items():
            if client in self._register.nodes:
                nodes.setdefault(self._register.nodes[client], {})[client] = frame
        orders = {node: replace(order, frames=frames) for node, frames in nodes.items()}
        found: dict[int, Answer | ClientFailure] = {}
        for node, reply in self._exchange(orders, kind).items():
            found |= self._answers(reply, nodes[node])
        strangers = self._register.strangers()
        why = "it is not connected" + (f" ({strangers})" if strangers else "")
        return {client: found.get(client, ClientFailure(why, reached=False)) for client in order.frames}

    def _answers(
        self, reply: Reply | ClientFailure, asked: Collection[int]
    ) -> dict[int, Answer | ClientFailure]:
        """What each client says that a node was asked for."""
        if isinstance(reply, ClientFailure):
            return dict.fromkeys(asked, reply)
        silent = ClientFailure("the reply of its node says nothing of it", reached=True)
        answers: dict[int, Answer | ClientFailure] = dict.fromkeys(asked, silent)
        for client, answer in reply.answers.items():
            failure = failed(answer.words)
            if failure:
                self._mail.count(answer)
            answers[client] = failure or answer
        return answers

    def _exchange(self, orders: dict[int, Order], kind: str) -> dict[int, Reply | ClientFailure]:
        waiting = self._mail.push(orders, kind, self._longest_words)
        refused = ClientFailure("Flower did not take the message for it; its log says why", reached=False)
        replies: dict[int, Reply | ClientFailure] = dict.fromkeys(
            set(orders) - set(waiting.values()), refused
        )
        until = time.monotonic() + self._settings.deadline
        sizes = {message: len(orders[node].frames) for message, node in waiting.items()}
        # One that is late takes its room beside those of this exchange.
        clients = sum(sizes.values()) + sum(self._outstanding.values())
        room = max(self._longest.values()) + LONGEST_TEXT + self._longest_words
        with bounded(room * clients):
            while waiting and time.monotonic() < until:
                time.sleep(_POLL_SECONDS)
                for message in list(waiting):
                    reply = self._mail.pull(message)
                    if reply is not None:
                        replies[waiting.pop(message)] = reply
                for message in list(self._outstanding):
                    late = self._mail.pull(message)
                    if late is not None:
                        del self._outstanding[message]
                        self._mail.late(late)
        self._outstanding |= {message: sizes[message] for message in waiting}
        gone = ClientFailure(f"no reply within {self._settings.deadline:g} s", reached=True)
        return replies | dict.fromkeys(waiting.values(), gone)


def _longest(arm: ReadyArm) -> int:
    """Bytes that no reply of an arm reaches: numbers of 8 bytes, and room for what is not numbers."""
    kinds = arm.method.uplinks
    if not kinds:
        return 0
    if arm.secure_sums is not None:
        return round_bytes(arm.addends, len(arm.task.clients))[0] + 65_536
    plain = MessageCoder(*codecs.pair("fp32"), arm.seed)
    sizes = [arm.message_context(client) for client in range(len(arm.task.clients))]
    return 2 * max(plain.length("up", kind, one) for kind in kinds for one in sizes) + 65_536


def _cost(answer: Answer) -> Cost:
    """What a node says that its work took; nothing where it does not say two numbers."""
    said = answer.words.get("cost")
    if isinstance(said, list) and len(said) == 2 and all(type(one) is int and one >= 0 for one in said):
        return Cost(*said)
    return Cost()


def _seconds(answer: Answer) -> float:
    seconds = answer.words.get("seconds")
    return seconds if isinstance(seconds, float) and 0 <= seconds < float("inf") else 0.0

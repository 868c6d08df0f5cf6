"""Which SuperNode is which client: what each node claims, as far as it can be verified."""

import time
from dataclasses import dataclass, replace

from fedistill.federation.client import ClientFailure
from fedistill.flower.log import say
from fedistill.flower.serde import Answer, Order
from fedistill.flower.transport import Transport, bounded, brief

_HELLO_SECONDS = 60.0
"""Time for a node to introduce itself; it builds its share of the data first."""


class NodeRegistry:
    """The connected nodes and the clients that they are.

    Attributes:
        nodes: the node of each connected client.
        own_data: whether some clients have samples of their own, unknown to the experiment.
    """

    def __init__(self, mail: Transport, session: str, clients: int, fingerprint: str) -> None:
        self._mail, self._session, self._clients, self._fingerprint = mail, session, clients, fingerprint
        self.nodes: dict[int, int] = {}
        self.own_data = False
        self._first: dict[int, int] = {}
        self._hellos: dict[int, _Hello] = {}

    def greet(self) -> None:
        """Ask new nodes which client they are, and collect answers, without waiting.

        Nodes that did not answer, or not validly, are asked again after a while or when they reconnect.
        """
        there, now = self._mail.nodes(), time.monotonic()
        self.nodes = {client: node for client, node in self.nodes.items() if node in there}
        self._hellos = {node: hello for node, hello in self._hellos.items() if node in there}
        waiting = {node for node, hello in self._hellos.items() if now < hello.asked + _HELLO_SECONDS}
        new = there - set(self.nodes.values()) - waiting
        hello = Order(self._session, frame=self._fingerprint.encode())
        for message, node in self._mail.push(dict.fromkeys(new, hello), "query").items():
            met = self._hellos.get(node)
            self._hellos[node] = _Hello(message, now, met.met if met else now, met.refused if met else "")
        with bounded(0):
            came = {node: self._mail.pull(one.message) for node, one in self._hellos.items() if one.message}
        for node, answer in came.items():
            if answer is not None:
                self._meet(node, answer)

    def _meet(self, node: int, answer: Answer | ClientFailure) -> None:
        """Accept a node as the client that it claims to be, or log why not."""
        why = self._stranger(node, answer)
        if why:
            self._hellos[node] = replace(self._hellos[node], message="", refused=why)
            say(f"node {node} is refused: {why}")
        elif isinstance(answer, Answer):
            client = answer.words["client"]
            del self._hellos[node]
            self.nodes[client] = self._first[client] = node
            self.own_data |= answer.words.get("own-data") is not False

    def _stranger(self, node: int, answer: Answer | ClientFailure) -> str:
        """Return why a node is not accepted as a client, or an empty string if it is."""
        if isinstance(answer, ClientFailure):
            return answer.reason
        client = answer.words.get("client")
        if type(client) is not int or not 0 <= client < self._clients:
            return f"it claims to be client {brief(repr(client))} of {self._clients}"
        if answer.words.get("fingerprint") != self._fingerprint:
            return f"the data of client {client} differ from the server's"
        if self._first.get(client, node) != node:
            return (
                f"client {client} is node {self._first[client]} in this run; a site with a new key is"
                " accepted once the run is started again"
            )
        return ""

    def strangers(self) -> str:
        """Return, for messages, which connected nodes are not accepted as clients, and why."""
        silent = (
            "it has not introduced itself; see its log, or raise flower.wait if it is still building its data"
        )
        found = ((node, hello.refused or silent) for node, hello in self._hellos.items())
        return "; ".join(f"node {node}: {why}" for node, why in sorted(found))

    def listening(self) -> bool:
        """Whether a node that connected recently may still introduce itself."""
        now = time.monotonic()
        return any(hello.message and now < hello.met + _HELLO_SECONDS for hello in self._hellos.values())


@dataclass(frozen=True)
class _Hello:
    """The introduction of a node that is not accepted yet.

    Attributes:
        message: id of the pending question, empty if the node has answered and was refused.
        asked, met: times of the latest question and of the first.
        refused: why it was last refused, empty if it was not.
    """

    message: str
    asked: float
    met: float
    refused: str

"""Which SuperNode is which client, by its own word and as far as that can be held against it."""

import time
from dataclasses import dataclass, replace

from fedistill.federation.failures import ClientFailure
from fedistill.flower.log import say
from fedistill.flower.serde import Answer, Order
from fedistill.flower.transport import Transport, bounded, brief

_HELLO_SECONDS = 60.0
"""For a node to say who it is; it builds its share of the data before it does."""


class NodeRegistry:
    """Who is there.

    Attributes:
        nodes: the node of each client that is there.
        own_data: some have samples of their own, of which the experiment does not know.
    """

    def __init__(self, mail: Transport, session: str, clients: int, fingerprint: str) -> None:
        self._mail, self._session, self._clients, self._fingerprint = mail, session, clients, fingerprint
        self.nodes: dict[int, int] = {}
        self.own_data = False
        self._first: dict[int, int] = {}
        self._hellos: dict[int, _Hello] = {}

    def greet(self) -> None:
        """Ask nodes that are new which client they are, and hear what they say; waits for nobody.

        Who has not answered, or not well, is asked again after a while, or when it comes back.
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
        """Let a node in as the client that it says it is, or say why not."""
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
        """Why a node is none of the clients, or empty if it is one."""
        if isinstance(answer, ClientFailure):
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

    def strangers(self) -> str:
        silent = (
            "it has not said who it is; its log says why, or raise flower.wait if it builds its data still"
        )
        found = ((node, hello.refused or silent) for node, hello in self._hellos.items())
        return "; ".join(f"node {node}: {why}" for node, why in sorted(found))

    def listening(self) -> bool:
        """Whether a node that has come lately may still say who it is."""
        now = time.monotonic()
        return any(hello.message and now < hello.met + _HELLO_SECONDS for hello in self._hellos.values())


@dataclass(frozen=True)
class _Hello:
    """What a node is asked first.

    Attributes:
        message: the one that its answer is to, or empty if it has answered and was refused.
        asked, met: when it was asked last, and first.
        refused: why it was refused last, or empty if it never was.
    """

    message: str
    asked: float
    met: float
    refused: str

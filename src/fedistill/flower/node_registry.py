"""Which SuperNode is which clients, by its own word and as far as that can be held against it."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fedistill.config.section import Raw
from fedistill.federation.failures import ClientFailure
from fedistill.flower.log import say
from fedistill.flower.serde import Order, Reply
from fedistill.flower.transport import Transport, bounded, brief

_HELLO_SECONDS = 60.0
"""For a node to say who it is; it builds its share of the data before it does."""


class NodeRegistry:
    """Who is there.

    Attributes:
        nodes: the node of each client that is there.
        own_data: some have samples of their own, of which the experiment does not know.
    """

    def __init__(self, mail: Transport, session: str, clients: int, most: int, fingerprint: str) -> None:
        """
        Args:
            clients: how many there are.
            most: how many of them one node may be.
            fingerprint: of the server's task.
        """
        self._mail, self._session, self._fingerprint = mail, session, fingerprint
        self._clients, self._most = clients, most
        self.nodes: dict[int, int] = {}
        self.own_data = False
        self._first: dict[int, int] = {}
        self._hellos: dict[int, _Hello] = {}

    def greet(self) -> None:
        """Ask nodes that are new which clients they are, and hear what they say; waits for nobody.

        Who has not answered, or not well, is asked again after a while, or when it comes back.
        """
        there, now = self._mail.nodes(), time.monotonic()
        self.nodes = {client: node for client, node in self.nodes.items() if node in there}
        self._hellos = {node: hello for node, hello in self._hellos.items() if node in there}
        waiting = {node for node, hello in self._hellos.items() if now < hello.asked + _HELLO_SECONDS}
        new = there - set(self.nodes.values()) - waiting
        hello = Order(self._session, fingerprint=self._fingerprint)
        for message, node in self._mail.push(dict.fromkeys(new, hello), "query", self._most).items():
            met = self._hellos.get(node)
            self._hellos[node] = _Hello(message, now, met.met if met else now, met.refused if met else "")
        with bounded(0):
            came = {node: self._mail.pull(one.message) for node, one in self._hellos.items() if one.message}
        for node, reply in came.items():
            if reply is not None:
                self._meet(node, reply)

    def _meet(self, node: int, reply: Reply | ClientFailure) -> None:
        """Let a node in as the clients that it says it is, or say why not."""
        why = self._stranger(node, reply)
        if why:
            self._hellos[node] = replace(self._hellos[node], message="", refused=why)
            say(f"node {node} is refused: {why}")
        elif isinstance(reply, Reply):
            del self._hellos[node]
            for client in reply.words["clients"]:
                self.nodes[client] = self._first[client] = node
            self.own_data |= reply.words.get("own-data") is not False

    def _stranger(self, node: int, reply: Reply | ClientFailure) -> str:
        """Why a node is none of the clients, or empty if it is one or more."""
        if isinstance(reply, ClientFailure):
            return reply.reason
        clients = reply.words.get("clients")
        numbers: list[Raw] = clients if isinstance(clients, list) and clients else [None]
        for client in numbers:
            if type(client) is not int or not 0 <= client < self._clients:
                return f"it says that it is client {brief(repr(client))} of {self._clients}"
        held = {client for client, first in self._first.items() if first == node}
        if len(held | set(numbers)) > self._most:
            before = f" after {_listed(held)}" if held else ""
            return (
                f"it says that it is client {_listed(numbers)}{before}, but one node may be {self._most} of"
                " them in a run (flower.clients_per_node)"
            )
        if reply.words.get("fingerprint") != self._fingerprint:
            return f"client {numbers[0]} has built other data than the server"
        for client in numbers:
            if self._first.get(client, node) != node:
                return (
                    f"client {client} is node {self._first[client]} in this run; a site with a new key gets"
                    " in when the run is started again"
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


def _listed(clients: Iterable[int]) -> str:
    return brief(", ".join(map(str, sorted(clients))))


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

"""Flower in memory: the server's and the nodes' parts, with messages handed from one to the other."""

import threading
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fedistill.config.schema import Experiment
from fedistill.config.task import DEFAULT_CLIENTS
from fedistill.config.toml import to_toml

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Flower uses what its libraries will drop
    from flwr.app import Message, RecordDict

    from fedistill.flower import client_app, server_app
    from fedistill.flower.serde import Answer, Order, Reply, open_order, open_reply, seal_reply

HANDLERS = {"query": client_app.hello, "train": client_app.work, "evaluate": client_app.evaluate}


class Desk:
    """A Flower grid whose nodes answer when they are asked for their replies.

    Attributes:
        nodes: the node config of each.
        silent: those whose replies never come. ``change``: what becomes of a reply on its way.
        taken: every order, with its node.
    """

    def __init__(self, asked: Experiment, place: Path, configs: Iterable[dict[str, Any]] = ()) -> None:
        given = list(configs) or [
            {"partition-id": number} for number in range(asked.task.clients or DEFAULT_CLIENTS)
        ]
        self.nodes = {
            10 + at: {"state": str(place / f"node-{at}"), **config} for at, config in enumerate(given)
        }
        self.run = {"experiment": to_toml(asked)}
        self.silent: set[int] = set()
        self.change: Callable[[int, Order, Message], Message] = lambda node, order, reply: reply
        self.taken: list[tuple[int, str, Order]] = []
        self._sent: dict[str, Message] = {}
        self._one = threading.Lock()  # a process has one node's module of each model at a time

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        names = []
        for message in messages:
            names.append(f"message {len(self.taken)}")
            self._sent[names[-1]] = message
            node, kind = message.metadata.dst_node_id, message.metadata.message_type
            self.taken.append((node, kind, open_order(message)))
        return names

    def pull_messages(self, names: Iterable[str]) -> list[Message]:
        (name,) = names
        message = self._sent[name]
        node = message.metadata.dst_node_id
        if node in self.silent:
            return []
        context: Any = SimpleNamespace(run_config=self.run, node_config=self.nodes[node])
        with self._one:
            reply = HANDLERS[message.metadata.message_type](message, context)
        return [self.change(node, open_order(message), reply)]


def with_answers(reply: Message, change: Callable[[int, Answer], Answer]) -> Message:
    """A node's reply with other answers of its clients, whose numbers ``change`` is given."""
    said = opened(reply)
    answers = {client: change(client, answer) for client, answer in said.answers.items()}
    to_server = Message(RecordDict(), dst_node_id=1, message_type="train")
    return seal_reply(Reply(answers, said.words), to_server)


def opened(reply: Message) -> Reply:
    """A reply for clients of any number."""
    return open_reply(reply, range(1_000), longest=100_000)


def frame_of(order: Order) -> bytes:
    """The frame of an order for one client, or nothing where it has none."""
    return b"".join(order.frames.values())


def play(desk: Desk, asked: Experiment, out: Path) -> None:
    grid: Any = desk
    server_app._play(grid, asked, out, "test")

"""The Flower app of a SuperNode: opens an order, has the node's clients do it, and seals what they say."""

import traceback
from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedistill.config.plugins import before_import
from fedistill.errors import FedistillError
from fedistill.federation.executor import prepare_process
from fedistill.flower.allowed_modules import look_up
from fedistill.flower.node import Node, OwnDataError
from fedistill.flower.node_client import NodeClient
from fedistill.flower.parent_watch import end_with_parent
from fedistill.flower.serde import Answer, Order, Reply, open_order, seal_reply
from fedistill.training.devices import computing

app = ClientApp()
_LONGEST_ERROR = 2_000


@app.query()
def hello(message: Message, context: Context) -> Message:
    return _replied(message, context, _about)


@app.train()
def work(message: Message, context: Context) -> Message:
    def one(client: NodeClient, round: int, frame: bytes) -> Answer:
        return client.work(round, frame)

    return _replied(message, context, lambda node, order: _of_each(node, order, one))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    def one(client: NodeClient, round: int, frame: bytes) -> Answer:
        return client.evaluate(frame)

    return _replied(message, context, lambda node, order: _of_each(node, order, one))


def _about(node: Node, order: Order) -> Reply:
    """Say which clients a node is, whether their data are its own, and the task as it has built it."""
    fingerprint = node.fingerprint(order.fingerprint)
    return Reply(words={"clients": node.clients, "own-data": node.has_own_data, "fingerprint": fingerprint})


def _of_each(node: Node, order: Order, what: Callable[[NodeClient, int, bytes], Answer]) -> Reply:
    """Have each client that is asked do its part; one that fails does so alone."""
    arm, answers = node.arm(order.arm), {}
    for client, frame in order.frames.items():
        try:
            answers[client] = what(node.client(client, arm), order.round, frame)
        except Exception as error:  # whatever it is, the other clients of the node go on
            answers[client] = Answer(words={"error": _said(error)})
    return Reply(answers)


def _replied(message: Message, context: Context, what: Callable[[Node, Order], Reply]) -> Message:
    """Reply with an error in words where anything goes wrong, so that the server can name it."""
    end_with_parent()
    prepare_process()
    try:
        order = open_order(message)
        node = Node(context.run_config, context.node_config, order.session)
        with before_import(node.allowed.check):
            look_up(node.experiment)
            with computing(node.runtime):
                reply = what(node, order)
    except Exception as error:  # whatever it is, the server hears of it at once
        reply = Reply(words={"error": _said(error)})
    return seal_reply(reply, message)


def _said(error: Exception) -> str:
    """What the server hears of an error at once, cut off; whatever else there is stays in the site's log."""
    if isinstance(error, OwnDataError):
        print(error, flush=True)
        return "its own data cannot be used; its log says why"
    if isinstance(error, FedistillError):
        return str(error)[:_LONGEST_ERROR]
    traceback.print_exception(error)
    return f"{type(error).__name__}; its log says where"

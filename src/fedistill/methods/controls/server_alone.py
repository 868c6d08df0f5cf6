"""Control: the server trains alone on the public set, with the labels that no other method sees."""

from collections.abc import Iterable

from fedistill.communication.messages.base import Message
from fedistill.methods.base import Client, Method, Reply, Server
from fedistill.state import State
from fedistill.training.loop import fit
from fedistill.training.losses import label_loss
from fedistill.training.model_state import flatten
from fedistill.training.optimizers import make_optimizer


class ServerAlone(Method[Message, Message]):
    """The server's model is trained on the held-out public set with its true labels.

    Exchanged: nothing. Bytes: 0. It answers: would somebody who labelled the public set need the
    clients at all? It makes sense only where the public set was held out from labelled data.
    """

    name = "server-alone"
    paper = "control"
    exchanges = "nothing"
    byte_formula = "0"
    clients_work = False
    server_needs_public = True
    needs_public_labels = True

    def start_server(self, server: Server) -> State:
        return {"model": server.initial_weights(), "optimizer": {}}

    def start_client(self, client: Client) -> State:
        return {}

    def send(self, state: State, server: Server, client: int) -> None:
        return None

    def client_step(self, state: State, client: Client, received: Message | None) -> tuple[State, None]:
        return state, None

    def server_step(self, state: State, server: Server, replies: Iterable[Reply[Message]]) -> State:
        assert server.public is not None
        assert server.public_labels is not None
        model = server.load(state["model"])
        optimizer = make_optimizer(server.train.optimizer, model)
        optimizer.restore(state["optimizer"])
        fit(
            model,
            optimizer,
            server.public,
            label_loss(server.train, server.public_labels, server.signature.classes),
            epochs=server.train.epochs,
            steps=server.train.steps,
            batch_size=server.train.batch_size,
            generator=server.stream("public-training"),
        )
        return {"model": flatten(model), "optimizer": optimizer.state()}

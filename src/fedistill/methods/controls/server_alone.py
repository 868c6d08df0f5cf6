"""Control: the server trains alone on the public set, with its labels, which no other method sees."""

from collections.abc import Iterable

from fedistill.communication.messages.base import Message
from fedistill.methods.base import Method, Needs, NoState, Reply
from fedistill.methods.participants import Client, Server
from fedistill.methods.shared.own_model import Learner, train_on_labels
from fedistill.training.losses import label_loss


class ServerAlone(Method[Message, Message, Learner, NoState]):
    """The server's model is trained on the held-out public set with its true labels.

    Exchanged: nothing. Bytes: 0. It shows whether clients would be needed at all if the public set were
    labelled. This control requires a public set that was held out from labelled data.
    """

    name = "server-alone"
    paper = "control"
    exchanges = "nothing"
    byte_formula = "0"
    beyond_model = None
    needs = Needs(public=("server",), public_labels=True)
    ServerState = Learner

    def start_server(self, server: Server) -> Learner:
        return Learner(server.initial_model())

    def start_client(self, client: Client) -> NoState:
        return NoState()

    def send(self, state: Learner, server: Server, client: int) -> None:
        return None

    def client_step(self, state: NoState, client: Client, received: Message | None) -> tuple[NoState, None]:
        return state, None

    def server_step(self, state: Learner, server: Server, replies: Iterable[Reply[Message]]) -> Learner:
        assert server.public_labels is not None
        model, optimizer = state.restore(server)
        loss = label_loss(server.train, server.public_labels, server.classes)
        with server.computing():
            train_on_labels(model, optimizer, server, server.public_inputs(), loss, loss, "public-training")
        return state.after(model, optimizer)

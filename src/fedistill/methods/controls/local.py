"""Control: every client trains alone, and nothing is exchanged."""

from collections.abc import Iterable

from fedistill.communication.messages.base import Message
from fedistill.methods.base import Method, NoState, Reply
from fedistill.methods.participants import Client, Server
from fedistill.methods.shared.own_model import Learner, train_private
from fedistill.methods.shared.private_loss import private_loss


class Local(Method[Message, Message, NoState, Learner]):
    """Each client keeps its own model and optimizer and sees only its private data.

    Exchanged: nothing. Bytes: 0. The gap between a method and this control shows what its exchange is worth.
    """

    name = "local"
    paper = "control"
    exchanges = "nothing"
    byte_formula = "0"
    beyond_model = None
    ClientState = Learner

    def start_server(self, server: Server) -> NoState:
        return NoState()

    def start_client(self, client: Client) -> Learner:
        return Learner(client.initial_model())

    def send(self, state: NoState, server: Server, client: int) -> None:
        return None

    def client_step(self, state: Learner, client: Client, received: Message | None) -> tuple[Learner, None]:
        model, optimizer = state.restore(client)
        train_private(model, optimizer, client, private_loss(client, model))
        return state.after(model, optimizer), None

    def server_step(self, state: NoState, server: Server, replies: Iterable[Reply[Message]]) -> NoState:
        return state

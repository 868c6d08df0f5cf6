"""Control: every client trains alone and nothing is exchanged."""

from collections.abc import Iterable

from fedistill.communication.messages.base import Message
from fedistill.methods.base import Client, Method, Reply, Server
from fedistill.methods.shared.own_model import initial_state, restore, state_of, train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.state import State


class Local(Method[Message, Message]):
    """Each client keeps its own model and optimiser and sees its private data alone.

    Exchanged: nothing. Bytes: 0. What any exchange is worth shows in the distance to this control.
    """

    name = "local"
    paper = "control"
    exchanges = "nothing"
    byte_formula = "0"
    has_server_model = False
    has_client_models = True

    def start_server(self, server: Server) -> State:
        return {}

    def start_client(self, client: Client) -> State:
        return initial_state(client)

    def send(self, state: State, server: Server, client: int) -> None:
        return None

    def client_step(self, state: State, client: Client, received: Message | None) -> tuple[State, None]:
        model, optimizer = restore(state, client)
        train_private(model, optimizer, client, private_loss(client, model))
        return state_of(model, optimizer), None

    def server_step(self, state: State, server: Server, replies: Iterable[Reply[Message]]) -> State:
        return state

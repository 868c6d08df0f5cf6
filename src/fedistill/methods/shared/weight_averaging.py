"""Shared by methods whose messages are weights."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from fedistill.aggregation.functional import weighted_mean
from fedistill.communication.messages.weights import TrainedWeights, Weights
from fedistill.errors import TrainingError
from fedistill.methods.base import Method, Needs, NoState, Reply
from fedistill.methods.participants import Client, ClientInfo, Server
from fedistill.methods.shared.own_model import ServerModel, train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.training.loop import predict
from fedistill.training.model_state import ModelState, flatten
from fedistill.training.optimizers import make_optimizer

Penalty = Callable[[nn.Module], Tensor]


def train_received(client: Client, received: Weights, penalty: Penalty | None = None) -> TrainedWeights:
    """Train the received weights on private data with a fresh optimizer and a penalty added to the loss."""
    model = client.load(received.values)
    private = private_loss(client, model)

    def loss(logits: Tensor, at: Tensor) -> Tensor:
        value = private(logits, at)
        return value if penalty is None else value + penalty(model)

    train_private(model, make_optimizer(client.train.optimizer, model), client, loss)
    return TrainedWeights(flatten(model), samples=len(client.data))


class WeightAveraging(Method[TrainedWeights, Weights, ServerModel, NoState]):
    """One model for all: clients train it, and the server averages the weights by number of samples."""

    exchanges = "all weights"
    byte_formula = "up = down = b|θ|/8"
    uplink = TrainedWeights
    downlink = Weights
    ServerState = ServerModel
    needs = Needs(models="one architecture", sums_alone=True)

    @abstractmethod
    def penalty(self, received: Weights) -> Penalty | None:
        """Return the penalty on the local loss, or None for no penalty."""

    def start_server(self, server: Server) -> ServerModel:
        return ServerModel(server.initial_model())

    def start_client(self, client: Client) -> NoState:
        return NoState()

    def send(self, state: ServerModel, server: Server, client: int) -> Weights:
        return Weights(state.model.weights)

    def client_step(
        self, state: NoState, client: Client, received: Weights | None
    ) -> tuple[NoState, TrainedWeights]:
        assert received is not None
        return state, train_received(client, received, self.penalty(received))

    def server_step(
        self, state: ServerModel, server: Server, replies: Iterable[Reply[TrainedWeights]]
    ) -> ServerModel:
        mean = weighted_mean((reply.message.values, reply.message.samples) for reply in replies)
        return state if mean is None else ServerModel(replace(state.model, weights=mean))


@dataclass(frozen=True)
class SmallModelsServer:
    """The server's own model, and the weights (P,) of each travelling architecture, by name."""

    model: ModelState
    travelling: dict[str, Tensor]


class SmallModels(Method[TrainedWeights, Weights, SmallModelsServer, NoState]):
    """Clients' models of any architecture travel; the server keeps one of each, and its own model."""

    exchanges = "weights of the client's model"
    byte_formula = "up = down = b|θ_client|/8"
    uplink = TrainedWeights
    downlink = Weights
    ServerState = SmallModelsServer
    needs = Needs(public=("server",))

    def broadcast_group(self, state: SmallModelsServer, info: ClientInfo) -> str:
        return info.model

    def start_client(self, client: Client) -> NoState:
        return NoState()

    def send(self, state: SmallModelsServer, server: Server, client: int) -> Weights:
        return Weights(state.travelling[server.clients[client].model])

    def client_step(
        self, state: NoState, client: Client, received: Weights | None
    ) -> tuple[NoState, TrainedWeights]:
        assert received is not None
        return state, train_received(client, received)


def public_logits(server: Server, replies: Iterable[Reply[TrainedWeights]]) -> list[Tensor]:
    """Return the logits (n, C) of each client's model on the public samples.

    Raises:
        TrainingError: they are not finite; names the client.
    """
    found = []
    for reply in replies:
        name = server.clients[reply.client].model
        model = server.load(reply.message.values, name)
        try:
            found.append(predict(model, server.public_inputs(name)))
        except TrainingError as error:
            raise TrainingError(f"on the weights of client {reply.client}, {error.what}") from error
    return found


def initial_by_model(server: Server) -> dict[str, Tensor]:
    """Return initial weights (P,) of each architecture among the clients, by name."""
    return {name: server.initial_weights(name) for name in sorted({info.model for info in server.clients})}


def means_by_model(held: dict[str, Tensor], came: Sequence[tuple[str, TrainedWeights]]) -> dict[str, Tensor]:
    """Return the sample-weighted mean of received weights per architecture, or the held ones if none came."""
    means = {
        name: weighted_mean((sent.values, sent.samples) for model, sent in came if model == name)
        for name in held
    }
    return {name: held[name] if mean is None else mean for name, mean in means.items()}

"""Shared by methods whose messages are weights."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fedistill.aggregation.functional import weighted_mean
from fedistill.aggregation.weights import Averaging, merge_weights
from fedistill.communication.messages.base import Message
from fedistill.communication.messages.scored import ScoredWeights
from fedistill.communication.messages.weights import CarriesWeights, TrainedWeights, Weights
from fedistill.communication.secure_aggregation.fixed_point import Addend
from fedistill.communication.secure_aggregation.total import SecureTotal
from fedistill.config.schema import Section
from fedistill.config.secure_sums import SecureSums
from fedistill.errors import TrainingError
from fedistill.methods.base import Method, Needs, NoState, Reply
from fedistill.methods.participants import Client, ClientInfo, FederationInfo, Server
from fedistill.methods.secure_sums import AddsUp
from fedistill.methods.shared.own_model import ServerModel, train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.training.loop import predict
from fedistill.training.model_state import ModelState
from fedistill.training.optimizers import make_optimizer

MOST_WEIGHT = 4.0
"""With secure sums, the largest size of a weight unless `secure_sums.range` says another."""
Penalty = Callable[[nn.Module], Tensor]
Trained = TypeVar("Trained", TrainedWeights, ScoredWeights)


def train_received(client: Client, received: Weights, penalty: Penalty | None = None) -> TrainedWeights:
    """Train the received weights on private data with a fresh optimizer and a penalty added to the loss."""
    model = client.load(ModelState.received(received))
    private = private_loss(client, model)

    def penalized(logits: Tensor, at: Tensor) -> Tensor:
        assert penalty is not None
        value = private(logits, at)
        return value + penalty(model).to(value.device)

    loss = private if penalty is None else penalized
    train_private(model, make_optimizer(client.train.optimizer, model), client, loss)
    return trained_weights(model, client)


def trained_weights(model: nn.Module, client: Client) -> TrainedWeights:
    """Return the message with a model that was trained on the client's private data."""
    state = ModelState.of(model)
    return TrainedWeights(state.weights, len(client.data), state.integers)


def weights_message(state: ModelState) -> Weights:
    """Return the message with a model's state."""
    return Weights(state.weights, state.integers)


def mean_model(came: Iterable[tuple[CarriesWeights, float]]) -> ModelState | None:
    """Return the mean of models by weight, with the largest of each of their integers; None if none came."""
    largest: Tensor | None = None

    def weights() -> Iterable[tuple[Tensor, float]]:
        nonlocal largest
        for message, weight in came:
            largest = message.integers if largest is None else torch.maximum(largest, message.integers)
            yield message.values, weight

    mean = weighted_mean(weights())
    return None if mean is None or largest is None else ModelState(mean, largest)


class AveragingSettings(Section):
    averaging: Averaging = Field(
        default="mean",
        description="how the server averages weights: all but the mean bound what liars can do",
    )
    liars: float = Field(
        default=0.2,
        ge=0,
        lt=0.5,
        description="share of clients that may lie: trimmed-mean leaves it out at each end, multi-krum once",
    )


def merged_model(
    server: Server,
    came: Iterable[tuple[int, CarriesWeights, float]],
    before: ModelState,
    settings: AveragingSettings,
) -> ModelState | None:
    """Return the average of models, with the largest of each of their integers; None if none came.

    Args:
        came: the number of each client, its model, and how much it counts.
        before: what the clients were sent.
    """
    clients: list[int] = []
    largest: Tensor | None = None

    def weights() -> Iterable[tuple[Tensor, float]]:
        nonlocal largest
        for client, message, weight in came:
            clients.append(client)
            largest = message.integers if largest is None else torch.maximum(largest, message.integers)
            yield message.values, weight

    found = merge_weights(weights(), before.weights, settings.averaging, settings.liars)
    if found is None or largest is None:
        return None
    if found.reliability is not None:
        server.note_reliability(dict(zip(clients, found.reliability, strict=True)))
    return ModelState(found.weights, largest)


class WeightAveraging(Method[TrainedWeights, Weights, ServerModel, NoState], AddsUp):
    """One model for all: clients train it, and the server averages the weights by number of samples."""

    exchanges = "all weights"
    byte_formula = "up = down = b|θ|/8"
    uplink = TrainedWeights
    downlink = Weights
    ServerState = ServerModel
    needs = Needs(models="one architecture")
    Settings: ClassVar[type[AveragingSettings]] = AveragingSettings
    settings: AveragingSettings

    @abstractmethod
    def penalty(self, received: Weights) -> Penalty | None:
        """Return the penalty on the local loss, or None for no penalty."""

    def start_server(self, server: Server) -> ServerModel:
        return ServerModel(server.initial_model())

    def start_client(self, client: Client) -> NoState:
        return NoState()

    def send(self, state: ServerModel, server: Server, client: int) -> Weights:
        return weights_message(state.model)

    def client_step(
        self, state: NoState, client: Client, received: Weights | None
    ) -> tuple[NoState, TrainedWeights]:
        assert received is not None
        return state, train_received(client, received, self.penalty(received))

    def server_step(
        self, state: ServerModel, server: Server, replies: Iterable[Reply[TrainedWeights]]
    ) -> ServerModel:
        came = ((reply.client, reply.message, reply.message.samples) for reply in replies)
        merged = merged_model(server, came, state.model, self.settings)
        return state if merged is None else ServerModel(merged)

    def without_sums(self, federation: FederationInfo) -> Iterator[str]:
        if self.settings.averaging != "mean":
            yield f"averaging {self.settings.averaging}, which looks at each client's weights (leave it out)"
        layout = federation.layouts[federation.server_model]
        if layout.integers.values or layout.buffers:
            model = federation.server_model
            yield f"the buffers of model {model}, as of batch norm (take one with nn.GroupNorm)"

    def addends(self, federation: FederationInfo, settings: SecureSums) -> dict[str, Addend]:
        size = federation.layouts[federation.server_model].size
        return {"weights": Addend.symmetric((size,), settings.range or MOST_WEIGHT, settings.bits)}

    def to_add(self, client: Client, message: Message, settings: SecureSums) -> dict[str, Tensor]:
        """Return weights times the client's samples, as a share of the most that a client has."""
        assert isinstance(message, TrainedWeights)
        return {"weights": message.values.double() * (message.samples / max(client.federation.samples))}

    def server_step_of_sum(self, state: ServerModel, server: Server, total: SecureTotal) -> ServerModel:
        samples = server.federation.samples
        counted = sum(samples[client] for client in total.clients) / max(samples)
        return ServerModel(ModelState((total.sums["weights"] / counted).float(), state.model.integers))


@dataclass(frozen=True)
class SmallModelsServer:
    """The server's own model, and a model of each travelling architecture, by name."""

    model: ModelState
    travelling: dict[str, ModelState]


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

    def travelling_models(self, state: SmallModelsServer) -> dict[str, ModelState]:
        return state.travelling

    def send(self, state: SmallModelsServer, server: Server, client: int) -> Weights:
        return weights_message(state.travelling[server.clients[client].model])

    def client_step(
        self, state: NoState, client: Client, received: Weights | None
    ) -> tuple[NoState, TrainedWeights]:
        assert received is not None
        return state, train_received(client, received)


def public_logits(server: Server, replies: Iterable[Reply[Trained]]) -> list[Tensor]:
    """Return the logits (n, C) of each client's model on the public samples.

    Raises:
        TrainingError: they are not finite; names the client.
    """
    found = []
    for reply in replies:
        name = server.clients[reply.client].model
        model = server.load(ModelState.received(reply.message), name)
        try:
            found.append(predict(model, server.public_inputs(name)))
        except TrainingError as error:
            raise TrainingError(f"on the weights of client {reply.client}, {error.what}") from error
    return found


def initial_by_model(server: Server) -> dict[str, ModelState]:
    """Return an initial model of each architecture among the clients, by name."""
    return {name: server.initial_model(name) for name in sorted({info.model for info in server.clients})}


def means_by_model(held: dict[str, ModelState], came: Sequence[tuple[str, Trained]]) -> dict[str, ModelState]:
    """Return the sample-weighted mean of received models per architecture, or the held one if none came."""
    means = {name: mean_model((sent, sent.samples) for model, sent in came if model == name) for name in held}
    return {name: held[name] if mean is None else mean for name, mean in means.items()}

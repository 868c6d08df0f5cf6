"""Shared by methods whose clients train their own model together with one that travels."""

from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fedistill.communication.messages.weights import TrainedWeights, Weights
from fedistill.errors import Refusal
from fedistill.methods.base import Method, Reply
from fedistill.methods.participants import Client, FederationInfo, Server
from fedistill.methods.shared.own_model import Learner, ServerModel, train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.methods.shared.weight_averaging import (
    AveragingSettings,
    merged_model,
    trained_weights,
    weights_message,
)
from fedistill.models import registry as models
from fedistill.models.signature import Signature
from fedistill.training.losses import label_loss
from fedistill.training.model_state import ModelState
from fedistill.training.optimizers import make_optimizer


class Pair(nn.Module):
    """Two models on the same inputs; returns their stacked logits (2, b, C)."""

    def __init__(self, own: nn.Module, travelling: nn.Module) -> None:
        super().__init__()
        self.own, self.travelling = own, travelling

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([self.own(inputs), self.travelling(inputs)])


class MutualLearning(Method[TrainedWeights, Weights, ServerModel, Learner]):
    """Clients train their own model and the server's on the same batches; the server averages the latter.

    A client keeps its own model and its optimizer state between rounds; the optimizer of the travelling
    model is fresh in each round, as in FedAvg.
    """

    exchanges = "weights of the server's model"
    beyond_model = (
        "weights that have learned from a model which never leaves them, and is trained along"
        " without noise of its own"
    )
    byte_formula = "up = down = b|θ_server|/8"
    uplink = TrainedWeights
    downlink = Weights
    ServerState = ServerModel
    ClientState = Learner
    travels = "server"
    settings: AveragingSettings

    @abstractmethod
    def loss(self, own: Tensor, travelling: Tensor, own_task: Tensor, travelling_task: Tensor) -> Tensor:
        """Return the joint loss of both models, from the logits (b, C) and the label loss of each."""

    def check(self, federation: FederationInfo) -> None:
        super().check(federation)
        server = _reads(federation, federation.server_model)
        for info in federation.clients:
            if _reads(federation, info.model) != server:
                raise Refusal(
                    f"method {self.name} trains the client's model and the server's on the same batches, but"
                    f" {info.model!r} and {federation.server_model!r} use different tokenizers: give both the"
                    " same `preprocessing`"
                )

    def start_server(self, server: Server) -> ServerModel:
        return ServerModel(server.initial_model())

    def start_client(self, client: Client) -> Learner:
        return Learner(client.initial_model())

    def send(self, state: ServerModel, server: Server, client: int) -> Weights:
        return weights_message(state.model)

    def client_step(
        self, state: Learner, client: Client, received: Weights | None
    ) -> tuple[Learner, TrainedWeights]:
        assert received is not None
        # Both models may have the same name.
        travelling = client.load(ModelState.received(received), client.server_model, slot=1)
        pair = Pair(client.load(state.model), travelling)
        optimizer = make_optimizer(client.train.optimizer, pair)
        optimizer.restore(state.optimizer)
        own_task, travelling_task = (private_loss(client, model) for model in (pair.own, travelling))

        def loss(logits: Tensor, at: Tensor) -> Tensor:
            own, other = logits
            return self.loss(own, other, own_task(own, at), travelling_task(other, at))

        plain = label_loss(client.train, client.data.labels, client.classes)
        train_private(
            pair,
            optimizer,
            client,
            loss,
            label_losses=lambda logits, at: plain(logits[0], at) + plain(logits[1], at),
        )
        owned = len(list(pair.own.parameters()))
        buffers = {place: entry for place, entry in optimizer.state().items() if int(place) < owned}
        kept = Learner(ModelState.of(pair.own), buffers)
        return kept, trained_weights(travelling, client)

    def server_step(
        self, state: ServerModel, server: Server, replies: Iterable[Reply[TrainedWeights]]
    ) -> ServerModel:
        came = ((reply.client, reply.message, reply.message.samples) for reply in replies)
        merged = merged_model(server, came, state.model, self.settings)
        return state if merged is None else ServerModel(merged)


def _reads(federation: FederationInfo, model: str) -> tuple[Signature, str | None]:
    """Signature and tokenizer of a model: different tokenizers of the same size have equal signatures."""
    return federation.signatures[model], models.preprocessing(model).tokenizer

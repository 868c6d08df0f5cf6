"""FedGKT: clients send features of every private sample; the server trains a large net on them."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedistill.communication.messages.base import MessageContext
from fedistill.communication.messages.private_samples import PrivateLogits, PrivateOutputs
from fedistill.config.schema import Positive
from fedistill.errors import TrainingError
from fedistill.methods.base import Method, Needs, Reply
from fedistill.methods.participants import Client, ClientInfo, FederationInfo, Server
from fedistill.methods.shared.own_model import Learner, train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.models.features import Split
from fedistill.models.residual import OnModel, ResidualMlp, ResidualSettings, WithFeatures, learn
from fedistill.rng import scoped
from fedistill.state import State
from fedistill.training.loop import predict
from fedistill.training.losses import kl
from fedistill.training.model_state import ModelState
from fedistill.training.optimizers import make_optimizer


class FedGktSettings(ResidualSettings):
    weight: float = Field(default=1.0, ge=0, description="of the distance to the other side's logits")
    temperature: Positive = Field(default=3.0, description="of both softmaxes of that distance")


@dataclass(frozen=True)
class FedGktServer:
    """The net and its optimizer; of each client the classes of its samples, and the logits last sent."""

    model: ModelState
    optimizer: State = field(default_factory=dict)
    labels: dict[int, Tensor] = field(default_factory=dict)
    logits: dict[int, Tensor] = field(default_factory=dict)


class FedGkt(Method[PrivateOutputs, PrivateLogits, FedGktServer, Learner]):
    """Small models at the edge, a large net on their features at the server: what crosses is per sample.

    A client trains on ``CE + weight T^2 KL(softmax(s/T) || softmax(z/T))``, z being its logits and s the
    server's for the same sample, of the round before. Then it sends features and logits of all its private
    samples; the server's net learns from the features by the same loss with the two sides changed about,
    and answers with logits. Exchanged: features (n_k, d) and logits up, and the labels, once; logits down.
    Bytes: ``b n_k (d + C) / 8 + 1`` up, ``b n_k C / 8`` down, b bits a number, and once the entropy of the
    labels: in proportion to private samples, so this is the negative control. Features tell much of a
    sample: the least private of all methods here.

    ``server@global`` is the mean over clients of their features under the server's net; a client that has
    not worked yet counts with its initial model; on a network, where edge models stay at their sites, there
    is no such view. ``client@...`` is the edge model alone.

    Departs: the features are the last ones, a vector, so that texts have them too, and the net is a residual
    MLP in place of a ResNet. Clients of one architecture begin alike. Of an absent client, labels and last
    logits are kept and no features: the net learns from what came. In the published code it goes over
    clients in turn and its logits are those of training; here all samples are mixed, and it answers once it
    has learned. That code also steps its learning rate by the best test accuracy, which is not done here.
    """

    name = "fedgkt"
    paper = "He et al., 2020, arXiv 2007.14513, and its published code"
    exchanges = "features, logits and once labels of every private sample; logits of each"
    byte_formula = "up = bn_k(d+C)/8 + 1 (once + n_k H(y)/8), down = bn_kC/8"
    uplink = PrivateOutputs
    downlink = PrivateLogits
    ServerState = FedGktServer
    ClientState = Learner
    needs = Needs(models="one width", evaluation_at_clients=True)
    Settings = FedGktSettings
    settings: FedGktSettings

    @property
    def has_server_model(self) -> bool:
        return False  # but a net of its own (`server_net`)

    def message_context(self, federation: FederationInfo, client: int) -> MessageContext:
        info = federation.clients[client]
        found = federation.feature_width(info.model)
        return replace(super().message_context(federation, client), width=found, private=info.samples)

    def broadcast_group(self, state: FedGktServer, info: ClientInfo) -> Hashable:
        return info.id

    def start_server(self, server: Server) -> FedGktServer:
        return FedGktServer(ModelState.of(self._net(server.federation)))

    def start_client(self, client: Client) -> Learner:
        # The net could not tell what features mean that begin unlike.
        return Learner(client.common_model())

    def send(self, state: FedGktServer, server: Server, client: int) -> PrivateLogits | None:
        logits = state.logits.get(client)
        return None if logits is None else PrivateLogits(logits)

    def client_step(
        self, state: Learner, client: Client, received: PrivateLogits | None
    ) -> tuple[Learner, PrivateOutputs]:
        model, optimizer = state.restore(client)
        split = Split(model, client.model, client.signature)
        private = private_loss(client, model)

        def loss(logits: Tensor, at: Tensor) -> Tensor:
            value = private(logits, at)
            return value if received is None else value + self._distance(logits, received.scores[at])

        train_private(split, optimizer, client, loss)
        # Whoever has answered has the labels.
        labels = client.data.labels if received is None else client.data.labels[:0]
        outputs = predict(WithFeatures(split), client.inputs())
        features, scores = outputs.split_with_sizes([split.head.in_features, split.head.out_features], dim=1)
        message = PrivateOutputs(features, scores, labels, int(received is None))
        return state.after(model, optimizer), message

    def server_step(
        self, state: FedGktServer, server: Server, replies: Iterable[Reply[PrivateOutputs]]
    ) -> FedGktServer:
        came = {reply.client: reply.message for reply in replies}
        fresh = {client: message.labels for client, message in came.items() if message.labelled}
        labels = {**state.labels, **fresh}
        if lacking := sorted(came.keys() - labels.keys()):
            raise TrainingError(f"client {lacking[0]} sent no labels, and the server has none of it")
        if not came:
            return state
        features = torch.cat([message.features for message in came.values()])
        scores = torch.cat([message.scores for message in came.values()])
        classes = torch.cat([labels[client] for client in came])

        def loss(logits: Tensor, at: Tensor) -> Tensor:
            return cross_entropy(logits, classes[at]) + self._distance(logits, scores[at])

        net = state.model.load_into(self._net(server.federation))
        optimizer = make_optimizer(self.settings.optimizer, net).restore(state.optimizer)
        logits = learn(net, optimizer, features, loss, self.settings, server.stream("server-net"))
        answers = logits.split_with_sizes([len(message.scores) for message in came.values()])
        sent = {**state.logits, **dict(zip(came, answers, strict=True))}
        return FedGktServer(ModelState.of(net), optimizer.state(), labels, sent)

    def server_net(self, federation: FederationInfo) -> tuple[str, nn.Module]:
        return "residual-mlp", self._net(federation)

    def server_eval_models(
        self, state: FedGktServer, server: Server, clients: Callable[[int], Learner]
    ) -> Iterator[tuple[str, nn.Module]]:
        net = state.model.load_into(self._net(server.federation))
        for info in server.clients:
            model = server.load(clients(info.id).model, info.model)
            yield info.model, OnModel(Split(model, info.model, server.signature_of(info.model)), net)

    def _net(self, federation: FederationInfo) -> nn.Module:
        """With its initial weights."""
        length = federation.feature_width(federation.clients[0].model)
        with scoped(federation.seed, "server-net"):
            return ResidualMlp(length, federation.classes, self.settings)

    def _distance(self, logits: Tensor, other: Tensor) -> Tensor:
        heat = self.settings.temperature
        return self.settings.weight * heat**2 * kl(logits / heat, (other / heat).softmax(dim=1))

"""FedGKT: clients send features of all private samples, and the server trains a large net on them."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedistill.communication.messages.base import MessageContext
from fedistill.communication.messages.private_samples import PrivateLogits, PrivateOutputs
from fedistill.config.schema import Positive
from fedistill.errors import FrameError
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
    weight: float = Field(
        default=1.0, ge=0, description="weight of the divergence from the other side's logits"
    )
    temperature: Positive = Field(default=3.0, description="temperature of both softmaxes in that divergence")


@dataclass(frozen=True)
class FedGktServer:
    """The net and its optimizer state; per client, the labels of its samples and the logits last sent."""

    model: ModelState
    optimizer: State = field(default_factory=dict)
    labels: dict[int, Tensor] = field(default_factory=dict)
    logits: dict[int, Tensor] = field(default_factory=dict)


class FedGkt(Method[PrivateOutputs, PrivateLogits, FedGktServer, Learner]):
    """Clients train small models; the server trains a large net on their features of every private sample.

    A client trains on ``CE + weight T^2 KL(softmax(s/T) || softmax(z/T))``, where z are its logits and s
    the server's logits for the same sample from the previous round. It then sends features and logits of all
    its private samples. The server's net learns from the features by the same loss with the roles swapped,
    and returns logits. Exchanged: features (n_k, d) and logits up, labels once; logits down. Bytes:
    ``b n_k (d + C) / 8 + 1`` up, ``b n_k C / 8`` down, b bits per number, and once the entropy of the
    labels. Traffic grows with the number of private samples, which makes this the negative control. Features
    reveal much about a sample, so this is the least private of all methods here.

    ``server@global`` is the mean over clients of the server's net on the client's features; a client that
    has not trained yet is represented by its initial model. Over a network there is no such view, because
    the clients' models stay with them. ``client@...`` is the client's small model alone.

    Departs from the paper: the features are the vector before the last layer, so that text models have them
    too, and the net is a residual MLP instead of a ResNet. Clients with the same architecture start from the
    same weights. For an absent client the server keeps labels and last logits but no features: the net learns
    only from the features received in a round. The published code trains on one client after the other and
    returns the logits computed during training; here all samples are mixed, and logits are computed after
    training. That code also adapts its learning rate to the best test accuracy, which is not done here.
    """

    name = "fedgkt"
    paper = "He et al., 2020, arXiv 2007.14513, and its published code"
    exchanges = "features and logits of every private sample up (labels once); logits down"
    byte_formula = "up = bn_k(d+C)/8 + 1 (once + n_k H(y)/8), down = bn_kC/8"
    beyond_model = "features, logits and classes of their private samples"
    uplink = PrivateOutputs
    downlink = PrivateLogits
    ServerState = FedGktServer
    ClientState = Learner
    needs = Needs(models="one width", evaluation_at_clients=True)
    clients_build_common = True
    Settings = FedGktSettings
    settings: FedGktSettings

    @property
    def has_server_model(self) -> bool:
        return False  # it trains a separate net (`server_net`)

    def message_context(self, federation: FederationInfo, client: int) -> MessageContext:
        info = federation.clients[client]
        found = federation.feature_width(info.model)
        return replace(super().message_context(federation, client), width=found)

    def broadcast_group(self, state: FedGktServer, info: ClientInfo) -> Hashable:
        return info.id

    def start_server(self, server: Server) -> FedGktServer:
        return FedGktServer(ModelState.of(self._net(server.federation)))

    def start_client(self, client: Client) -> Learner:
        # With different initial weights, the clients' features would have no common meaning for the net.
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
        # A server that has sent logits has the labels.
        labels = client.data.labels if received is None else client.data.labels[:0]
        outputs = predict(WithFeatures(split), client.inputs())
        features, scores = outputs.split_with_sizes([split.head.in_features, split.head.out_features], dim=1)
        message = PrivateOutputs(features, scores, labels, int(received is None))
        return state.after(model, optimizer), message

    def check_reply(self, state: FedGktServer, server: Server, reply: Reply[PrivateOutputs]) -> None:
        if not reply.message.labelled and reply.client not in state.labels:
            raise FrameError("it has no labels, and the server has none of this client")

    def server_step(
        self, state: FedGktServer, server: Server, replies: Iterable[Reply[PrivateOutputs]]
    ) -> FedGktServer:
        came = {reply.client: reply.message for reply in replies}
        fresh = {client: message.labels for client, message in came.items() if message.labelled}
        labels = {**state.labels, **fresh}
        if not came:
            return state
        features = torch.cat([message.features for message in came.values()])
        scores = torch.cat([message.scores for message in came.values()])
        classes = torch.cat([labels[client] for client in came])

        def loss(logits: Tensor, at: Tensor) -> Tensor:
            return cross_entropy(logits, classes[at]) + self._distance(logits, scores[at])

        net = state.model.load_into(self._net(server.federation))
        optimizer = make_optimizer(self.settings.optimizer, net).restore(state.optimizer)
        with server.computing():
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
        """Return the net with its initial weights."""
        length = federation.feature_width(federation.clients[0].model)
        with scoped(federation.seed, "server-net"):
            return ResidualMlp(length, federation.classes, self.settings)

    def _distance(self, logits: Tensor, other: Tensor) -> Tensor:
        heat = self.settings.temperature
        return self.settings.weight * heat**2 * kl(logits / heat, (other / heat).softmax(dim=1))

"""FedTGP: the server trains well-separated global prototypes."""

from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from fedistill.config.schema import Positive
from fedistill.config.training import OptimizerConfig
from fedistill.methods.participants import Server
from fedistill.methods.shared.prototypes import (
    PrototypeMethod,
    PrototypeServer,
    PrototypeSettings,
)
from fedistill.rng import scoped
from fedistill.training.model_state import flatten, unflatten
from fedistill.training.optimizers import make_optimizer


class FedTgpSettings(PrototypeSettings):
    server_epochs: int = Field(default=100, ge=1, description="epochs on the clients' prototypes")
    server_batch_size: int = Field(default=10, ge=1, description="prototypes per step")
    server_lr: Positive = Field(default=0.01, description="learning rate of plain SGD at the server")
    margin: float = Field(default=100.0, ge=0, description="tau, upper bound of the margin")


@dataclass(frozen=True)
class FedTgpServer(PrototypeServer):
    """The prototypes, and the weights of the layers that produce them."""

    trainable: Tensor = field(default_factory=lambda: torch.zeros(0))


class FedTgp(PrototypeMethod[FedTgpServer]):
    """Like `fedproto`, but the server learns the global prototypes contrastively, with an adaptive margin.

    Two linear layers turn a trainable vector per class into the class's global prototype g_c. Vectors and
    layers are trained on the clients' prototypes p of class y by cross-entropy over the negative distances
    ``-(|p - g_c| + margin [c = y])``. The margin is computed from the classes' mean prototypes over the
    clients: it is the largest distance between a class and its nearest other class, and at most tau.
    Exchanged: as in `fedproto`. Bytes: the same, ``b C_k d / 8`` up and ``b C d / 8`` down.

    Departs from its published code: the default lambda is 1 as in `fedproto`, not 10; prototypes of
    classes that no client has reported are not sent; the server's learning rate is a separate setting.
    """

    name = "fedtgp"
    paper = "Zhang et al., AAAI 2024, arXiv 2401.03230, and its published code"
    ServerState = FedTgpServer
    Settings = FedTgpSettings
    settings: FedTgpSettings

    def start_server(self, server: Server) -> FedTgpServer:
        with scoped(server.seed, "prototypes"):
            return FedTgpServer(trainable=flatten(_trainable(server)))

    def aggregate(
        self, state: FedTgpServer, server: Server, vectors: Tensor, present: Tensor
    ) -> FedTgpServer:
        classes = server.classes
        net = unflatten(_trainable(server), state.trainable)
        optimizer = make_optimizer(OptimizerConfig(lr=self.settings.server_lr), net)
        labels = torch.arange(classes).expand_as(present)[present]
        pooled, sent = self.pooled(vectors, present)
        vectors, margin = vectors[present], self._margin(pooled, sent)
        if self.settings.pooling == "median":  # single vectors may be lies
            vectors, labels = pooled[sent], torch.arange(classes)[sent]
        generator = server.stream("prototypes")
        for _ in range(self.settings.server_epochs):
            order = torch.randperm(len(labels), generator=generator)
            for index in torch.split(order, self.settings.server_batch_size):
                distances = torch.cdist(vectors[index], net(torch.arange(classes)))
                distances = distances + margin * one_hot(labels[index], classes)
                optimizer.zero_grad()
                cross_entropy(-distances, labels[index]).backward()  # type: ignore[no-untyped-call]  # in torch
                optimizer.step()
        named = present.any(dim=0)
        if state.present is not None:
            named = named | state.present
        with torch.no_grad():
            prototypes = net(torch.arange(classes))
        return FedTgpServer(prototypes, named, flatten(net))

    def _margin(self, means: Tensor, named: Tensor) -> float:
        if named.sum() < 2:
            return self.settings.margin
        distances = torch.cdist(means[named], means[named]).fill_diagonal_(torch.inf)
        return min(self.settings.margin, float(distances.min(dim=1).values.max()))


def _trainable(server: Server) -> nn.Module:
    """The embedding of the classes and the layers that turn it into prototypes."""
    length = server.federation.feature_width(server.clients[0].model)
    return nn.Sequential(
        nn.Embedding(server.classes, length),
        nn.Linear(length, length),
        nn.ReLU(),
        nn.Linear(length, length),
    )

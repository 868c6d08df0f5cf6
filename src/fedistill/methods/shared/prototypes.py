"""Shared by methods whose messages are prototypes: one feature vector per class."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from fedistill.aggregation.classwise import class_likeness, class_medians
from fedistill.communication.messages.base import MessageContext
from fedistill.communication.messages.classwise import Prototypes
from fedistill.config.schema import Section
from fedistill.config.training import PREDICTION_BATCH
from fedistill.methods.base import Method, Needs, Reply
from fedistill.methods.participants import Client, FederationInfo, Server
from fedistill.methods.shared.own_model import Learner, train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.models.features import Split
from fedistill.training.devices import placed
from fedistill.training.loop import outputs


class PrototypeSettings(Section):
    weight: float = Field(
        default=1.0, ge=0, description="lambda, weight of the distance to the global prototypes"
    )
    pooling: Literal["mean", "median"] = Field(
        default="mean",
        description="how the server pools the clients' prototypes of a class; the median, entry by entry,"
        " bounds what liars can do",
    )


_UNLIKE = 100.0


@dataclass(frozen=True)
class PrototypeServer:
    """The global prototypes (C, d) and a mask (C,) of the classes that have one, or None before any reply."""

    prototypes: Tensor | None = None
    present: Tensor | None = None


PrototypeStateT = TypeVar("PrototypeStateT", bound=PrototypeServer)


class PrototypeMethod(Method[Prototypes, Prototypes, PrototypeStateT, Learner]):
    """Clients pull features towards the global prototypes and send the mean features of their classes."""

    exchanges = "mean features of each class"
    beyond_model = "mean features of their private samples of each class"
    byte_formula = "up = bC_kd/8 + log2(C over C_k)/8, down = bCd/8"
    uplink = Prototypes
    downlink = Prototypes
    ClientState = Learner
    needs = Needs(models="one width")
    settings: PrototypeSettings

    def message_context(self, federation: FederationInfo, client: int) -> MessageContext:
        context = super().message_context(federation, client)
        return replace(context, width=federation.feature_width(federation.clients[client].model))

    def start_client(self, client: Client) -> Learner:
        return Learner(client.initial_model())

    def send(self, state: PrototypeStateT, server: Server, client: int) -> Prototypes | None:
        if state.prototypes is None or state.present is None:
            return None
        return Prototypes.of(state.prototypes, state.present)

    def client_step(
        self, state: Learner, client: Client, received: Prototypes | None
    ) -> tuple[Learner, Prototypes]:
        model, optimizer = state.restore(client)
        split = Split(model, client.model, client.signature)
        labels = client.data.labels
        classes = client.classes
        private = private_loss(client, model)
        if received is not None:
            targets, known = received.table(classes)

        def loss(logits: Tensor, at: Tensor) -> Tensor:
            value = private(logits, at)
            if received is None:
                return value
            y = labels[at]
            # The mean is over the full batch: samples without a prototype add zero.
            distances = (split.features.to(targets.device) - targets[y]).square().mean(dim=1)
            return value + self.settings.weight * (distances * known[y]).mean()

        train_private(split, optimizer, client, loss)
        sums, counts = class_sums(split, client.inputs(), labels, classes)
        present = counts > 0
        return state.after(model, optimizer), Prototypes.of(sums / counts.clamp(min=1)[:, None], present)

    def server_step(
        self, state: PrototypeStateT, server: Server, replies: Iterable[Reply[Prototypes]]
    ) -> PrototypeStateT:
        classes = server.classes
        came = {reply.client: reply.message for reply in replies}
        for client, reason in out_of_scale(came).items():
            server.leave_out(client, reason)
            del came[client]
        if not came:
            return state
        tables = [message.table(classes) for message in came.values()]
        vectors = torch.stack([table for table, _ in tables])
        present = torch.stack([mask for _, mask in tables])
        if self.settings.pooling == "median":
            alike = class_likeness(vectors, present).tolist()
            server.note_reliability(dict(zip(came, alike, strict=True)))
        return self.aggregate(state, server, vectors, present)

    def pooled(self, vectors: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return pooled prototypes (C, d), and a mask (C,) of the classes that were sent."""
        pool = class_medians if self.settings.pooling == "median" else class_means
        return pool(vectors, present)

    @abstractmethod
    def aggregate(
        self, state: PrototypeStateT, server: Server, vectors: Tensor, present: Tensor
    ) -> PrototypeStateT:
        """Return the state with new global prototypes, from those of k >= 1 clients (k, C, d).

        ``present`` (k, C) is the mask of the classes that each client sent.
        """


def out_of_scale(prototypes: Mapping[int, Prototypes]) -> dict[int, str]:
    """Return whose prototypes are over a hundred times as long as the median client's, in words.

    Models of one width differ by a few times. Of two clients nobody knows which one is right, and of an even
    number the longer half is believed; prototypes of 0 say nothing of a length.
    """
    sizes = {
        client: float(sent.vectors.double().square().mean().sqrt())
        for client, sent in prototypes.items()
        if sent.vectors.any()
    }
    if len(prototypes) < 3:
        return {}
    usual = sorted(sizes.values())[len(sizes) // 2] if sizes else 0.0
    return {
        client: f"its prototypes are {size / usual:,.0f} times as long as the median client's"
        for client, size in sizes.items()
        if size > _UNLIKE * usual
    }


@torch.no_grad()
def class_sums(split: Split, inputs: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the sum of features (C, d), in evaluation mode, and the number of samples (C,) per class."""
    split.eval()
    sums = torch.zeros(classes, split.head.in_features)
    with placed(split):
        for index in torch.split(torch.arange(len(inputs)), PREDICTION_BATCH):
            outputs(split, inputs, index)
            sums.index_add_(0, labels[index], split.features.cpu())
    return sums, torch.bincount(labels, minlength=classes)


def class_means(vectors: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Return plain means (C, d) over the clients that sent a class, and a mask (C,) of the classes sent."""
    counts = present.sum(dim=0)
    return vectors.sum(dim=0) / counts.clamp(min=1)[:, None], counts > 0

"""FedGEMS without labels: the server labels the public samples it is confident about, clients the others."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import kl_div

from fedistill.aggregation.labels import Era
from fedistill.aggregation.registry import AnyAggregation
from fedistill.communication.messages.labels import ChosenLabels
from fedistill.methods.base import Needs, Reply
from fedistill.methods.participants import Client, Server
from fedistill.methods.shared.own_model import Learner, train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.methods.shared.public_labels import (
    DistillSettings,
    SampledPublic,
    SampledSettings,
    distil,
    select_labels,
    spread_labels,
)
from fedistill.state import State
from fedistill.training.loop import fit, predict


class FedGemsSettings(DistillSettings, SampledSettings):
    aggregation: AnyAggregation = Era()
    confidence: float = Field(
        default=0.7, ge=0, le=1, description="least probability of a class for the server to be confident"
    )
    least_asked: float = Field(
        default=0.1, ge=0, le=1, description="share of samples that clients must always label"
    )
    self_weight: float = Field(
        default=1.0, ge=0, description="weight of the server's own labels in its loss; clients' labels have 1"
    )


@dataclass(frozen=True)
class FedGemsServer(Learner):
    """The server's state; ``taught`` tells whether it has learned from clients yet."""

    taught: bool = False
    aggregation: State = field(default_factory=dict)


class FedGems(SampledPublic[ChosenLabels, ChosenLabels, FedGemsServer, Learner]):
    """The server's large model labels the public samples it is confident about; clients label the others.

    A round: the server predicts the round's n public samples and sends its labels of those whose most likely
    class has at least the probability ``confidence``. A client distils them (KL), trains on private data and
    labels all other samples. The server pools the clients' labels and distils them, together with its own
    labels of the other samples, weighted by ``self_weight``, so that it does not forget. In the first round
    the server sends nothing, and clients label all samples. Exchanged: probabilities of s samples down, of
    n - s up. Bytes: ``b s C / 8`` down, ``b (n - s) C / 8`` up, b bits per number, and at most about
    ``n / 8`` each way for the positions of the samples.

    Both directions together take half the bytes of `dsfl`; as the server becomes more confident, bytes move
    from uplink to downlink. Clients learn nothing from the server before it is confident about some samples,
    and errors accepted at a low ``confidence`` persist.

    Departs from the paper, where public samples have labels. There, labels show which samples the server
    gets right, so that no client is needed, and which clients are right; both also train on these labels, and
    the server's logits from when it was right are kept. Here confidence replaces correctness, and
    ``aggregation`` replaces the selection of clients. Clients always label a random share of samples,
    ``least_asked``, since the server would otherwise never correct a confident error.
    """

    name = "fedgems"
    paper = "Cheng et al., 2021, arXiv 2110.11027, without labels on public samples"
    exchanges = "soft labels of public samples: the server's if confident, else the clients'"
    byte_formula = "down = bsC/8, up = b(n - s)C/8"
    beyond_model = None
    uplink = ChosenLabels
    downlink = ChosenLabels
    ServerState = FedGemsServer
    ClientState = Learner
    needs = Needs(public=("clients", "server"))
    under_skew = ("loss", "aggregation")
    Settings = FedGemsSettings
    settings: FedGemsSettings

    def start_server(self, server: Server) -> FedGemsServer:
        return FedGemsServer(server.initial_model())

    def start_client(self, client: Client) -> Learner:
        return Learner(client.initial_model())

    def send(self, state: FedGemsServer, server: Server, client: int) -> ChosenLabels | None:
        if not state.taught:
            return None
        probs, sure = self._own(state, server)
        return select_labels(probs, sure, server.round)

    def client_step(
        self, state: Learner, client: Client, received: ChosenLabels | None
    ) -> tuple[Learner, ChosenLabels]:
        model, optimizer = state.restore(client)
        drawn = client.round if received is None else received.sampled_round
        inputs = client.sampled_public(self.settings.samples, drawn)
        asked = torch.ones(len(inputs), dtype=torch.bool)
        if received is not None and received.chosen:
            asked[received.places] = False
            distil(client, model, optimizer, inputs[received.places], received.probs, self.settings)
        train_private(model, optimizer, client, private_loss(client, model))
        probs = torch.zeros(len(inputs), client.classes)
        if asked.any():
            probs[asked] = predict(model, inputs[asked]).softmax(dim=1)
        return state.after(model, optimizer), select_labels(probs, asked, drawn)

    def server_step(
        self, state: FedGemsServer, server: Server, replies: Iterable[Reply[ChosenLabels]]
    ) -> FedGemsServer:
        own, _ = self._own(state, server)
        rows = ((reply.client, spread_labels(reply.message, len(own))) for reply in replies)
        ties = server.stream("ties")
        found = self.settings.aggregation.aggregate(rows, ties, state=state.aggregation)
        if found is None:
            return state
        server.note_reliability(found.reliability)
        labelled = found.labels.any(dim=1)
        probs = torch.where(labelled[:, None], found.labels, own)
        weights = torch.where(labelled, 1.0, self.settings.self_weight)
        model, optimizer = state.restore(server)

        def loss(logits: Tensor, at: Tensor) -> Tensor:
            rows = kl_div(logits.log_softmax(dim=1), probs[at], reduction="none").sum(dim=1)
            return (weights[at] * rows).mean()

        with server.computing():
            fit(
                model,
                optimizer,
                server.sampled_public(self.settings.samples, server.round),
                loss,
                epochs=self.settings.distill_epochs,
                batch_size=self.settings.distill_batch_size,
                generator=server.stream("distil"),
            )
        return replace(state.after(model, optimizer), taught=True, aggregation=found.state)

    def _own(self, state: FedGemsServer, server: Server) -> tuple[Tensor, Tensor]:
        """The server's labels (n, C) of this round's samples, and a mask (n,) of those that it sends."""
        inputs = server.sampled_public(self.settings.samples, server.round)
        probs = predict(server.load(state.model), inputs).softmax(dim=1)
        order = torch.randperm(len(inputs), generator=server.stream("asked"))
        sure = probs.max(dim=1).values >= self.settings.confidence
        return probs, sure & (order >= self.settings.least_asked * len(inputs))

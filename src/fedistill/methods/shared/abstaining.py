"""Shared by methods whose clients label only public samples that resemble their own data."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from pydantic import Field
from torch import Tensor

from fedistill.aggregation.labels import Mean
from fedistill.aggregation.registry import AnyAggregation
from fedistill.communication.messages.labels import ChosenLabels
from fedistill.methods.base import Needs, Reply
from fedistill.methods.participants import Client, Server, sample_public
from fedistill.methods.shared.density import familiar, vectors
from fedistill.methods.shared.own_model import Learner, train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.methods.shared.public_labels import (
    DistillSettings,
    LabelServer,
    SampledPublic,
    SampledSettings,
    distil,
    distil_server,
    select_labels,
    spread_labels,
)
from fedistill.rng import stream
from fedistill.training.loop import predict

Score = Callable[[Tensor], Tensor]
FEW = 8
"""Fewer private samples than this are not split, since quantiles of so few scores are meaningless."""


class AbstainingSettings(DistillSettings, SampledSettings):
    quantile: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="share of a client's own held-out samples that would count as unfamiliar",
    )
    aggregation: AnyAggregation = Mean()
    references: int = Field(
        default=250, ge=1, description="private samples that others are compared with; at most half of them"
    )


@dataclass(frozen=True)
class AbstainingClient(Learner):
    """The client's model and optimizer, and a mask (N,) of the familiar public samples."""

    familiar: Tensor | None = None


@dataclass(frozen=True)
class AbstainingServer(LabelServer):
    """The server's state with a mask ``kept`` (n,) of the last labels that it sends."""

    kept: Tensor | None = None


class Abstaining(SampledPublic[ChosenLabels, ChosenLabels, AbstainingServer, AbstainingClient]):
    """Soft labels of familiar public samples up, their pooled labels down.

    Before its first round a client determines which public samples are familiar: it fits a score to some of
    its private samples, and selects the public samples that score higher than a ``quantile`` of its other
    private samples. With fewer than `FEW` private samples, each is scored against all others. A client with
    a single private sample labels nothing.
    """

    uplink = ChosenLabels
    beyond_model = "labels of those public samples that are like their own"
    downlink = ChosenLabels
    ServerState = AbstainingServer
    ClientState = AbstainingClient
    needs = Needs(public=("clients", "server"))
    settings: AbstainingSettings

    @abstractmethod
    def score(self, references: Tensor, generator: torch.Generator) -> Score:
        """Return a function from samples (s, d) to scores (s,), higher if closer to references (m, d)."""

    def clear(self, labels: Tensor) -> Tensor:
        """Mask (n,) of the pooled labels (n, C) that the server keeps."""
        return torch.ones(len(labels), dtype=torch.bool)

    def start_server(self, server: Server) -> AbstainingServer:
        return AbstainingServer(server.initial_model())

    def start_client(self, client: Client) -> AbstainingClient:
        known = client.public_inputs()
        own = vectors(client.inputs(), client.signature, known)
        generator = stream(client.seed, "familiar", client.id)  # the same in whichever round it starts
        public = vectors(known, client.signature, known)
        if len(own) < FEW:
            held, score = self._one_by_one(own, generator), self.score(own, generator)
        else:
            order = torch.randperm(len(own), generator=generator)
            split = min(self.settings.references, len(own) // 2)
            score = self.score(own[order[:split]], generator)
            held = score(own[order[split:]])
        alike = familiar(held, score(public), self.settings.quantile)
        return AbstainingClient(client.initial_model(), familiar=alike)

    def _one_by_one(self, own: Tensor, generator: torch.Generator) -> Tensor:
        """Scores (m,) of each sample against the others, or infinity for a single sample."""
        if len(own) == 1:
            return own.new_full((1,), torch.inf)
        rest = [torch.cat([own[:place], own[place + 1 :]]) for place in range(len(own))]
        scores = [self.score(others, generator)(one[None]) for one, others in zip(own, rest, strict=True)]
        return torch.cat(scores)

    def send(self, state: AbstainingServer, server: Server, client: int) -> ChosenLabels | None:
        if state.labels is None or state.kept is None:
            return None
        return select_labels(state.labels, state.kept, state.sampled_round)

    def client_step(
        self, state: AbstainingClient, client: Client, received: ChosenLabels | None
    ) -> tuple[AbstainingClient, ChosenLabels]:
        assert state.familiar is not None
        model, optimizer = state.restore(client)
        if received is not None:
            sampled = client.sampled_public(self.settings.samples, received.sampled_round)
            distil(client, model, optimizer, sampled[received.places], received.probs, self.settings)
        train_private(model, optimizer, client, private_loss(client, model))
        size = client.public_size
        known = state.familiar[sample_public(client.seed, size, self.samples(size), client.round)]
        probs = torch.zeros(len(known), client.classes)
        if known.any():
            inputs = client.sampled_public(self.settings.samples, client.round)[known]
            probs[known] = predict(model, inputs).softmax(dim=1)
        return state.after(model, optimizer), select_labels(probs, known, client.round)

    def server_step(
        self, state: AbstainingServer, server: Server, replies: Iterable[Reply[ChosenLabels]]
    ) -> AbstainingServer:
        inputs = server.sampled_public(self.settings.samples, server.round)
        rows = ((reply.client, spread_labels(reply.message, len(inputs))) for reply in replies)
        ties = server.stream("ties")
        found = self.settings.aggregation.aggregate(rows, ties, state=state.aggregation)
        if found is None:
            return state
        server.note_reliability(found.reliability)
        labels, state = found.labels, replace(state, aggregation=found.state)
        kept = labels.any(dim=1) & self.clear(labels)
        if not kept.any():
            return state
        learned = distil_server(state, server, inputs[kept], labels[kept], self.settings)
        return replace(learned, labels=labels, kept=kept, sampled_round=server.round)

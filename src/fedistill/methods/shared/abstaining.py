"""Shared by methods whose clients answer only what is like their own data."""

from abc import abstractmethod
from collections.abc import Callable, Iterable

import torch
from pydantic import Field
from torch import Tensor

from fedistill.aggregation.labels import Mean
from fedistill.aggregation.registry import AnyAggregation
from fedistill.communication.messages.labels import ChosenLabels
from fedistill.methods.base import Client, Method, Reply, Server, sample_public
from fedistill.methods.shared.density import familiar, vectors
from fedistill.methods.shared.own_model import initial_state, restore, state_of, train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.methods.shared.public_labels import (
    DistillSettings,
    distil,
    distil_server,
    select_labels,
    spread_labels,
)
from fedistill.rng import stream
from fedistill.state import State
from fedistill.training.loop import predict

Score = Callable[[Tensor], Tensor]
FEW = 8
"""Fewer private samples are not divided: quantiles of four would mean nothing."""


class AbstainingSettings(DistillSettings):
    samples: int | None = Field(
        default=None, ge=1, description="public samples a round, drawn anew; default: all"
    )
    quantile: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="share of a client's own held-out samples that it would not answer either",
    )
    aggregation: AnyAggregation = Mean()
    references: int = Field(
        default=250, ge=1, description="private samples, at most half of them, that others are compared with"
    )


class Abstaining(Method[ChosenLabels, ChosenLabels]):
    """Soft labels of familiar public samples up, what those who answered are pooled to down.

    Before round 1 a client finds out which public samples are familiar: it learns a score from some of its
    private samples, and takes those that score higher than a ``quantile`` of its other private samples. Of
    fewer than `FEW` each is scored by all others; who has one alone answers nothing.
    """

    uplink = ChosenLabels
    downlink = ChosenLabels
    clients_need_public = True
    server_needs_public = True
    has_client_models = True
    settings: AbstainingSettings

    @abstractmethod
    def score(self, references: Tensor, generator: torch.Generator) -> Score:
        """What gives samples (s, d) scores (s,), higher where they are more like references (m, d)."""

    def clear(self, labels: Tensor) -> Tensor:
        """Which (n,) of the pooled labels (n, C) the server believes."""
        return torch.ones(len(labels), dtype=torch.bool)

    def samples(self, public: int) -> int:
        return min(public, self.settings.samples or public)

    def start_server(self, server: Server) -> State:
        return {"model": server.initial_weights(), "optimizer": {}}

    def start_client(self, client: Client) -> State:
        assert client.public is not None
        own = vectors(client.data.inputs, client.signature, client.public)
        generator = stream(client.seed, "familiar", client.id)  # whatever round is its first
        public = vectors(client.public, client.signature, client.public)
        if len(own) < FEW:
            held, score = self._one_by_one(own, generator), self.score(own, generator)
        else:
            order = torch.randperm(len(own), generator=generator)
            split = min(self.settings.references, len(own) // 2)
            score = self.score(own[order[:split]], generator)
            held = score(own[order[split:]])
        return {**initial_state(client), "familiar": familiar(held, score(public), self.settings.quantile)}

    def _one_by_one(self, own: Tensor, generator: torch.Generator) -> Tensor:
        """Score (m,) of each sample by the others; a sample without others is like nothing."""
        if len(own) == 1:
            return own.new_full((1,), torch.inf)
        rest = [torch.cat([own[:place], own[place + 1 :]]) for place in range(len(own))]
        scores = [self.score(others, generator)(one[None]) for one, others in zip(own, rest, strict=True)]
        return torch.cat(scores)

    def send(self, state: State, server: Server, client: int) -> ChosenLabels | None:
        return select_labels(state["labels"], state["kept"], state["drawn"]) if "labels" in state else None

    def client_step(
        self, state: State, client: Client, received: ChosenLabels | None
    ) -> tuple[State, ChosenLabels]:
        assert client.public is not None
        model, optimizer = restore(state, client)
        if received is not None:
            inputs = client.drawn(self.settings.samples, received.drawn)[received.places]
            distil(client, model, optimizer, inputs, received.probs, self.settings)
        train_private(model, optimizer, client, private_loss(client, model))
        size = len(client.public)
        known = state["familiar"][sample_public(client.seed, size, self.samples(size), client.round)]
        probs = torch.zeros(len(known), client.signature.classes)
        if known.any():
            inputs = client.drawn(self.settings.samples, client.round)[known]
            probs[known] = predict(model, inputs).softmax(dim=1)
        kept = {**state_of(model, optimizer), "familiar": state["familiar"]}
        return kept, select_labels(probs, known, client.round)

    def server_step(self, state: State, server: Server, replies: Iterable[Reply[ChosenLabels]]) -> State:
        inputs = server.drawn(self.settings.samples, server.round)
        rows = (spread_labels(reply.message, len(inputs)) for reply in replies)
        labels = self.settings.aggregation.aggregate(rows, server.stream("ties"))
        if labels is None:
            return state
        kept = labels.any(dim=1) & self.clear(labels)
        if not kept.any():
            return state
        learned = distil_server(state, server, inputs[kept], labels[kept], self.settings)
        return {**learned, "labels": labels, "kept": kept, "drawn": server.round}

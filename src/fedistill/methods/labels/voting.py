"""Voting: one class per public sample up, the majority class down."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import one_hot

from fedistill.aggregation.labels import Aggregated, ExchangeInfo
from fedistill.aggregation.registry import AnyAggregation
from fedistill.aggregation.votes import Majority
from fedistill.communication.messages.labels import Votes
from fedistill.methods.participants import Server, sample_public
from fedistill.methods.shared.label_refinement import classifier, coin_evidence, refine
from fedistill.methods.shared.public_labels import DrawnLabels, DrawnSettings
from fedistill.state import State


class VotingSettings(DrawnSettings):
    aggregation: AnyAggregation = Majority()
    refine_labels: bool = Field(
        default=False,
        description="whether the server corrects the pooled labels by what public samples look like: a simple"
        " classifier, which learns these labels, is evidence beside the votes; nothing more is sent",
    )

    @model_validator(mode="after")
    def _votes_are_counted(self) -> Self:
        if self.refine_labels and not isinstance(self.aggregation, Majority):
            name = self.aggregation.name
            raise ValueError(f"`refine_labels` counts each vote once: leave out `aggregation` {name}, or it")
        return self


class Voting(DrawnLabels[Votes, Votes]):
    """Clients of any architecture vote for a class of each public sample; all learn the majority class.

    A round: learn the last majority labels (cross entropy), train on private data, vote on the next
    public samples. The server counts votes and trains its own model, of any size, on the majority.
    Exchanged: one class per sample each way; the samples are drawn from a shared seed. Bytes: ``n H / 8``
    each way, H bits per vote under the codec's adaptive model: at most about ``log2 C``, and some 10 bytes
    in the first rounds.

    If each client holds only one or two classes, the first majority is the same class for most samples; all
    learn it and vote for it again. Balanced softmax and prior correction (see ``doctor``) prevent this.

    With ``start``, clients send one-shot statistics first (see `gaussian`, `ridge` and `naive-bayes`). What
    these say of the public samples are the first labels, and the server's model learns them for long; votes
    then cost less, since both sides know these labels.

    Departs from the paper, which has no server and no server model: here the server counts votes and has a
    model of its own. The order of steps is that of `dsfl`. A tie goes to the previous majority class if it
    is among the tied classes; otherwise it is broken at random. With another ``aggregation``, the most
    probable class is sent. With ``refine_labels``, what samples look like is evidence beside the votes, after
    Raykar et al. (2010, Learning from Crowds, JMLR 11); all clients count as equally often right.
    """

    name = "voting"
    paper = "TallyTrain, 2026, arXiv 2607.00173 (abstract)"
    exchanges = "the most probable class of each public sample"
    byte_formula = "up = down = n H/8, H at most about log2(C)"
    beyond_model = None
    uplink = Votes
    downlink = Votes
    codec = "onehot"
    ties_to_last = True
    Settings = VotingSettings
    settings: VotingSettings

    def pool(
        self, server: Server, rows: Iterable[tuple[int, Tensor]], before: Tensor | None, state: State
    ) -> Aggregated | None:
        if not self.settings.refine_labels:
            return super().pool(server, rows, before, state)
        counts = torch.zeros(0, server.classes)

        def counted() -> Iterator[tuple[int, Tensor]]:
            nonlocal counts
            for client, votes in rows:
                counts = counts + votes if len(counts) else votes
                yield client, votes

        found = super().pool(server, counted(), before, state)
        return None if found is None else replace(found, labels=self._refined(server, found.labels, counts))

    def pool_sum(self, server: Server, labels: Tensor, exchange: ExchangeInfo) -> Tensor:
        found = super().pool_sum(server, labels, exchange)
        return self._refined(server, found, labels) if self.settings.refine_labels else found

    def _refined(self, server: Server, pooled: Tensor, counts: Tensor) -> Tensor:
        """Return what pooled labels (n, C) become, given how many clients voted for each class (n, C)."""
        public = server.public_size
        places = sample_public(server.seed, public, self.samples(public), server.round)
        labels = pooled.argmax(dim=1)
        with server.computing():
            refined = refine(labels, coin_evidence(counts, labels), classifier(server, places))
        return one_hot(refined, server.classes).float()

    def labels(self, logits: Tensor) -> Tensor:
        return _likeliest(logits)

    def global_labels(self, aggregated: Tensor) -> Tensor:
        return _likeliest(aggregated)


def _likeliest(scores: Tensor) -> Tensor:
    return one_hot(scores.argmax(dim=1), scores.shape[1]).float()

"""Label aggregators combine the soft labels of many clients: the choices of the setting ``aggregation``.

Each takes one tensor of probabilities (n, C) per client, in client order, and returns rows that sum to 1. A
row of zeros means that the client did not answer that sample: it counts neither for nor against any class,
and a sample that no client answered gets a row of zeros. An aggregator knows which client each tensor is
from, may keep a state from one exchange to the next, and reports how much it trusted each client. Rows that
a codec made one-hot are used as received.

Here are the base class and the means; `fedistill.aggregation.votes` and `fedistill.aggregation.robust` have
the others.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedistill.aggregation.functional import (
    Answers,
    confidences,
    enhanced_era,
    entropy_reduced,
    mean,
    mean_of_answers,
    prior_corrected,
)
from fedistill.config.schema import Positive, Section
from fedistill.errors import TrainingError
from fedistill.state import State


@dataclass(frozen=True)
class Aggregated:
    """The outcome of an aggregation.

    Attributes:
        labels: (n, C); zeros for samples that no client answered.
        trust: for each client that replied, by number, the share of its answers in the labels, from 0 to 1;
            the shares sum to 1 unless no client answered any sample.
        state: what the aggregator keeps for the next exchange, as plain data.
        reliability: how far each client that answered anything was followed, by number, from 0 to 1; empty if
            the aggregator follows all alike.
    """

    labels: Tensor
    trust: dict[int, float]
    state: State = field(default_factory=dict)
    reliability: dict[int, float] = field(default_factory=dict)


class Aggregation(Section, ABC):
    """Base class of all aggregators of soft labels; subclasses are final."""

    name: str
    _written: str = ""
    """How the experiment names it, if not by `name`: ``module:Class``."""

    def aggregate(
        self,
        rows: Iterable[tuple[int, Tensor]],
        draws: torch.Generator,
        before: Tensor | None = None,
        state: State | None = None,
    ) -> Aggregated | None:
        """Aggregate the clients' replies; return None if there are none.

        Args:
            rows: the number of each client and its probabilities (n, C); a row of zeros means no answer.
            draws: breaks ties.
            before: the samples' previous labels, one-hot rows (n, C), which win ties.
            state: that of the previous `Aggregated`, or None in the first exchange.
        """
        clients: list[int] = []
        counts: list[float] = []
        shape = torch.Size()
        answered: Tensor | None = None

        def answers() -> Answers:
            nonlocal answered, shape
            for client, probs in rows:
                shape = probs.shape
                mask = (probs != 0).any(dim=1)
                answered = mask if answered is None else answered | mask
                clients.append(client)
                counts.append(float(mask.sum()))
                yield probs, mask

        found = self.combine(answers(), ExchangeInfo(clients, draws, before, state or {}))
        if found is None or answered is None:
            return None
        if found.labels.shape != shape:
            raise TrainingError(
                f"aggregation {self.name!r} returned labels of shape {tuple(found.labels.shape)} "
                f"for rows of shape {tuple(shape)}"
            )
        labels = torch.where(answered[:, None], found.labels, 0)
        if not torch.isfinite(labels).all():
            raise TrainingError(f"aggregation {self.name!r} returned labels that are NaN or infinite")
        weights = counts if found.weights is None else found.weights
        total = sum(weights)
        shares = [weight / total if total else 0.0 for weight in weights]
        figures = zip(clients, found.reliability or [0.0] * len(clients), counts, strict=True)
        reliability = {client: figure for client, figure, count in figures if count and found.reliability}
        return Aggregated(labels, dict(zip(clients, shares, strict=True)), found.state, reliability)

    @abstractmethod
    def combine(self, answers: Answers, exchange: "ExchangeInfo") -> "Combined | None":
        """Combine answers into labels (n, C), or return None if there are no clients.

        Rows of samples that no client answered may hold anything.
        """


@dataclass(frozen=True)
class ExchangeInfo:
    """What an aggregator knows in addition to the answers.

    Attributes:
        clients: the number of each client, in the order of the answers; it grows as answers are read.
        draws: breaks ties.
        before: the samples' previous labels, one-hot rows (n, C), or None.
        state: what this aggregator kept from earlier exchanges; empty in the first.
    """

    clients: Sequence[int]
    draws: torch.Generator
    before: Tensor | None
    state: State


@dataclass(frozen=True)
class Combined:
    """The result of combining answers.

    Attributes:
        labels: (n, C).
        weights: how much each client counted, in the order of the answers, in any unit, or None if every
            answer counted equally.
        state: what it keeps for the next exchange.
        reliability: how far each client was followed, from 0 to 1, in the order of the answers; None if all
            were alike. Results and report show it.
    """

    labels: Tensor
    weights: list[float] | None = None
    state: State = field(default_factory=dict)
    reliability: list[float] | None = None


def _evenly(labels: Tensor | None) -> Combined | None:
    """Return labels to which every answer contributed equally."""
    return None if labels is None else Combined(labels)


class OfMean(Aggregation, ABC):
    """Base of aggregators that need no more than the mean of the clients' rows, as secure sums give it."""

    def of_client(self, probs: Tensor) -> Tensor:
        """Return what of a client's rows (n, C) goes into the mean."""
        return probs

    @abstractmethod
    def of_mean(self, mean: Tensor, exchange: ExchangeInfo) -> Tensor:
        """Return the labels (n, C) that the mean of the clients' rows (n, C) gives."""

    def combine(self, answers: Answers, exchange: ExchangeInfo) -> Combined | None:
        average = mean_of_answers((self.of_client(rows), mask) for rows, mask in answers)
        return None if average is None else Combined(self.of_mean(average, exchange))


class Mean(OfMean):
    """Arithmetic mean. For one-hot rows, these are the shares of votes."""

    name: Literal["mean"] = "mean"

    def of_mean(self, mean: Tensor, exchange: ExchangeInfo) -> Tensor:
        return mean


class Era(OfMean):
    """Entropy reduction: softmax of the mean divided by a temperature (DS-FL, arXiv 2008.06180).

    For one-hot rows, this is the softmax of the shares of votes: with 10 clients and T = 0.1, each vote of
    lead multiplies the odds by e.
    """

    name: Literal["era"] = "era"
    temperature: Positive = Field(default=0.1, description="T, where values below 1 sharpen the mean")

    def of_mean(self, mean: Tensor, exchange: ExchangeInfo) -> Tensor:
        return entropy_reduced(mean, self.temperature)


class EnhancedEra(OfMean):
    """Enhanced entropy reduction: the mean raised to a power, normalised (SCARLET, arXiv 2504.19602).

    For one-hot rows, these are powers of the shares of votes; a class without votes stays at 0.
    """

    name: Literal["enhanced-era"] = "enhanced-era"
    beta: Positive = Field(default=2.0, description="the power, where 1 keeps the mean")

    def of_mean(self, mean: Tensor, exchange: ExchangeInfo) -> Tensor:
        return enhanced_era(mean, self.beta)


class Confidence(Aggregation):
    """Mean in which each client's row is weighted by its confidence in that sample.

    Weights range from 0 for a uniform row to 1 for a one-hot row: ``1 - H / log C``, or the largest
    probability, rescaled. Models are often confident about classes they have never seen, too. One-hot rows
    are all equally confident, which leaves the shares of votes.
    """

    name: Literal["confidence"] = "confidence"
    measure: Literal["entropy", "max"] = Field(
        default="entropy", description="what counts as confidence: low entropy, or a large probability"
    )

    def combine(self, answers: Answers, exchange: ExchangeInfo) -> Combined | None:
        weights: list[float] = []

        def weighed() -> Iterator[Tensor]:
            for rows, mask in answers:
                # A little weight for every answer: samples on which no client is confident need a mean too.
                weight = ((confidences(rows, self.measure) + 1e-6) * mask)[:, None]
                weights.append(float(weight.sum()))
                yield torch.cat([rows * weight, weight], dim=1)

        pooled = mean(weighed())
        return None if pooled is None else Combined(pooled[:, :-1] / pooled[:, -1:], weights)


class PriorCorrected(Aggregation):
    """Geometric mean of the clients' rows, each divided by that client's own class prior.

    A class that a client names only because it knows few others counts little, and a class that it does not
    know does not count at all. The prior is the mean of the client's rows in this exchange, which should be
    many and cover all classes: a single row is its own prior and carries no information, and for a client
    that answers only samples of its own classes (as in selective-fd and edge-fd), dividing by the prior
    removes what it knows.

    This rule is ours. Dividing by a prior is the post-hoc logit adjustment of Menon et al.
    (arXiv 2007.07314); the geometric mean is a logarithmic opinion pool (Genest and Zidek, 1986). The mean
    is over all clients that answer, so those that do not know a class dilute it, for which ``sharpness``
    compensates: of 1, 3 and 10, 3 was best in benchmarks/skew.py. For one-hot rows, a vote counts more the
    rarer its class is among the client's votes, and a client that never names a class has no influence
    on it.
    """

    name: Literal["prior-corrected"] = "prior-corrected"
    sharpness: Positive = Field(
        default=3.0,
        description="power of the mean, about the number of clients divided by how many of them know a class",
    )
    floor: float = Field(
        default=0.01,
        gt=0,
        lt=1,
        description="share of each row spread evenly over the classes, so that no entry is 0",
    )

    def combine(self, answers: Answers, exchange: ExchangeInfo) -> Combined | None:
        return _evenly(prior_corrected(answers, self.sharpness, self.floor))


def stacked(answers: Answers) -> tuple[Tensor, Tensor] | None:
    """Return the rows (k, n, C) and masks (k, n) of k clients, or None if there are none."""
    rows, masks = [], []
    for client_rows, mask in answers:
        rows.append(client_rows)
        masks.append(mask)
    return (torch.stack(rows), torch.stack(masks)) if rows else None

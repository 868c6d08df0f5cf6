"""Aggregation of soft labels: the choices of the setting ``aggregation``.

Each choice takes one tensor of probabilities (n, C) per client, in client order, and returns rows that sum
to 1. A row of zeros means that the client did not answer that sample: it counts neither for nor against
any class, and a sample that no client answered gets a row of zeros. Nothing else is known about a client.
Rows that a codec made one-hot are used as received.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError
from torch import Tensor
from torch.nn.functional import one_hot

from fedistill.aggregation.functional import (
    Answers,
    confidences,
    dawid_skene,
    enhanced_era,
    entropy_reduced,
    majority,
    mean,
    mean_of_answers,
    median,
    prior_corrected,
    trimmed,
)
from fedistill.config.messages import explain_errors
from fedistill.config.schema import Positive, Section
from fedistill.errors import nearest


class Aggregation(Section, ABC):
    """Base class of all aggregations of soft labels; subclasses are final."""

    name: str

    def aggregate(
        self, rows: Iterable[Tensor], draws: torch.Generator, before: Tensor | None = None
    ) -> Tensor | None:
        """Return the pooled rows (n, C), or None if no client replied.

        Samples that no client answered get rows of zeros.

        Args:
            rows: probabilities (n, C) of each client; a row of zeros means no answer.
            draws: breaks ties.
            before: the samples' previous labels, one-hot rows (n, C), which win ties.
        """
        answered: Tensor | None = None

        def answers() -> Answers:
            nonlocal answered
            for probs in rows:
                mask = (probs != 0).any(dim=1)
                answered = mask if answered is None else answered | mask
                yield probs, mask

        pooled = self._aggregate(answers(), draws, before)
        return None if pooled is None or answered is None else torch.where(answered[:, None], pooled, 0)

    @abstractmethod
    def _aggregate(self, answers: Answers, draws: torch.Generator, before: Tensor | None) -> Tensor | None:
        """As `aggregate`, except that rows of samples that no client answered may hold anything."""


class Mean(Aggregation):
    """Arithmetic mean. For one-hot rows, these are the shares of votes."""

    name: Literal["mean"] = "mean"

    def _aggregate(self, answers: Answers, draws: torch.Generator, before: Tensor | None) -> Tensor | None:
        return mean_of_answers(answers)


class Era(Aggregation):
    """Entropy reduction: softmax of the mean divided by a temperature (DS-FL, arXiv 2008.06180).

    For one-hot rows, this is the softmax of the shares of votes: with 10 clients and T = 0.1, each vote of
    lead multiplies the odds by e.
    """

    name: Literal["era"] = "era"
    temperature: Positive = Field(default=0.1, description="T, where values below 1 sharpen the mean")

    def _aggregate(self, answers: Answers, draws: torch.Generator, before: Tensor | None) -> Tensor | None:
        average = mean_of_answers(answers)
        return None if average is None else entropy_reduced(average, self.temperature)


class EnhancedEra(Aggregation):
    """Enhanced entropy reduction: the mean raised to a power, normalised (SCARLET, arXiv 2504.19602).

    For one-hot rows, these are powers of the shares of votes; a class without votes stays at 0.
    """

    name: Literal["enhanced-era"] = "enhanced-era"
    beta: Positive = Field(default=2.0, description="the power, where 1 keeps the mean")

    def _aggregate(self, answers: Answers, draws: torch.Generator, before: Tensor | None) -> Tensor | None:
        average = mean_of_answers(answers)
        return None if average is None else enhanced_era(average, self.beta)


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

    def _aggregate(self, answers: Answers, draws: torch.Generator, before: Tensor | None) -> Tensor | None:
        # A little weight for every answer: samples on which no client is confident need a mean too.
        weighed = (
            (rows, ((confidences(rows, self.measure) + 1e-6) * mask)[:, None]) for rows, mask in answers
        )
        pooled = mean(torch.cat([rows * weight, weight], dim=1) for rows, weight in weighed)
        return None if pooled is None else pooled[:, :-1] / pooled[:, -1:]


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

    def _aggregate(self, answers: Answers, draws: torch.Generator, before: Tensor | None) -> Tensor | None:
        return prior_corrected(answers, self.sharpness, self.floor)


class DawidSkene(Aggregation):
    """Posterior of the true class, given the clients' votes and their errors (Dawid and Skene, 1979).

    Expectation maximisation estimates the class shares and each client's confusion matrix from the votes of
    this exchange alone. A soft row votes for its most likely class, so one-hot rows lose nothing.
    """

    name: Literal["dawid-skene"] = "dawid-skene"
    iterations: int = Field(
        default=50, ge=1, description="maximum number of EM steps, fewer once nothing changes"
    )
    smoothing: Positive = Field(default=0.01, description="added to each count of a confusion matrix")

    def _aggregate(self, answers: Answers, draws: torch.Generator, before: Tensor | None) -> Tensor | None:
        votes = []
        classes = 0
        for rows, mask in answers:
            votes.append(torch.where(mask, rows.argmax(dim=1), -1))
            classes = rows.shape[1]
        if not votes:
            return None
        posterior, _ = dawid_skene(torch.stack(votes), classes, self.iterations, self.smoothing)
        return posterior


class Median(Aggregation):
    """Median of each entry, normalised (Yin et al., 2018, arXiv 1803.01498, there for gradients).

    Fewer than half of the clients cannot move it out of the range of the others. Under label skew it drops
    what only a few clients know. For one-hot rows, it is the class that more than half of the clients named,
    or the shares of votes if there is no such class.
    """

    name: Literal["median"] = "median"

    def _aggregate(self, answers: Answers, draws: torch.Generator, before: Tensor | None) -> Tensor | None:
        stacked = _stacked(answers)
        return None if stacked is None else median(*stacked)


class Trimmed(Aggregation):
    """Mean of each entry without its lowest and highest values, normalised (Yin et al., arXiv 1803.01498).

    For one-hot rows, these are shares of votes in which the first few votes for a class and the first few
    against it do not count, or the plain shares if nothing is left.
    """

    name: Literal["trimmed"] = "trimmed"
    share: float = Field(
        default=0.1, ge=0, lt=0.5, description="share of the answers dropped at each end, rounded down"
    )

    def _aggregate(self, answers: Answers, draws: torch.Generator, before: Tensor | None) -> Tensor | None:
        stacked = _stacked(answers)
        if stacked is None:
            return None
        rows, mask = stacked
        return trimmed(rows, mask, (self.share * mask.sum(dim=0).double()).long())


class Majority(Aggregation):
    """One-hot row of the class that most clients find likeliest; a tie keeps the previous class or is drawn.

    One-hot rows lose nothing.
    """

    name: Literal["majority"] = "majority"

    def _aggregate(self, answers: Answers, draws: torch.Generator, before: Tensor | None) -> Tensor | None:
        likeliest = ((one_hot(rows.argmax(dim=1), rows.shape[1]).float(), mask) for rows, mask in answers)
        shares = mean_of_answers(likeliest)
        return None if shares is None else majority(shares, before, draws)


def _stacked(answers: Answers) -> tuple[Tensor, Tensor] | None:
    """Return the rows (k, n, C) and masks (k, n) of k clients, or None if there are none."""
    rows, masks = [], []
    for client_rows, mask in answers:
        rows.append(client_rows)
        masks.append(mask)
    return (torch.stack(rows), torch.stack(masks)) if rows else None


AGGREGATIONS: dict[str, type[Aggregation]] = {
    kind.model_fields["name"].default: kind
    for kind in (
        Mean,
        Era,
        EnhancedEra,
        Confidence,
        PriorCorrected,
        DawidSkene,
        Median,
        Trimmed,
        Majority,
    )
}


def _chosen(wanted: Any) -> Aggregation:
    """Return the aggregation that a name or a table ``{ name, SETTINGS }`` stands for."""
    if isinstance(wanted, Aggregation):
        return wanted
    table = {"name": wanted} if isinstance(wanted, str) else wanted
    if not isinstance(table, dict) or "name" not in table:
        raise ValueError(f"must be one of {', '.join(AGGREGATIONS)}, or a table {{ name = NAME, SETTINGS }}")
    name = str(table["name"])
    if name not in AGGREGATIONS:
        guess = nearest(name, AGGREGATIONS)
        raise ValueError(f"{name!r} is not one of {', '.join(AGGREGATIONS)}.{guess}")
    kind = AGGREGATIONS[name]
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        raise ValueError(explain_errors(error, name, kind)) from None


AnyAggregation = Annotated[
    SerializeAsAny[Aggregation],
    BeforeValidator(_chosen),
    Field(description="how the server pools labels: a name, or a table { name, SETTINGS }"),
]

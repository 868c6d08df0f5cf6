"""How soft labels of many clients become one: the choices of the setting ``aggregation``.

Each takes rows (n, C) of probabilities, one tensor a client, in client order, and gives rows that add up
to 1. A row of zeros is a sample that the client does not answer: it counts neither for nor against
anything, and where nobody answers the pooled row is zeros too. Clients are known by these rows alone. What a
codec made one-hot is taken as it came.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field
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
from fedistill.config.schema import Positive, Section


class Aggregation(Section, ABC):
    """Base of all aggregations of soft labels; subclasses are final."""

    name: str
    _written: str = ""
    """The name that an experiment has for it, where that is not `name`: ``module:Class``."""

    def aggregate(
        self, rows: Iterable[Tensor], draws: torch.Generator, before: Tensor | None = None
    ) -> Tensor | None:
        """Pooled rows (n, C), zeros where no client answered, or None where no client replied.

        Args:
            rows: probabilities (n, C) of each client; zeros: no answer.
            draws: decides ties where there are any.
            before: one-hot rows (n, C) that stood for the same samples before, which win ties.
        """
        heard: Tensor | None = None

        def answers() -> Answers:
            nonlocal heard
            for one in rows:
                mask = (one != 0).any(dim=1)
                heard = mask if heard is None else heard | mask
                yield one, mask

        pooled = self._aggregate(answers(), draws, before)
        return None if pooled is None or heard is None else torch.where(heard[:, None], pooled, 0)

    @abstractmethod
    def _aggregate(self, answers: Answers, draws: torch.Generator, before: Tensor | None) -> Tensor | None:
        """As `aggregate`; what it says of samples that nobody answered does not matter."""


class Mean(Aggregation):
    """Arithmetic mean. Of one-hot rows: the shares of votes."""

    name: Literal["mean"] = "mean"

    def _aggregate(self, answers: Answers, draws: torch.Generator, before: Tensor | None) -> Tensor | None:
        return mean_of_answers(answers)


class Era(Aggregation):
    """Entropy reduction: softmax of the mean over a temperature (DS-FL, arXiv 2008.06180).

    Of one-hot rows: softmax of the shares of votes; at 0.1, ten clients' odds are e to the lead in votes.
    """

    name: Literal["era"] = "era"
    temperature: Positive = Field(default=0.1, description="T; below 1 sharpens the mean")

    def _aggregate(self, answers: Answers, draws: torch.Generator, before: Tensor | None) -> Tensor | None:
        average = mean_of_answers(answers)
        return None if average is None else entropy_reduced(average, self.temperature)


class EnhancedEra(Aggregation):
    """Enhanced entropy reduction: the mean to a power, normalised (SCARLET, arXiv 2504.19602).

    Of one-hot rows: shares of votes to that power; a class without a vote stays at 0.
    """

    name: Literal["enhanced-era"] = "enhanced-era"
    beta: Positive = Field(default=2.0, description="the power; 1 leaves the mean as it is")

    def _aggregate(self, answers: Answers, draws: torch.Generator, before: Tensor | None) -> Tensor | None:
        average = mean_of_answers(answers)
        return None if average is None else enhanced_era(average, self.beta)


class Confidence(Aggregation):
    """Mean weighted, at each sample, by how sure each client is of it.

    The weight goes from 0 for a uniform row to 1 for a one-hot one: ``1 - H / log C``, or the greatest
    probability, scaled. Clients are sure of what they have never seen, too. One-hot rows are all equally
    sure: the shares of votes.
    """

    name: Literal["confidence"] = "confidence"
    measure: Literal["entropy", "max"] = Field(
        default="entropy", description="what sureness is: low entropy, or a great probability"
    )

    def _aggregate(self, answers: Answers, draws: torch.Generator, before: Tensor | None) -> Tensor | None:
        # A little for all answers: those of which nobody is sure have a mean too.
        weighed = (
            (rows, ((confidences(rows, self.measure) + 1e-6) * mask)[:, None]) for rows, mask in answers
        )
        pooled = mean(torch.cat([rows * weight, weight], dim=1) for rows, weight in weighed)
        return None if pooled is None else pooled[:, :-1] / pooled[:, -1:]


class PriorCorrected(Aggregation):
    """Geometric mean of the clients' rows, each divided by that client's own class prior.

    So a class that a client names for want of others counts little, and a class that it does not know not
    at all. The prior is the mean of its rows in this exchange, which should be many and of all classes: a
    single row is its own prior and says nothing, and of a client that answers its own class alone (as in
    selective-fd and edge-fd) what it knows is divided out. Ours; division by a prior is the logit adjustment
    of Menon et al. (arXiv 2007.07314) after training, the geometric mean a logarithmic opinion pool (Genest
    and Zidek, 1986). That mean is over all who answer, so those who do not know a class dilute it;
    ``sharpness`` makes up for them: of 1, 3 and 10, 3 was best in benchmarks/skew.py. Of one-hot rows: a
    vote counts the more the rarer its class is among the client's votes, and a client that never names a
    class has no say in it.
    """

    name: Literal["prior-corrected"] = "prior-corrected"
    sharpness: Positive = Field(
        default=3.0,
        description="power of the mean: about the number of clients over that of those who know a class",
    )
    floor: float = Field(
        default=0.01, gt=0, lt=1, description="share of each row that is spread evenly, so that none is 0"
    )

    def _aggregate(self, answers: Answers, draws: torch.Generator, before: Tensor | None) -> Tensor | None:
        return prior_corrected(answers, self.sharpness, self.floor)


class DawidSkene(Aggregation):
    """Posterior of the true class, given clients' likeliest classes and errors (Dawid and Skene, 1979).

    Expectation maximisation estimates the class shares and, of each client, which class it names where which
    is true, from the votes of this exchange alone. Soft rows count by their likeliest class: one-hot rows
    lose nothing.
    """

    name: Literal["dawid-skene"] = "dawid-skene"
    iterations: int = Field(default=50, ge=1, description="at most; it stops where nothing changes")
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
    """Median of each entry, normalised (Yin et al., 2018, arXiv 1803.01498, there of gradients).

    Fewer than half of the clients cannot move it out of the range of the others. Under label skew it drops
    what few clients know. Of one-hot rows: the class that more than half named; where there is none, the
    shares of votes.
    """

    name: Literal["median"] = "median"

    def _aggregate(self, answers: Answers, draws: torch.Generator, before: Tensor | None) -> Tensor | None:
        came = _stacked(answers)
        return None if came is None else median(*came)


class Trimmed(Aggregation):
    """Mean of each entry without its least and greatest values, normalised (Yin et al., arXiv 1803.01498).

    Of one-hot rows: shares of votes in which the first few for a class, and the first few against it, do
    not count; where nothing is left, the plain shares.
    """

    name: Literal["trimmed"] = "trimmed"
    share: float = Field(
        default=0.1, ge=0, lt=0.5, description="of those who answer, rounded down, cut off at either end"
    )

    def _aggregate(self, answers: Answers, draws: torch.Generator, before: Tensor | None) -> Tensor | None:
        came = _stacked(answers)
        if came is None:
            return None
        rows, mask = came
        return trimmed(rows, mask, (self.share * mask.sum(dim=0).double()).long())


class Majority(Aggregation):
    """One-hot row of the class that most clients hold likeliest; ties as `functional.majority`.

    One-hot rows lose nothing.
    """

    name: Literal["majority"] = "majority"

    def _aggregate(self, answers: Answers, draws: torch.Generator, before: Tensor | None) -> Tensor | None:
        likeliest = ((one_hot(rows.argmax(dim=1), rows.shape[1]).float(), mask) for rows, mask in answers)
        shares = mean_of_answers(likeliest)
        return None if shares is None else majority(shares, before, draws)


def _stacked(answers: Answers) -> tuple[Tensor, Tensor] | None:
    """Rows (k, n, C) and masks (k, n) of k clients, or None where there is none."""
    came = list(answers)
    return (
        (torch.stack([rows for rows, _ in came]), torch.stack([mask for _, mask in came])) if came else None
    )

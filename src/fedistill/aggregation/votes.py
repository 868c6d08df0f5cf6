"""Label aggregators that count votes; soft rows vote for their most likely class."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from fedistill.aggregation.functional import Answers, dawid_skene, majority
from fedistill.aggregation.labels import Aggregation, Combined, ExchangeInfo, OfMean
from fedistill.config.schema import Positive


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

    def combine(self, answers: Answers, exchange: ExchangeInfo) -> Combined | None:
        votes = []
        classes = 0
        for rows, mask in answers:
            votes.append(torch.where(mask, rows.argmax(dim=1), -1))
            classes = rows.shape[1]
        if not votes:
            return None
        named = torch.stack(votes)
        posterior, confusion = dawid_skene(named, classes, self.iterations, self.smoothing)
        # Expected number of correct answers: each client's diagonal, weighted by the class shares.
        shares = posterior[(named >= 0).any(dim=0)].mean(dim=0)
        accuracy = torch.einsum("kcc,c->k", confusion, shares).nan_to_num()
        correct = accuracy * (named >= 0).sum(dim=1)
        return Combined(posterior, correct.tolist(), reliability=accuracy.clamp(0, 1).tolist())


class Majority(OfMean):
    """One-hot row of the class most clients find most likely; a tie keeps the old class or is drawn.

    One-hot rows lose nothing.
    """

    name: Literal["majority"] = "majority"

    def of_client(self, probs: Tensor) -> Tensor:
        return one_hot(probs.argmax(dim=1), probs.shape[1]).float()

    def of_mean(self, mean: Tensor, exchange: ExchangeInfo) -> Tensor:
        return majority(mean, exchange.before, exchange.draws)

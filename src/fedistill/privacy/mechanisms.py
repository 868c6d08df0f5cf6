"""What may add noise, and what is told of each: the settings of `[privacy]`."""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import one_hot

from fedistill.communication.messages.base import Message
from fedistill.communication.messages.labels import Logits, SoftLabels, Votes
from fedistill.config.section import Positive, Section
from fedistill.config.training import ResolvedTrain
from fedistill.privacy.accounting import (
    gaussian_epsilon,
    randomised_response_epsilon,
    sampled_gaussian_epsilon,
    stays,
)


class Mechanism(Section, ABC):
    """Base of all mechanisms; subclasses are final, and found by scanning."""

    kind: str
    delta: float = Field(
        default=1e-5, gt=0, lt=1, description="δ, at which ε is told; below one over the number of records"
    )

    unit: ClassVar[str]
    """What one neighbouring data set has and the other has not."""
    against: ClassVar[str]
    """Who may know all else."""
    source: ClassVar[str]

    @abstractmethod
    def bound(self, count: int, classes: int) -> float:
        """Return ε at `delta` after so many steps of training, or answers."""


class DpSgd(Mechanism):
    """Clients clip each record's gradient and add noise to their sum; batches are drawn at random."""

    kind: Literal["dp-sgd"] = "dp-sgd"
    noise: Positive | None = Field(
        default=None,
        description="standard deviation of the noise, in units of `clip`; default: found from `epsilon`",
    )
    epsilon: Positive | None = Field(
        default=None, description="the most that a client may have spent after the last round"
    )
    clip: Positive = Field(default=1.0, description="largest norm of a record's gradient")
    rate: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="probability of each record to be in a batch, in place of train.batch_size; an epoch has"
        " 1 / rate batches",
    )

    unit = "one record of one client, in its place an empty one that adds nothing"
    against = "the server, all other clients, and whoever gets a model"
    source = "Abadi et al., 2016, arXiv 1607.00133, algorithm 1; records are drawn independently"

    @model_validator(mode="after")
    def _one_of_two(self) -> "DpSgd":
        if self.noise is None and self.epsilon is None:
            raise ValueError("set `epsilon`, the budget, or `noise`, from which it follows")
        return self

    def steps(self, train: ResolvedTrain, epochs: int | None = None) -> int:
        """Return the steps of a local training with these settings, or with another number of epochs."""
        if train.steps is not None and epochs is None:
            return train.steps
        return (epochs or train.epochs) * math.ceil(1 / self.rate - 1e-9)

    def bound(self, count: int, classes: int) -> float:
        assert self.noise is not None
        return sampled_gaussian_epsilon(self.noise, self.rate, count, self.delta)


class LocalMechanism(Mechanism, ABC):
    """Base of mechanisms at a client that change each label which it sends of a public sample.

    An answer that was given is given again as it was, whatever the client has learned since.
    """

    unit = "all records of one client, in their place as many others"
    against = "the server, all other clients, and whoever gets a model"
    messages: ClassVar[tuple[type[Message], ...]]
    """Types of messages that it makes private."""

    @abstractmethod
    def randomised(self, rows: Tensor, message: type[Message], draws: torch.Generator) -> Tensor:
        """Return what is sent in place of labels (n, C)."""


class RandomisedResponse(LocalMechanism):
    """Each vote stays with a probability, or else is any other class: k-ary randomised response."""

    kind: Literal["randomised-response"] = "randomised-response"
    each: Positive = Field(description="ε of one vote; it stays with e^ε times the probability of another")
    messages = (Votes,)
    source = "Kairouz et al., 2014, arXiv 1407.1338, section 3 (k-ary randomised response)"

    def randomised(self, rows: Tensor, message: type[Message], draws: torch.Generator) -> Tensor:
        count, classes = rows.shape
        lies = torch.rand(count, generator=draws, dtype=torch.float64) >= stays(self.each, classes)
        others = torch.randint(1, classes, (count,), generator=draws)
        return one_hot((rows.argmax(dim=1) + lies * others) % classes, classes).float()

    def bound(self, count: int, classes: int) -> float:
        return randomised_response_epsilon(self.each, classes, count, self.delta)


class GaussianLabels(LocalMechanism):
    """Gaussian noise on each row of probabilities or logits; rows of logits are clipped first.

    Noisy probabilities become the nearest ones that are not below 0 and sum to 1.
    """

    kind: Literal["gaussian-labels"] = "gaussian-labels"
    noise: Positive = Field(
        description="standard deviation of the noise, in units of how far two rows may be apart"
    )
    clip: Positive = Field(default=10.0, description="largest norm of a row of logits")
    messages = (SoftLabels, Logits)
    source = "Dwork and Roth, 2014, appendix A (Gaussian mechanism)"

    def randomised(self, rows: Tensor, message: type[Message], draws: torch.Generator) -> Tensor:
        noise = torch.randn(rows.shape, generator=draws)
        if message is SoftLabels:  # two rows of probabilities are at most the root of 2 apart
            return nearest_probabilities(rows + math.sqrt(2) * self.noise * noise)
        norms = rows.norm(dim=1, keepdim=True)
        clipped: Tensor = rows * (self.clip / norms.clamp(min=1e-12)).clamp(max=1)
        return clipped + 2 * self.clip * self.noise * noise

    def bound(self, count: int, classes: int) -> float:
        return gaussian_epsilon(math.sqrt(count) / self.noise, self.delta)


class NoisyVotes(Mechanism):
    """The server adds Gaussian noise to the votes for each class, and names the class that then has most."""

    kind: Literal["noisy-votes"] = "noisy-votes"
    noise: Positive = Field(description="standard deviation of the noise, in votes")

    unit = "all records of one client, in their place as many others, which change one vote for each sample"
    against = "all other clients, and whoever gets a model; the server sees the votes, and is trusted"
    source = "Papernot et al., 2018, arXiv 1802.08908, section 4.1 (GNMax; the bound that needs no data)"

    def bound(self, count: int, classes: int) -> float:
        # A client that changes its vote takes one from a class and gives it to another.
        return gaussian_epsilon(math.sqrt(2 * count) / self.noise, self.delta)


def nearest_probabilities(rows: Tensor) -> Tensor:
    """Return the rows (n, C) of probabilities nearest to these, in Euclidean distance.

    Source: Duchi et al., 2008, Efficient projections onto the l1-ball, figure 1.
    """
    ordered = rows.double().sort(dim=1, descending=True).values
    over = (ordered.cumsum(dim=1) - 1) / torch.arange(1, rows.shape[1] + 1)
    last = (ordered > over).sum(dim=1, keepdim=True) - 1
    return (rows.double() - over.gather(1, last)).clamp(min=0).float()

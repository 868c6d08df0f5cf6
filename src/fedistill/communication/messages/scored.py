"""Messages with what a client knows of each public sample, which is sent once.

A score is a whole number from 0 to 63, exact under every codec; each method says what it stands for.
"""

from dataclasses import dataclass, field

from torch import Tensor

from fedistill.communication.kinds import Kind
from fedistill.communication.messages.base import Message, MessageContext, Numbers
from fedistill.communication.messages.integer_arrays import IntegerArray, Symbols
from fedistill.communication.messages.labels import SoftLabels
from fedistill.communication.messages.weights import TrainedWeights, check_samples, no_integers
from fedistill.communication.tensor_specs import TensorSpec

LEVELS = 64
"""Scores are below this."""


@dataclass(frozen=True)
class ScoredLabels(Message):
    """Class probabilities (n, C) of the public samples of a round, and scores (N,) of all public samples."""

    kind = Kind.SCORED_LABELS
    once = frozenset({"scores"})
    probs: Tensor
    scores: Tensor
    sampled_round: int

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return SoftLabels.specs(context, numbers)

    @classmethod
    def integer_arrays(cls, context: MessageContext, numbers: Numbers) -> dict[str, IntegerArray]:
        return {"scores": Symbols(context.population, LEVELS)}


@dataclass(frozen=True)
class ScoredWeights(Message):
    """`TrainedWeights` with scores (N,) of all public samples."""

    kind = Kind.SCORED_WEIGHTS
    once = frozenset({"scores"})
    values: Tensor
    scores: Tensor
    samples: int
    integers: Tensor = field(default_factory=no_integers)

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return TrainedWeights.specs(context, numbers)

    @classmethod
    def integer_arrays(cls, context: MessageContext, numbers: Numbers) -> dict[str, IntegerArray]:
        scores: dict[str, IntegerArray] = {"scores": Symbols(context.population, LEVELS)}
        return scores | TrainedWeights.integer_arrays(context, numbers)

    def check(self) -> None:
        check_samples(self.samples)

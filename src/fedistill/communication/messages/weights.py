"""Messages with the weights of a model."""

import math
from dataclasses import dataclass

from torch import Tensor

from fedistill.communication.kinds import Kind
from fedistill.communication.messages.base import Message, MessageContext, Numbers
from fedistill.communication.tensor_specs import Content, TensorSpec
from fedistill.errors import FrameError

MOST_SAMPLES = 1 << 40


def check_samples(samples: int) -> None:
    """Check the number of samples that weights were trained on, by which the server weights them.

    Raises:
        FrameError: it is not from 1 to `MOST_SAMPLES`.
    """
    if not 1 <= samples <= MOST_SAMPLES:
        raise FrameError(f"weights claim to be trained on {samples} samples, not 1 to {MOST_SAMPLES}")


@dataclass(frozen=True)
class Weights(Message):
    """All weights of a model, flat (P,)."""

    kind = Kind.WEIGHTS
    values: Tensor

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return {"values": TensorSpec(Content.WEIGHTS, (context.parameters,), context.parts)}


@dataclass(frozen=True)
class TrainedWeights(Message):
    """All weights of a model, flat (P,), and the number of samples that they were trained on."""

    kind = Kind.WEIGHTS
    values: Tensor
    samples: int

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return Weights.specs(context, numbers)

    def check(self) -> None:
        check_samples(self.samples)


@dataclass(frozen=True)
class CountedWeights(Message):
    """Weights, flat (P,), and the number of samples of each class (1, C) that they were trained on."""

    kind = Kind.WEIGHTS
    values: Tensor
    counts: Tensor

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return {
            **Weights.specs(context, numbers),
            "counts": TensorSpec(Content.SCORES, (1, context.classes)),
        }

    def check(self) -> None:
        # A lossy codec may round all of an honest client's counts to 0.
        total = float(self.counts.double().clamp(min=0).sum())
        if total > MOST_SAMPLES:
            raise FrameError(f"weights claim to be trained on {total:.3g} samples, more than {MOST_SAMPLES}")


@dataclass(frozen=True)
class GeneratorWeights(Message):
    """Weights, flat (P,), those of a generator of features, flat, and the share of each class (1, C)."""

    kind = Kind.GENERATOR
    values: Tensor
    generator: Tensor
    shares: Tensor

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        count = sum(math.prod(shape) for shape in context.generator)
        return {
            **Weights.specs(context, numbers),
            "generator": TensorSpec(Content.WEIGHTS, (count,), context.generator),
            "shares": TensorSpec(Content.SCORES, (1, context.classes)),
        }

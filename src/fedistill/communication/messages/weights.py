"""Messages with the weights of a model.

Floating-point buffers, such as the statistics of batch norm, are the last of the weights. They are coded as
fp32 whatever the arm's codec is: rounded or as a difference, a variance could become negative. Integers are
coded as differences to those that the model starts with, and take no bytes where they are the same.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fedistill.communication.kinds import Kind
from fedistill.communication.messages.base import Message, MessageContext, Numbers
from fedistill.communication.messages.integer_arrays import Differences, IntegerArray
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


def no_integers() -> Tensor:
    """Return int64 (0,), the integers of a model that has none."""
    return torch.zeros(0, dtype=torch.int64)


class CarriesWeights(Protocol):
    """A message with all weights (P,) and integers (I,) of a model."""

    @property
    def values(self) -> Tensor: ...

    @property
    def integers(self) -> Tensor: ...


@dataclass(frozen=True)
class Weights(Message):
    """All weights of a model, flat (P,), and the integers in its buffers, flat (I,)."""

    kind = Kind.WEIGHTS
    values: Tensor
    integers: Tensor = field(default_factory=no_integers)

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        shape = (context.parameters,)
        return {"values": TensorSpec(Content.WEIGHTS, shape, context.parts, plain=context.buffers)}

    @classmethod
    def integer_arrays(cls, context: MessageContext, numbers: Numbers) -> dict[str, IntegerArray]:
        return {"integers": Differences(context.integers)}


@dataclass(frozen=True)
class TrainedWeights(Message):
    """All weights (P,) and integers (I,) of a model, and the number of samples that they were trained on."""

    kind = Kind.WEIGHTS
    values: Tensor
    samples: int
    integers: Tensor = field(default_factory=no_integers)

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return Weights.specs(context, numbers)

    @classmethod
    def integer_arrays(cls, context: MessageContext, numbers: Numbers) -> dict[str, IntegerArray]:
        return Weights.integer_arrays(context, numbers)

    def check(self) -> None:
        check_samples(self.samples)


@dataclass(frozen=True)
class CountedWeights(Message):
    """Weights (P,) and integers (I,), and the samples of each class (1, C) that they were trained on."""

    kind = Kind.WEIGHTS
    values: Tensor
    counts: Tensor
    integers: Tensor = field(default_factory=no_integers)

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return {
            **Weights.specs(context, numbers),
            "counts": TensorSpec(Content.SCORES, (1, context.classes), largest=MOST_SAMPLES),
        }

    @classmethod
    def integer_arrays(cls, context: MessageContext, numbers: Numbers) -> dict[str, IntegerArray]:
        return Weights.integer_arrays(context, numbers)

    def check(self) -> None:
        # A lossy codec may round all of an honest client's counts to 0.
        total = float(self.counts.double().clamp(min=0).sum())
        if total > MOST_SAMPLES:
            raise FrameError(f"weights claim to be trained on {total:.3g} samples, more than {MOST_SAMPLES}")


@dataclass(frozen=True)
class GeneratorWeights(Message):
    """Weights (P,) and integers (I,), the weights of a generator, and the share of each class (1, C)."""

    kind = Kind.GENERATOR
    values: Tensor
    generator: Tensor
    shares: Tensor
    integers: Tensor = field(default_factory=no_integers)

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        count = sum(math.prod(shape) for shape in context.generator)
        return {
            **Weights.specs(context, numbers),
            "generator": TensorSpec(Content.WEIGHTS, (count,), context.generator),
            "shares": TensorSpec(Content.SCORES, (1, context.classes)),
        }

    @classmethod
    def integer_arrays(cls, context: MessageContext, numbers: Numbers) -> dict[str, IntegerArray]:
        return Weights.integer_arrays(context, numbers)

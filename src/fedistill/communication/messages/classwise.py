"""Messages with one output or one feature vector per class."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedistill.communication.kinds import Kind
from fedistill.communication.messages.base import Message, MessageContext, Numbers
from fedistill.communication.messages.integer_arrays import IntegerArray, Subset
from fedistill.communication.messages.weights import Weights, check_samples, no_integers
from fedistill.communication.tensor_specs import Content, TensorSpec

MOST_OUTPUT = 100.0
"""A mean probability is at most 1; a codec that rounds to few levels may make it several times as large."""


@dataclass(frozen=True)
class ClassOutputs(Message):
    """Mean softmax output for each class, (C, C); a row of zeros means that this class has none."""

    kind = Kind.CLASS_OUTPUTS
    means: Tensor

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        shape = (context.classes, context.classes)
        return {"means": TensorSpec(Content.SCORES, shape, largest=MOST_OUTPUT)}


@dataclass(frozen=True)
class Prototypes(Message):
    """A feature vector (m, d) for each of the classes (m,), which are in ascending order; ``present`` is m.

    A class that is absent costs no bytes. A vector of zeros, which a ReLU may produce, is a vector like any
    other.
    """

    kind = Kind.PROTOTYPES
    varies = True
    vectors: Tensor
    classes: Tensor
    present: int

    @classmethod
    def integer_arrays(cls, context: MessageContext, numbers: Numbers) -> dict[str, IntegerArray]:
        return {"classes": Subset(numbers["present"], context.classes)}

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return {"vectors": TensorSpec(Content.SCORES, (len(numbers["classes"]), context.width))}

    @classmethod
    def longest(cls, context: MessageContext) -> Numbers:
        return {"present": context.classes}

    @classmethod
    def of(cls, table: Tensor, present: Tensor) -> "Prototypes":
        """Make a message of those rows of a table (C, d) that a mask (C,) says are present."""
        return cls(table[present], present.nonzero().flatten(), int(present.sum()))

    def table(self, classes: int) -> tuple[Tensor, Tensor]:
        """Return the table (C, d), with zeros for absent classes, and the mask (C,): the inverse of `of`."""
        present = torch.zeros(classes, dtype=torch.bool)
        present[self.classes] = True
        table = torch.zeros(classes, self.vectors.shape[1])
        table[present] = self.vectors
        return table, present


@dataclass(frozen=True)
class WeightsAndOutputs(Message):
    """Weights (P,), integers (I,), the samples that they were trained on, and `ClassOutputs` (C, C)."""

    kind = Kind.WEIGHTS_AND_OUTPUTS
    values: Tensor
    means: Tensor
    samples: int
    integers: Tensor = field(default_factory=no_integers)

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return {**Weights.specs(context, numbers), **ClassOutputs.specs(context, numbers)}

    @classmethod
    def integer_arrays(cls, context: MessageContext, numbers: Numbers) -> dict[str, IntegerArray]:
        return Weights.integer_arrays(context, numbers)

    def check(self) -> None:
        check_samples(self.samples)

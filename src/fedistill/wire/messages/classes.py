"""Messages of classes: an output, or a feature vector, for each."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedistill.errors import FrameError
from fedistill.wire.codec import Content, Spec
from fedistill.wire.frame import Kind
from fedistill.wire.message import Message, Numbers, Sizes
from fedistill.wire.messages.weights import Weights


@dataclass(frozen=True)
class ClassOutputs(Message):
    """Mean output for each class, (C, C); a row of zeros says that there is none for this class."""

    kind = Kind.CLASS_OUTPUTS
    means: Tensor

    @classmethod
    def specs(cls, sizes: Sizes, numbers: Numbers) -> dict[str, Spec]:
        return {"means": Spec(Content.SCORES, (sizes.classes, sizes.classes))}


@dataclass(frozen=True)
class Prototypes(Message):
    """A feature vector for each of some classes, (m, d), in order of their numbers.

    Bit c of ``present`` says that class c is among them: one byte for seven classes. A class that is not
    costs nothing more, and a vector of zeros, which a ReLU may well give, is a vector like any other.
    """

    MOST_CLASSES: ClassVar[int] = 63
    """The bits of a whole number in a frame."""

    kind = Kind.PROTOTYPES
    varies = True
    vectors: Tensor
    present: int

    @classmethod
    def specs(cls, sizes: Sizes, numbers: Numbers) -> dict[str, Spec]:
        present = numbers["present"]
        if present >> sizes.classes:
            raise FrameError(
                f"prototypes of class {present.bit_length() - 1} came of {sizes.classes} classes"
            )
        return {"vectors": Spec(Content.SCORES, (present.bit_count(), sizes.width))}

    @classmethod
    def longest(cls, sizes: Sizes) -> Numbers:
        return {"present": (1 << min(sizes.classes, cls.MOST_CLASSES)) - 1}

    @classmethod
    def of(cls, table: Tensor, present: Tensor) -> "Prototypes":
        """The rows of a table (C, d) that are present, (C,)."""
        mask = sum(1 << place for place in present.nonzero().flatten().tolist())
        return cls(table[present], mask)

    def table(self, classes: int) -> tuple[Tensor, Tensor]:
        """The inverse of `of`; rows that are not present are zeros."""
        present = torch.tensor([bool(self.present >> place & 1) for place in range(classes)])
        table = torch.zeros(classes, self.vectors.shape[1])
        table[present] = self.vectors
        return table, present


@dataclass(frozen=True)
class WeightsAndOutputs(Message):
    """All weights of one model, flat (P,), the samples behind them, and `ClassOutputs`, (C, C)."""

    kind = Kind.WEIGHTS_AND_OUTPUTS
    values: Tensor
    means: Tensor
    samples: int

    @classmethod
    def specs(cls, sizes: Sizes, numbers: Numbers) -> dict[str, Spec]:
        return {**Weights.specs(sizes, numbers), **ClassOutputs.specs(sizes, numbers)}

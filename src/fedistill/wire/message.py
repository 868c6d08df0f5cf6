"""Typed messages: what a method sends, as tensors and whole numbers.

A message is a frozen dataclass. Its tensors are coded by the arm's codec, its numbers are varints. The
receiver says how large it expects each tensor to be (`Sizes`); nothing in a frame can change that.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedistill.errors import FrameError
from fedistill.wire.codec import Classes, Content, Spec
from fedistill.wire.frame import Kind


@dataclass(frozen=True)
class Sizes:
    """What both sides know of a message before it is sent.

    Attributes:
        classes: C, the number of classes.
        parameters: P, the numbers in the weights of the model that travels (0: none travels).
        samples: n, the public samples that a message speaks of (0: none), or may at most speak of.
        parts: shapes of the tensors that the travelling weights are made of.
        population: N, the samples of the public set.
        drawn: from a round to the (n,) places of its public samples.
        since: from two turns to the places of the samples whose label came after the first, and by the
            second.
        width: d, the length of a feature vector.
        generator: shapes of the tensors that a generator of features is made of.
    """

    classes: int
    parameters: int = 0
    samples: int = 0
    parts: tuple[tuple[int, ...], ...] = ()
    population: int = 0
    drawn: Callable[[int], Classes] | None = None
    since: Callable[[int, int], Classes] | None = None
    width: int = 0
    generator: tuple[tuple[int, ...], ...] = ()


Numbers = Mapping[str, int]


@dataclass(frozen=True)
class Message:
    """Base of all messages; subclasses are frozen dataclasses and final."""

    kind: ClassVar[Kind]
    caches: ClassVar[bool] = False
    """Speaks of all public samples, and only rows that the receiver does not hold are sent."""

    @classmethod
    def specs(cls, sizes: Sizes, numbers: Numbers) -> dict[str, Spec]:
        """What is sent of each tensor, given the message's whole numbers.

        ``numbers`` also has ``held``, the turn that the receiver's cache is of, where the message caches.
        """
        raise NotImplementedError

    @classmethod
    def longest(cls, sizes: Sizes) -> Numbers:
        """The whole numbers of a message of full size."""
        return dict.fromkeys(cls.number_names(), 1)

    @classmethod
    def names(cls) -> list[str]:
        """The fields, in the order in which they are sent."""
        return [field.name for field in fields(cls)]

    @classmethod
    def number_names(cls) -> list[str]:
        return [field.name for field in fields(cls) if field.type is int]

    def tensors(self) -> dict[str, Tensor]:
        whole = self.number_names()
        return {name: getattr(self, name) for name in self.names() if name not in whole}

    def numbers(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.number_names()}


@dataclass(frozen=True)
class Weights(Message):
    """All weights of one model, flat (P,)."""

    kind = Kind.WEIGHTS
    values: Tensor

    @classmethod
    def specs(cls, sizes: Sizes, numbers: Numbers) -> dict[str, Spec]:
        return {"values": Spec(Content.WEIGHTS, (sizes.parameters,), sizes.parts)}


@dataclass(frozen=True)
class TrainedWeights(Message):
    """All weights of one model, flat (P,), and the number of samples that they were trained on."""

    kind = Kind.WEIGHTS
    values: Tensor
    samples: int

    @classmethod
    def specs(cls, sizes: Sizes, numbers: Numbers) -> dict[str, Spec]:
        return Weights.specs(sizes, numbers)


@dataclass(frozen=True)
class ClassOutputs(Message):
    """Mean output for each class, (C, C); a row of zeros says that there is none for this class."""

    kind = Kind.CLASS_OUTPUTS
    means: Tensor

    @classmethod
    def specs(cls, sizes: Sizes, numbers: Numbers) -> dict[str, Spec]:
        return {"means": Spec(Content.SCORES, (sizes.classes, sizes.classes))}


@dataclass(frozen=True)
class Logits(Message):
    """Class scores before the softmax on the public samples of round ``drawn``, (n, C)."""

    kind = Kind.LOGITS
    scores: Tensor
    drawn: int

    @classmethod
    def specs(cls, sizes: Sizes, numbers: Numbers) -> dict[str, Spec]:
        return {"scores": _of_public(Content.SCORES, sizes, numbers)}


@dataclass(frozen=True)
class SoftLabels(Message):
    """Class probabilities on the public samples of round ``drawn``, (n, C)."""

    kind = Kind.SOFT_LABELS
    probs: Tensor
    drawn: int

    @classmethod
    def specs(cls, sizes: Sizes, numbers: Numbers) -> dict[str, Spec]:
        return {"probs": _of_public(Content.PROBS, sizes, numbers)}


@dataclass(frozen=True)
class Votes(Message):
    """One class for each public sample of round ``drawn``, as one-hot rows (n, C)."""

    kind = Kind.VOTES
    probs: Tensor
    drawn: int

    @classmethod
    def specs(cls, sizes: Sizes, numbers: Numbers) -> dict[str, Spec]:
        return SoftLabels.specs(sizes, numbers)


@dataclass(frozen=True)
class FreshLabels(Message):
    """Class probabilities of all public samples that have some by turn ``turn``, (N, C).

    Sent are the rows that the receiver does not hold: those that changed since the turn that its memory
    is of. It gets them all: what came, and the others as it has them.
    """

    kind = Kind.FRESH_LABELS
    caches = True
    probs: Tensor
    turn: int

    @classmethod
    def specs(cls, sizes: Sizes, numbers: Numbers) -> dict[str, Spec]:
        return {"probs": _since(sizes, numbers["held"], numbers["turn"])}


@dataclass(frozen=True)
class DueLabels(Message):
    """Class probabilities of the public samples that are due in turn ``turn``, (m, C)."""

    kind = Kind.DUE_LABELS
    probs: Tensor
    turn: int

    @classmethod
    def specs(cls, sizes: Sizes, numbers: Numbers) -> dict[str, Spec]:
        return {"probs": _since(sizes, numbers["turn"] - 1, numbers["turn"])}


@dataclass(frozen=True)
class Prototypes(Message):
    """A feature vector for each of some classes, (m, d), in order of their numbers.

    Bit c of ``present`` says that class c is among them: one byte for seven classes. A class that is not
    costs nothing more, and a vector of zeros, which a ReLU may well give, is a vector like any other.
    """

    MOST_CLASSES: ClassVar[int] = 63
    """The bits of a whole number in a frame."""

    kind = Kind.PROTOTYPES
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


@dataclass(frozen=True)
class CountedWeights(Message):
    """Weights, flat (P,), and the number of samples of each class that they were trained on, (1, C)."""

    kind = Kind.WEIGHTS
    values: Tensor
    counts: Tensor

    @classmethod
    def specs(cls, sizes: Sizes, numbers: Numbers) -> dict[str, Spec]:
        return {
            **Weights.specs(sizes, numbers),
            "counts": Spec(Content.SCORES, (1, sizes.classes)),
        }


@dataclass(frozen=True)
class GeneratorWeights(Message):
    """Weights, flat (P,), those of a generator of features, flat, and the classes' shares, (1, C)."""

    kind = Kind.GENERATOR
    values: Tensor
    generator: Tensor
    shares: Tensor

    @classmethod
    def specs(cls, sizes: Sizes, numbers: Numbers) -> dict[str, Spec]:
        count = sum(math.prod(shape) for shape in sizes.generator)
        return {
            **Weights.specs(sizes, numbers),
            "generator": Spec(Content.WEIGHTS, (count,), sizes.generator),
            "shares": Spec(Content.SCORES, (1, sizes.classes)),
        }


def contents(kind: type[Message]) -> set[Content]:
    """What the tensors of a message are."""
    numbers = {"held": 0, **dict.fromkeys(kind.number_names(), 0)}
    return {spec.content for spec in kind.specs(Sizes(classes=2), numbers).values()}


def example(kind: type[Message], sizes: Sizes) -> Message:
    """Return a message of full size with random numbers in it, to foretell how long one will be."""
    generator = torch.Generator().manual_seed(0)
    numbers = kind.longest(sizes)
    values: dict[str, Any] = dict(numbers)
    for name, spec in kind.specs(sizes, {"held": 0, **numbers}).items():
        rows = sizes.population if kind.caches else spec.shape[0]
        noise = torch.randn(rows, *spec.shape[1:], generator=generator)
        values[name] = noise.softmax(dim=1) if spec.content is Content.PROBS else noise
    return kind(**values)


def _of_public(content: Content, sizes: Sizes, numbers: Numbers) -> Spec:
    rows = None if sizes.drawn is None else sizes.drawn(numbers["drawn"])
    population = sizes.population if rows is not None else 0
    return Spec(content, (sizes.samples, sizes.classes), rows=rows, population=population)


def _since(sizes: Sizes, held: int, turn: int) -> Spec:
    if sizes.since is None:
        return Spec(Content.PROBS, (0, sizes.classes))
    rows = sizes.since(held, turn)
    return Spec(Content.PROBS, (len(rows), sizes.classes), rows=rows, population=sizes.population)

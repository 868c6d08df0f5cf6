"""Messages of labels: what a side says of public samples."""

from dataclasses import dataclass, replace

from torch import Tensor

from fedistill.communication.kinds import Kind
from fedistill.communication.messages.base import Message, Numbers, Sizes
from fedistill.communication.messages.integer_arrays import Subset, Whole
from fedistill.communication.tensor_specs import Classes, Content, Spec


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
class ChosenLabels(Message):
    """Class probabilities (k, C) on those public samples of round ``drawn`` that the sender chose.

    ``places`` (k,) are theirs among the n samples of that round, in order; ``chosen`` is k.
    """

    kind = Kind.CHOSEN_LABELS
    varies = True
    probs: Tensor
    places: Tensor
    drawn: int
    chosen: int

    @classmethod
    def wholes(cls, sizes: Sizes, numbers: Numbers) -> dict[str, Whole]:
        return {"places": Subset(numbers["chosen"], sizes.samples)}

    @classmethod
    def specs(cls, sizes: Sizes, numbers: Numbers) -> dict[str, Spec]:
        return {"probs": _of_chosen(sizes, numbers)}

    @classmethod
    def longest(cls, sizes: Sizes) -> Numbers:
        return {"drawn": 1, "chosen": sizes.samples}


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


def _of_public(content: Content, sizes: Sizes, numbers: Numbers) -> Spec:
    rows = None if sizes.drawn is None else sizes.drawn(numbers["drawn"])
    population = sizes.population if rows is not None else 0
    return Spec(content, (sizes.samples, sizes.classes), rows=rows, population=population)


def _of_chosen(sizes: Sizes, numbers: Numbers) -> Spec:
    places: Classes = numbers["places"]
    whole = _of_public(Content.PROBS, sizes, numbers)
    rows = None if whole.rows is None else whole.rows[places]
    return replace(whole, shape=(len(places), sizes.classes), rows=rows)


def _since(sizes: Sizes, held: int, turn: int) -> Spec:
    if sizes.since is None:
        return Spec(Content.PROBS, (0, sizes.classes))
    rows = sizes.since(held, turn)
    return Spec(Content.PROBS, (len(rows), sizes.classes), rows=rows, population=sizes.population)

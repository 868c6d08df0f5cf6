"""Messages with labels of public samples."""

from dataclasses import dataclass, replace

from torch import Tensor

from fedistill.communication.kinds import Kind
from fedistill.communication.messages.base import Message, MessageContext, Numbers
from fedistill.communication.messages.integer_arrays import IntegerArray, Subset
from fedistill.communication.tensor_specs import Classes, Content, TensorSpec


@dataclass(frozen=True)
class Logits(Message):
    """Logits (n, C) of the public samples of round ``sampled_round``."""

    kind = Kind.LOGITS
    scores: Tensor
    sampled_round: int

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return {"scores": _of_public(Content.SCORES, context, numbers)}


@dataclass(frozen=True)
class SoftLabels(Message):
    """Class probabilities (n, C) of the public samples of round ``sampled_round``."""

    kind = Kind.SOFT_LABELS
    probs: Tensor
    sampled_round: int

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return {"probs": _of_public(Content.PROBS, context, numbers)}


@dataclass(frozen=True)
class Votes(Message):
    """One class for each of the public samples of round ``sampled_round``, as one-hot rows (n, C)."""

    kind = Kind.VOTES
    probs: Tensor
    sampled_round: int

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return SoftLabels.specs(context, numbers)


@dataclass(frozen=True)
class ChosenLabels(Message):
    """Class probabilities (k, C) of those public samples of round ``sampled_round`` that the sender chose.

    ``places`` (k,) are their positions among the n samples of that round, ascending; ``chosen`` is k.
    """

    kind = Kind.CHOSEN_LABELS
    varies = True
    probs: Tensor
    places: Tensor
    sampled_round: int
    chosen: int

    @classmethod
    def integer_arrays(cls, context: MessageContext, numbers: Numbers) -> dict[str, IntegerArray]:
        return {"places": Subset(numbers["chosen"], context.samples)}

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return {"probs": _of_chosen(context, numbers)}

    @classmethod
    def longest(cls, context: MessageContext) -> Numbers:
        return {"sampled_round": 1, "chosen": context.samples}


@dataclass(frozen=True)
class FreshLabels(Message):
    """Class probabilities (N, C) of all public samples that have been labelled by turn ``turn``.

    Only the rows are sent that changed since the turn of the receiver's cache. The receiver gets all rows:
    those that were sent, and the others from its cache.
    """

    kind = Kind.FRESH_LABELS
    caches = True
    probs: Tensor
    turn: int

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return {"probs": _since(context, numbers["held"], numbers["turn"])}


@dataclass(frozen=True)
class DueLabels(Message):
    """Class probabilities (m, C) of the public samples that are due in turn ``turn``."""

    kind = Kind.DUE_LABELS
    probs: Tensor
    turn: int

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return {"probs": _since(context, numbers["turn"] - 1, numbers["turn"])}


def _of_public(content: Content, context: MessageContext, numbers: Numbers) -> TensorSpec:
    rows = None if context.sampled is None else context.sampled(numbers["sampled_round"])
    population = context.population if rows is not None else 0
    return TensorSpec(content, (context.samples, context.classes), rows=rows, population=population)


def _of_chosen(context: MessageContext, numbers: Numbers) -> TensorSpec:
    places: Classes = numbers["places"]
    whole = _of_public(Content.PROBS, context, numbers)
    rows = None if whole.rows is None else whole.rows[places]
    return replace(whole, shape=(len(places), context.classes), rows=rows)


def _since(context: MessageContext, held: int, turn: int) -> TensorSpec:
    if context.since is None:
        return TensorSpec(Content.PROBS, (0, context.classes))
    rows = context.since(held, turn)
    return TensorSpec(Content.PROBS, (len(rows), context.classes), rows=rows, population=context.population)

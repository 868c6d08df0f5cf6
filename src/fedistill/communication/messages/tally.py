"""Messages of the method `tally-like`: in most exchanges votes and labels, in the others weights.

Votes and labels are coded given what the receiver holds of the same samples, as the array of `given_classes`.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedistill.communication.kinds import Kind
from fedistill.communication.messages.base import Message, MessageContext, Numbers
from fedistill.communication.messages.integer_arrays import IntegerArray, Symbols
from fedistill.communication.messages.weights import Weights, no_integers
from fedistill.communication.tensor_specs import Content, TensorSpec
from fedistill.errors import FrameError


@dataclass(frozen=True)
class TallyRequest(Message):
    """What the server sends in an exchange of weights, or in one of votes.

    Attributes:
        values: (P,) the merged model in an exchange of weights, else (0,).
        merges: 1 for an exchange of weights, 0 for one of votes.
        labelled: 1 if it has the labels, else 0.
        base: the round of the receiver's votes that the labels are coded given, 0 for none.
        labels: (n,) or (0,), see `given_classes`.
        integers: (I,) of the merged model.
    """

    kind = Kind.TALLY_REQUEST
    varies = True
    values: Tensor
    merges: int
    labelled: int
    base: int
    labels: Tensor
    integers: Tensor = field(default_factory=no_integers)

    @classmethod
    def integer_arrays(cls, context: MessageContext, numbers: Numbers) -> dict[str, IntegerArray]:
        _check_flags(numbers["merges"], numbers["labelled"])
        return {
            "labels": Symbols(numbers["labelled"] * context.samples, context.classes + 1),
            **Weights.integer_arrays(context, numbers),
        }

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return _weights(context, numbers)

    @classmethod
    def longest(cls, context: MessageContext) -> Numbers:
        return {"merges": 1, "labelled": 1, "base": 0}


@dataclass(frozen=True)
class TallyReply(Message):
    """A client's answer to a `TallyRequest`.

    Attributes:
        values: (P,) the trained model in an exchange of weights, else (0,).
        merges: 1 for an exchange of weights, 0 for one of votes.
        votes: (n,) in an exchange of votes, given the labels of the request (`given_classes`); else (0,).
        integers: (I,) of the trained model.
    """

    kind = Kind.TALLY_REPLY
    varies = True
    values: Tensor
    merges: int
    votes: Tensor
    integers: Tensor = field(default_factory=no_integers)

    @classmethod
    def integer_arrays(cls, context: MessageContext, numbers: Numbers) -> dict[str, IntegerArray]:
        _check_flags(numbers["merges"])
        return {
            "votes": Symbols(0 if numbers["merges"] else context.samples, context.classes + 1),
            **Weights.integer_arrays(context, numbers),
        }

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return _weights(context, numbers)

    @classmethod
    def longest(cls, context: MessageContext) -> Numbers:
        return {"merges": 1}


def given_classes(classes: Tensor, held: Tensor | None) -> Tensor:
    """Return 0 where classes (n,) are those that the receiver holds (n,), and 1 + the class elsewhere."""
    return 1 + classes if held is None else torch.where(classes == held, 0, 1 + classes)


def classes_given(coded: Tensor, held: Tensor | None) -> Tensor:
    """Return the classes (n,) that `given_classes` coded.

    Raises:
        FrameError: some are those that the receiver holds, but it holds none.
    """
    if held is not None:
        return torch.where(coded == 0, held, coded - 1)
    if bool((coded == 0).any()):
        raise FrameError("classes are coded as equal to others, but there are no others")
    return coded - 1


def _check_flags(*flags: int) -> None:
    if max(flags) > 1:
        raise FrameError(f"the numbers that say what a message has are {flags}, not 0 or 1")


def _weights(context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
    if not numbers["merges"]:
        return {"values": TensorSpec(Content.WEIGHTS, (0,))}
    return Weights.specs(context, numbers)

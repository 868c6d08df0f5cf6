"""Messages of methods that train and send a random part of the weights at a time.

Merges are numbered from 1. Which weights are trained for a merge follows from its number alone
(`MessageContext.trained`), so that no places are sent. A change is a whole number of steps; a message has
these numbers, of no more than 8 bits, under a fitted model, and the step as 16 bits.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedistill.communication.kinds import Kind
from fedistill.communication.messages.base import Message, MessageContext, Numbers
from fedistill.communication.messages.integer_arrays import Fitted, IntegerArray, Symbols
from fedistill.communication.tensor_specs import TensorSpec
from fedistill.errors import FrameError

MOST_STEPS = 127
"""A change is at most so many steps."""
STEPS = 1 << 16
"""Steps are below this: the upper half of a float32's bits."""

MOST_CHANGE = 10.0
"""Of a weight in one merge: more would be a mean of this client's alone, from which others train to NaN."""


class Chain(Protocol):
    """A request that tells of the merges that its receiver has missed (`MaskedRequest`)."""

    @property
    def turn(self) -> int: ...
    @property
    def known(self) -> int: ...
    @property
    def steps(self) -> Tensor: ...
    @property
    def changes(self) -> Tensor: ...


def chain_arrays(context: MessageContext, numbers: Numbers) -> dict[str, IntegerArray]:
    """Return the arrays of the changes that a receiver lacks: those after ``known``, before ``turn``.

    Raises:
        FrameError: the receiver would know more than has happened.
    """
    known, turn = numbers["known"], numbers["turn"]
    if known >= max(turn, 1):
        raise FrameError(f"a request for merge {turn} says that the receiver knows {known}")
    counts = [_trained(context, merge) for merge in range(known + 1, turn)]
    return {"steps": _halves(len(counts)), "changes": _changes(sum(counts))}


def change_arrays(context: MessageContext, numbers: Numbers) -> dict[str, IntegerArray]:
    """Return the array of a client's changes for the merge ``turn``; of none if it is 0."""
    turn = numbers["turn"]
    return {"changes": _changes(_trained(context, turn) if turn else 0)}


def check_step(step: int) -> None:
    """Check the step of a client's changes.

    Raises:
        FrameError: no finite number >= 0 has these bits.
    """
    if step >= STEPS or not 0 <= step_size(step) < float("inf"):
        raise FrameError(f"{step} is no step of changes")


def check_changes(step: int, changes: Tensor) -> None:
    """Check the changes of weights (m,) in steps that a client sends.

    Raises:
        FrameError: the step is none, or a weight would change by more than `MOST_CHANGE`.
    """
    check_step(step)
    change = step_size(step) * float(changes.abs().max()) if len(changes) else 0.0
    if change > MOST_CHANGE:
        raise FrameError(f"it changes a weight by {change:.3g}; {MOST_CHANGE:.3g} is the most")


def step_bits(size: float) -> int:
    """Return the nearest step that can be sent, as an integer, of a finite number >= 0."""
    bits = int(np.float32(size).view(np.uint32)) + 0x8000 >> 16
    return min(bits, 0x7F7F)


def step_size(step: int) -> float:
    """Return the step that an integer below `STEPS` stands for."""
    return float(np.array([step << 16], np.uint32).view(np.float32)[0])


def _halves(count: int) -> IntegerArray:
    """Return the array (2 count,) of as many steps: the upper byte of each, then the lower."""
    return Symbols(2 * count, 256)


def steps_as_bytes(steps: Tensor) -> Tensor:
    """Return steps (m,) as bytes (2m,), both int64."""
    return torch.stack([steps >> 8, steps & 255], dim=1).flatten()


def steps_from_bytes(halves: Tensor) -> Tensor:
    """Return the steps (m,) that `steps_as_bytes` made bytes (2m,) of."""
    pairs = halves.view(-1, 2)
    return (pairs[:, 0] << 8) + pairs[:, 1]


def _changes(count: int) -> IntegerArray:
    return Fitted(count, MOST_STEPS, typical=1)


def _trained(context: MessageContext, merge: int) -> int:
    return int(context.trained(merge).sum()) if context.trained else 0


@dataclass(frozen=True)
class MaskedRequest(Message):
    """What has been merged since the receiver last took part, and which merge comes next.

    Attributes:
        turn: the number of the next merge.
        known: the number of the last merge whose change the receiver has.
        steps: (2 (turn - known - 1),) bytes, see `steps_as_bytes`.
        changes: of all merges after ``known``, one after the other, in steps.
    """

    kind = Kind.MASKED_REQUEST
    varies = True
    turn: int
    known: int
    steps: Tensor
    changes: Tensor

    @classmethod
    def integer_arrays(cls, context: MessageContext, numbers: Numbers) -> dict[str, IntegerArray]:
        return chain_arrays(context, numbers)

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return {}

    @classmethod
    def longest(cls, context: MessageContext) -> Numbers:
        return {"turn": 2, "known": 0}


@dataclass(frozen=True)
class MaskedReply(Message):
    """How a client's weights changed when it trained some of them.

    Attributes:
        turn: the number of the merge that this is for; 0 if the client could not train.
        step: of ``changes``, see `step_size`.
        changes: (m,) of the weights that were trained, in steps.
    """

    kind = Kind.MASKED_REPLY
    varies = True
    turn: int
    step: int
    changes: Tensor

    @classmethod
    def integer_arrays(cls, context: MessageContext, numbers: Numbers) -> dict[str, IntegerArray]:
        return change_arrays(context, numbers)

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return {}

    @classmethod
    def longest(cls, context: MessageContext) -> Numbers:
        return {"turn": 1, "step": STEPS - 1}

    def check(self) -> None:
        check_changes(self.step, self.changes)

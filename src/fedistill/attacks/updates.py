"""Attacks on how far, and where, a client's message moves the mean."""

from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from fedistill.attacks.base import Liar, MessageAttack
from fedistill.attacks.parts import Part, Role
from fedistill.communication.messages.masked import MOST_STEPS


class SignFlip(MessageAttack):
    """Weights change the other way, by as much as they would have."""

    kind: Literal["sign-flip"] = "sign-flip"
    source = "Li et al., 2019, arXiv 1811.03761 (sign-flipping attack)"
    roles = frozenset({Role.WEIGHTS, Role.CHANGES})

    def lie(self, part: Part, liar: Liar) -> Tensor:
        if part.received is None:
            return -part.values
        return 2 * part.received - part.values


class Boosted(MessageAttack):
    """Changes of weights, logits, prototypes or class means are multiplied; below 0, they are turned around.

    Probabilities cannot be: a row that does not add up to 1 is refused.
    """

    kind: Literal["boosted"] = "boosted"
    source = "Bagdasaryan et al., 2020, arXiv 1807.00459 (model replacement)"
    roles = frozenset({Role.WEIGHTS, Role.CHANGES, Role.LOGITS, Role.PROTOTYPES, Role.MEANS})
    factor: float = Field(default=10.0, ge=-1e6, le=1e6, description="by what they are multiplied")

    @field_validator("factor")
    @classmethod
    def _something(cls, factor: float) -> float:
        if factor in (0.0, 1.0):
            raise ValueError("1 is the honest message and 0 none: write another factor, such as 10 or -5")
        return factor

    def lie(self, part: Part, liar: Liar) -> Tensor:
        if part.received is not None:
            return part.received + self.factor * (part.values - part.received)
        if part.role is Role.CHANGES:
            boosted = (part.values * self.factor).round()
            return boosted.clamp(-MOST_STEPS, MOST_STEPS).to(part.values.dtype)
        return part.values * self.factor


class LittleIsEnough(MessageAttack):
    """A lie within the spread of honest replies: ``z`` standard deviations off, in the worst direction.

    Of each row of probabilities, that much moves from the most likely class to the second. Each weight is
    lowered. The source estimates the spread over the liars' honest values; here each liar takes its own: of
    probabilities, the standard deviation of a class over its rows, and of a weight, the size of its change.
    """

    kind: Literal["little-is-enough"] = "little-is-enough"
    source = "Baruch et al., 2019, arXiv 1902.06156, algorithm 3"
    roles = frozenset({Role.WEIGHTS, Role.PROBS})
    z: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="standard deviations")

    def lie(self, part: Part, liar: Liar) -> Tensor:
        if part.received is not None:
            return part.values - self.z * (part.values - part.received).abs()
        most = part.values.topk(2, dim=1)
        first, second = most.indices.unbind(dim=1)
        moved = torch.minimum(self.z * part.values.std(dim=0, correction=0)[first], most.values[:, 0])
        rows, lied = torch.arange(len(first)), part.values.clone()
        lied[rows, first] -= moved
        lied[rows, second] += moved
        return lied

"""How the learning rate of local training changes: the choices of `train.optimizer.schedule`.

A schedule is a function of a place (the round, or the step of a local training) and of how many there are. It
keeps no state, so that a run is the same wherever it runs, and resumed or not.
"""

import math
from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from fedistill.config.section import Raw, Section, Share
from fedistill.config.spelling import read_spelling
from fedistill.errors import ExperimentError

_SMALLEST = 1e-30
"""No rate falls to 0, which is none."""


class Schedule(Section):
    """What all schedules have: the unit, and a linear warm-up at the start."""

    over: Literal["rounds", "steps"] = Field(
        default="rounds",
        description="what it runs over: the rounds of the run, or the steps of each local training",
    )
    warm_up: int = Field(
        default=0,
        ge=0,
        description="rounds or steps in which the rate first rises linearly to its full value",
    )

    def factor(self, place: int, length: int) -> float:
        """Return the factor, above 0 and at most 1, on the learning rate at a round or step.

        Args:
            place: number of the round or step, from 0.
            length: how many rounds or steps there are.
        """
        if place < self.warm_up:
            return (place + 1) / (self.warm_up + 1)
        return self._after_warm_up(place - self.warm_up, max(length - self.warm_up, 1))

    @abstractmethod
    def _after_warm_up(self, place: int, length: int) -> float:
        """Return the factor at a place, from 0, after the warm-up, of ``length`` places."""


class Constant(Schedule):
    name: Literal["constant"] = "constant"

    def _after_warm_up(self, place: int, length: int) -> float:
        return 1.0


class Cosine(Schedule):
    """Half a cosine from the full rate towards ``final`` of it (Loshchilov and Hutter, arXiv 1608.03983)."""

    name: Literal["cosine"]
    final: Share = Field(
        default=0.0, description="share of the rate that it falls to, just after the last round or step"
    )

    def _after_warm_up(self, place: int, length: int) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * place / length)) / 2


class Step(Schedule):
    """The rate is multiplied by ``falls_to`` after each ``every`` rounds or steps."""

    name: Literal["step"]
    every: int = Field(ge=1, description="rounds or steps between two falls of the rate")
    falls_to: float = Field(default=0.1, gt=0, lt=1, description="factor on the rate at each fall")

    def _after_warm_up(self, place: int, length: int) -> float:
        return max(self.falls_to ** (place // self.every), _SMALLEST)


def _table(written: Raw) -> Raw:
    """Return ``{ name, SETTINGS }`` for the short spelling; a table without a name is a constant rate."""
    if isinstance(written, str):
        try:
            return read_spelling("schedule", written)
        except ExperimentError as error:
            raise ValueError(str(error).removeprefix("schedule ")) from None
    return {"name": "constant", **written} if isinstance(written, dict) else written


AnySchedule = Annotated[Constant | Cosine | Step, Field(discriminator="name"), BeforeValidator(_table)]
"""A table ``{ name, SETTINGS }``, or its short spelling, such as ``cosine(warm_up=3)``."""

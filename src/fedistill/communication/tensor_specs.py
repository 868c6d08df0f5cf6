"""What both sides know about a tensor before it is sent, and about earlier messages."""

import math
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from fedistill.state import State

Floats = NDArray[np.float32]
Classes = NDArray[np.int64]


class Content(Enum):
    """What the numbers of a tensor mean."""

    WEIGHTS = "weights"
    PROBS = "class probabilities"
    SCORES = "scores"


@dataclass(frozen=True)
class TensorSpec:
    """What both sides know about a tensor before it is sent.

    Attributes:
        content: what its numbers mean.
        shape: (P,) for flat weights, else (n, C); n may be 0.
        parts: shapes of the tensors that flat weights are made of, in order; they add up to P - ``plain``.
        rows: (n,) indices of the public samples that the rows describe, all different, or None if a row
            has no index that would mean the same in another message.
        population: N, the size of the public set; 0 if ``rows`` is None.
        plain: how many of flat weights, the last ones, no codec may change; codecs never see them.
        largest: the size above which a number is refused where it is decoded: with more, a mean over clients,
            or one more layer, could overflow.
    """

    content: Content
    shape: tuple[int, ...]
    parts: tuple[tuple[int, ...], ...] = ()
    rows: Classes | None = None
    population: int = 0
    plain: int = 0
    largest: float = 1e6

    @property
    def count(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class SharedKnowledge:
    """What both sides know about earlier messages.

    Attributes:
        memory: what this codec returned for the last message in this direction that both sides know of;
            empty before the first.
        reference: weights (P,) that the receiver already has: on the uplink, those that it sent in this
            round; on the downlink, those that it last decoded; None if it has none.
        other_labels: the other side's last label for each row: (n,) classes, with -1 where it has sent none,
            or None if it has sent no labels at all.
    """

    memory: State = field(default_factory=dict)
    reference: Floats | None = None
    other_labels: Classes | None = None

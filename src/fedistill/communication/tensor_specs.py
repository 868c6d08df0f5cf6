"""What both sides know of a tensor before it is sent, and of those that were sent before."""

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from fedistill.state import State

Floats = NDArray[np.float32]
Classes = NDArray[np.int64]


class Content(Enum):
    """What the numbers of a tensor are."""

    WEIGHTS = "weights"
    PROBS = "class probabilities"
    SCORES = "scores"


@dataclass(frozen=True)
class TensorSpec:
    """What both sides know of a tensor before it is sent.

    Attributes:
        content: what its numbers are.
        shape: (P,) for flat weights, else (n, C); n may be 0.
        parts: shapes of the tensors that flat weights are made of, in order; they add up to P.
        rows: (n,) places in the public set that the rows speak of, all different, or None where a row
            has no place that would mean the same in another message.
        population: N, the samples of the public set; 0 where ``rows`` is None.
    """

    content: Content
    shape: tuple[int, ...]
    parts: tuple[tuple[int, ...], ...] = ()
    rows: Classes | None = None
    population: int = 0

    @property
    def count(self) -> int:
        return int(np.prod(self.shape))


@dataclass(frozen=True)
class SharedKnowledge:
    """What both sides know of earlier messages.

    Attributes:
        memory: what this codec returned at the last message in this direction that both sides know of;
            empty before the first.
        reference: weights (P,) that the receiver already has: uplink, those that it sent in this round;
            downlink, those that it last decoded. None: it has none.
        other_labels: (n,) the class that the other direction last named for each row, or -1, or None if it
            named none.
    """

    memory: State = field(default_factory=dict)
    reference: Floats | None = None
    other_labels: Classes | None = None

"""What a codec is: how the numbers of one message become bytes, and back.

A codec works in one direction of one arm, for each client apart. It may lean on three things besides the
message: what both sides know of it beforehand (`Spec`), what both sides remember of earlier messages
(`Known`), and what the sender alone keeps (`Sender`). Memory is plain data (`fedistill.state`), returned
anew and never changed in place; `fedistill.wire.exchange` keeps it equal on both sides.

A codec never writes shapes: the receiver knows how many numbers it expects, so a sender cannot make it
allocate more.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedistill.config import Section
from fedistill.state import State

Floats = NDArray[np.float32]
Classes = NDArray[np.int64]


class Content(Enum):
    """What the numbers of a tensor are."""

    WEIGHTS = "weights"
    PROBS = "class probabilities"
    SCORES = "scores"


@dataclass(frozen=True)
class Spec:
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
class Known:
    """What both sides know of earlier messages.

    Attributes:
        memory: what this codec returned at the last message in this direction that both sides know of;
            empty before the first.
        reference: weights (P,) that the receiver already has: uplink, those that it sent in this round;
            downlink, those that it last decoded. None: it has none.
        told: (n,) the class that the other direction last named for each row, or -1; None: for no row.
    """

    memory: State = field(default_factory=dict)
    reference: Floats | None = None
    told: Classes | None = None


@dataclass(frozen=True)
class Sender:
    """What the sender alone has: a state of its own (a residual, say), and a random stream.

    ``own`` is None where nothing is to be kept: on a downlink, what was not sent is still in the difference
    to `Known.reference`.

    Attributes:
        weight: how much the message counts at the receiver, among `weights`, those of all who may send one.
    """

    own: State | None = field(default_factory=dict)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    weight: float = 1.0
    weights: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class Encoded:
    """The bytes, what both sides know from now on, and what the sender alone keeps."""

    payload: bytes
    memory: State = field(default_factory=dict)
    own: State = field(default_factory=dict)


@dataclass(frozen=True)
class Decoded:
    """The numbers, in the expected shape, and what both sides know from now on."""

    values: Floats
    memory: State = field(default_factory=dict)


class NoSettings(Section):
    """A codec without settings of its own."""


class Codec(ABC):
    """How numbers are written. Subclasses are final, and have a line in `fedistill.wire.codecs`."""

    name: ClassVar[str]
    loses: ClassVar[str]
    source: ClassVar[str] = ""
    codes: ClassVar[frozenset[Content]] = frozenset(Content)
    fixed: ClassVar[bool] = False
    """Equal shapes take equal bytes."""
    relative: ClassVar[bool] = False
    """Codes the difference to `Known.reference`, so the receiver's weights are remembered."""
    remembers: bool = False
    """Has a memory, or looks at `Known.told`."""
    keeps: ClassVar[bool] = False
    """Has something in `Sender.own`: a residual, say."""

    Settings: ClassVar[type[Section]] = NoSettings

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @abstractmethod
    def encode(self, values: Floats, spec: Spec, known: Known, sender: Sender) -> Encoded:
        """Write finite numbers of the expected shape."""

    @abstractmethod
    def decode(self, payload: bytes, spec: Spec, known: Known) -> Decoded:
        """Read what `encode` wrote with an equal spec and equal knowledge; ends in equal memory.

        Never allocates more than a small multiple of ``spec.count`` and ``len(payload)``.

        Raises:
            FrameError: the payload is not one that `encode` writes.
        """

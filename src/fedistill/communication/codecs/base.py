"""What a codec is: how the numbers of one message become bytes, and back.

A codec works in one direction of one arm, for each client apart. It may lean on three things besides the
message: what both sides know of it beforehand (`TensorSpec`), what both sides remember of earlier messages
(`SharedKnowledge`), and what the sender alone keeps (`Sender`). Memory is plain data
(`fedistill.state`), returned anew and never changed in place; `communication.protocol` keeps it equal on both
sides.

A codec never writes shapes: the receiver knows how many numbers it expects, so a sender cannot make it
allocate more.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from fedistill.communication.tensor_specs import Content, Floats, SharedKnowledge, TensorSpec
from fedistill.config.schema import Section
from fedistill.state import State


@dataclass(frozen=True)
class Sender:
    """What the sender alone has: a state of its own (a residual, say), and a random stream.

    ``own`` is None where nothing is to be kept: on a downlink, what was not sent is still in the difference
    to `SharedKnowledge.reference`.

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
    """How numbers are written. Subclasses are final, found by scanning this folder."""

    name: ClassVar[str]
    lossiness: ClassVar[str]
    source: ClassVar[str] = ""
    codes: ClassVar[frozenset[Content]] = frozenset(Content)
    fixed: ClassVar[bool] = False
    """Equal shapes take equal bytes."""
    relative: ClassVar[bool] = False
    """Codes the difference to `SharedKnowledge.reference`, so the receiver's weights are remembered."""
    remembers: bool = False
    """Has a memory, or looks at `SharedKnowledge.other_labels`."""
    keeps: ClassVar[bool] = False
    """Has something in `Sender.own`: a residual, say."""

    Settings: ClassVar[type[Section]] = NoSettings

    def __init__(self, settings: Section) -> None:
        self.settings = settings

    @abstractmethod
    def encode(self, values: Floats, spec: TensorSpec, known: SharedKnowledge, sender: Sender) -> Encoded:
        """Write finite numbers of the expected shape."""

    @abstractmethod
    def decode(self, payload: bytes, spec: TensorSpec, known: SharedKnowledge) -> Decoded:
        """Read what `encode` wrote with an equal spec and equal knowledge; ends in equal memory.

        Never allocates more than a small multiple of ``spec.count`` and ``len(payload)``.

        Raises:
            FrameError: the payload is not one that `encode` writes.
        """

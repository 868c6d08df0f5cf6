"""What a codec is: how the tensors of one message become bytes, and back.

A codec works in one direction of one arm, for each client separately. Besides the values of a tensor it may
use three things: what both sides know about the tensor beforehand (`TensorSpec`), what both sides know about
earlier messages (`SharedKnowledge`), and what the sender alone keeps (`Sender`). A codec's memory is plain
data (`fedistill.state`): a codec returns new memory and never changes it in place. `communication.protocol`
keeps it equal on both sides.

A codec never writes shapes: the receiver knows how many numbers to expect, so a sender cannot make it
allocate more.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np

from fedistill.communication.tensor_specs import Content, Floats, SharedKnowledge, TensorSpec
from fedistill.config.schema import Section
from fedistill.state import State


@dataclass(frozen=True)
class Sender:
    """What the sender alone has.

    Attributes:
        own: a state of its own, for example a residual; None if nothing is kept: on a downlink, what was not
            sent is still in the difference to `SharedKnowledge.reference`.
        stream: returns a stream for this tensor of this message, which most codecs never ask for.
        weight: how much the message counts at the receiver, relative to ``weights``.
        weights: the weights of all who may send such a message.
        behind: on a downlink, whether receivers hold different references, since some were away: what is lost
            stays in the difference to each, and must not grow from one message to the next.
    """

    own: State | None = field(default_factory=dict)
    stream: Callable[[], np.random.Generator] = lambda: np.random.default_rng(0)
    weight: float = 1.0
    weights: tuple[float, ...] = (1.0,)
    behind: bool = False

    @cached_property
    def random(self) -> np.random.Generator:
        """The stream for this tensor of this message."""
        return self.stream()


@dataclass(frozen=True)
class Encoded:
    """The bytes, the codec's memory on both sides from now on, and what the sender alone keeps."""

    payload: bytes
    memory: State = field(default_factory=dict)
    own: State = field(default_factory=dict)


@dataclass(frozen=True)
class Decoded:
    """The numbers, in the expected shape, and the codec's memory on both sides from now on."""

    values: Floats
    memory: State = field(default_factory=dict)


class NoSettings(Section):
    """A codec without settings of its own."""


class Codec(ABC):
    """How numbers are written. Subclasses are final."""

    name: ClassVar[str]
    """As experiment files name it."""
    lossiness: ClassVar[str]
    """What is lost, as the end of a sentence; "nothing" if decoding returns the same numbers."""
    source: ClassVar[str] = ""
    """The paper that it follows, if any."""
    codes: ClassVar[frozenset[Content]] = frozenset(Content)
    """Contents of the tensors that it can code."""
    fixed: ClassVar[bool] = False
    """Whether tensors of equal shape take equally many bytes."""
    relative: ClassVar[bool] = False
    """Whether it codes the difference to `SharedKnowledge.reference`."""
    remembers: bool = False
    """Whether it returns a memory or uses `SharedKnowledge.other_labels`."""
    keeps: ClassVar[bool] = False
    """Whether it keeps something in `Sender.own`, for example a residual."""

    Settings: ClassVar[type[Section]] = NoSettings

    def __init__(self, settings: Section) -> None:
        self.settings = settings

    @abstractmethod
    def encode(self, values: Floats, spec: TensorSpec, known: SharedKnowledge, sender: Sender) -> Encoded:
        """Code finite numbers of the shape ``spec.shape``."""

    @abstractmethod
    def decode(self, payload: bytes, spec: TensorSpec, known: SharedKnowledge) -> Decoded:
        """Decode what `encode` coded with equal ``spec`` and ``known``; both return equal memories.

        Never allocates more than a small multiple of ``spec.count`` plus ``len(payload)``.

        Raises:
            FrameError: no `encode` writes such a payload.
        """

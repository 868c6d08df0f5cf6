"""Typed messages: what a method sends, as tensors and integers, and how they become frames.

A message is a frozen dataclass. Its tensors are coded by the arm's codec, its integers are varints.
The receiver says how large it expects each tensor to be (`Sizes`); nothing in a frame can change that.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from fedistill.errors import FrameError
from fedistill.wire import frame as frames
from fedistill.wire.codec import Codec
from fedistill.wire.frame import EVERYONE, Frame, Kind


@dataclass(frozen=True)
class Sizes:
    """What both sides know of a message before it is sent.

    Attributes:
        classes: C, the number of classes.
        parameters: P, the numbers in the weights of the model that travels (0: none travels).
        samples: n, the public samples that a message speaks of (0: none).
    """

    classes: int
    parameters: int = 0
    samples: int = 0


@dataclass(frozen=True)
class Message:
    """Base of all messages; subclasses are frozen dataclasses and final."""

    kind: ClassVar[Kind]

    @classmethod
    def shapes(cls, sizes: Sizes) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor field."""
        raise NotImplementedError


@dataclass(frozen=True)
class Weights(Message):
    """All weights of one model, flat (P,)."""

    kind = Kind.WEIGHTS
    values: Tensor

    @classmethod
    def shapes(cls, sizes: Sizes) -> dict[str, tuple[int, ...]]:
        return {"values": (sizes.parameters,)}


@dataclass(frozen=True)
class TrainedWeights(Message):
    """All weights of one model, flat (P,), and the number of samples that they were trained on."""

    kind = Kind.WEIGHTS
    values: Tensor
    samples: int

    @classmethod
    def shapes(cls, sizes: Sizes) -> dict[str, tuple[int, ...]]:
        return {"values": (sizes.parameters,)}


@dataclass(frozen=True)
class ClassOutputs(Message):
    """Mean output for each class, (C, C); a row of zeros says that there is none for this class."""

    kind = Kind.CLASS_OUTPUTS
    means: Tensor

    @classmethod
    def shapes(cls, sizes: Sizes) -> dict[str, tuple[int, ...]]:
        return {"means": (sizes.classes, sizes.classes)}


@dataclass(frozen=True)
class Logits(Message):
    """Class scores before the softmax on the public samples of round ``drawn``, (n, C)."""

    kind = Kind.LOGITS
    scores: Tensor
    drawn: int

    @classmethod
    def shapes(cls, sizes: Sizes) -> dict[str, tuple[int, ...]]:
        return {"scores": (sizes.samples, sizes.classes)}


@dataclass(frozen=True)
class SoftLabels(Message):
    """Class probabilities on the public samples of round ``drawn``, (n, C)."""

    kind = Kind.SOFT_LABELS
    probs: Tensor
    drawn: int

    @classmethod
    def shapes(cls, sizes: Sizes) -> dict[str, tuple[int, ...]]:
        return {"probs": (sizes.samples, sizes.classes)}


M = TypeVar("M", bound=Message)


def pack(message: Message, codec: Codec, round: int, client: int | None) -> bytes:
    """Return the frame of a message; ``client`` is None for a message to every client."""
    sections: dict[str, bytes] = {}
    for name, value in _values(message).items():
        if isinstance(value, Tensor):
            sections[name] = codec.encode(value.detach().to(torch.float32).contiguous().numpy())
        else:
            sections[name] = frames.varint(value)
    peer = EVERYONE if client is None else client + 1
    return frames.encode(Frame(message.kind, round, peer, sections))


def unpack(expected: type[M], data: bytes, codec: Codec, sizes: Sizes, round: int, client: int) -> M:
    """Read the message that the receiver expects.

    Raises:
        FrameError: the frame is damaged, of another kind, round or client, has other sections than
            the message, or holds tensors of another size.
    """
    frame = frames.decode(data)
    if frame.kind is not expected.kind:
        raise FrameError(f"a frame of {frame.kind.label} came where {expected.kind.label} belong")
    if frame.round != round:
        raise FrameError(f"a frame of round {frame.round} came in round {round}")
    if frame.peer not in (EVERYONE, client + 1):
        raise FrameError(f"a frame of client {frame.peer - 1} came where client {client}'s belongs")
    names = [field.name for field in fields(expected)]
    if list(frame.sections) != names:
        raise FrameError(f"frame has the sections {list(frame.sections)}, not {names}")
    shapes = expected.shapes(sizes)
    values: dict[str, Any] = {}
    for name, payload in frame.sections.items():
        try:
            if name in shapes:
                shape = torch.Size(shapes[name])
                values[name] = torch.from_numpy(codec.decode(payload, shape.numel())).reshape(shape)
            else:
                values[name] = _integer(payload)
        except FrameError as error:
            raise FrameError(f"section {name!r}: {error}") from None
    return expected(**values)


def length(kind: type[Message], codec: Codec, sizes: Sizes, round: int = 1) -> int:
    """Return the bytes of a frame of this kind with zeros in it.

    Exact for codecs of fixed width, where the client and the message's integers are below 128.
    """
    shapes = kind.shapes(sizes)
    names = [field.name for field in fields(kind)]
    values: dict[str, Any] = {name: torch.zeros(shapes[name]) if name in shapes else 1 for name in names}
    return len(pack(kind(**values), codec, round, client=0))


def _integer(payload: bytes) -> int:
    value, end = frames.read_varint(payload, 0)
    if end != len(payload):
        raise FrameError(f"{len(payload) - end} bytes follow the integer")
    return value


def _values(message: Message) -> dict[str, Any]:
    names = [field.name for field in fields(message)]
    return {name: getattr(message, name) for name in names}

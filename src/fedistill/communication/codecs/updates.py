"""What the codecs of weight updates share: differences, residuals, flat weights' tensors, short scales."""

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from fedistill.communication.codecs.base import Codec, Decoded, Encoded, Sender
from fedistill.communication.tensor_specs import Content, Floats, SharedKnowledge, TensorSpec
from fedistill.errors import FrameError
from fedistill.state import State

Scales = NDArray[np.float32]

LARGEST = float(np.finfo(np.float32).max)
_WHOLE = b"\0"
_CHANGE = b"\1"
_BOUNDED = b"\2"
_HALF = np.finfo(np.float16).max
_SHORT = 2


class UpdateCodec(Codec):
    """Codes the difference between weights and those that the receiver already has.

    The first byte gives the format: 0 for all weights as fp16, if the receiver has none; 1 for a difference;
    2 for one that is written so that errors do not build up at receivers that may have been away.
    """

    codes = frozenset({Content.WEIGHTS})
    relative = True

    def encode(self, values: Floats, spec: TensorSpec, known: SharedKnowledge, sender: Sender) -> Encoded:
        if known.reference is None:
            return Encoded(_WHOLE + halves(values), own=sender.own or {})
        update = _sum(values, -known.reference)
        if sender.behind and type(self).write_behind is not UpdateCodec.write_behind:
            return Encoded(_BOUNDED + self.write_behind(update, spec, sender), own=sender.own or {})
        body, own = self.write(update, spec, sender)
        return Encoded(_CHANGE + body, own=own)

    def decode(self, payload: bytes, spec: TensorSpec, known: SharedKnowledge) -> Decoded:
        mode, body = payload[:1], payload[1:]
        if mode not in ((_WHOLE,) if known.reference is None else (_CHANGE, _BOUNDED)):
            raise FrameError("the message does not say how its weights are written")
        if known.reference is None:
            return Decoded(from_halves(body, spec.count))
        update = self.read_behind(body, spec) if mode == _BOUNDED else self.read(body, spec)
        return Decoded(_sum(known.reference, update))

    @abstractmethod
    def write(self, update: Floats, spec: TensorSpec, sender: Sender) -> tuple[bytes, State]:
        """Return the bytes of an update (P,), and what the sender keeps."""

    @abstractmethod
    def read(self, body: bytes, spec: TensorSpec) -> Floats:
        """Return the update (P,), all finite."""

    def write_behind(self, update: Floats, spec: TensorSpec, sender: Sender) -> bytes:
        """Return the bytes of an update (P,) with an error below its norm, if `write` may exceed that."""
        raise NotImplementedError

    def read_behind(self, body: bytes, spec: TensorSpec) -> Floats:
        """Return the update (P,) that `write_behind` wrote, all finite."""
        raise FrameError("the message is written in a way that this codec does not use")


class FeedbackCodec(UpdateCodec):
    """Error feedback: adds what an update lost to the next one."""

    keeps = True

    def write(self, update: Floats, spec: TensorSpec, sender: Sender) -> tuple[bytes, State]:
        if sender.own is None:
            return self.compress(update, spec)[0], {}
        if "residual" in sender.own:
            update = _sum(update, sender.own["residual"].numpy())
        body, sent = self.compress(update, spec)
        return body, {"residual": torch.from_numpy(_sum(update, -sent))}

    @abstractmethod
    def compress(self, update: Floats, spec: TensorSpec) -> tuple[bytes, Floats]:
        """Return the bytes of an update (P,), and what `read` returns for them."""


def parts(spec: TensorSpec) -> Iterator[tuple[slice, tuple[int, ...]]]:
    """Yield the place in the flat weights and the shape of each tensor."""
    start = 0
    for shape in spec.parts or (spec.shape,):
        stop = start + int(np.prod(shape, dtype=np.int64))
        yield slice(start, stop), shape
        start = stop


def sides_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the rows and columns of a tensor: a kernel has a row per output, a vector is one row."""
    count = int(np.prod(shape, dtype=np.int64))
    rows = shape[0] if len(shape) > 1 and count else 1
    return rows, count // rows


def halves(values: Floats) -> bytes:
    """Return numbers as the bytes of fp16, clipped to its range."""
    return np.clip(values, -_HALF, _HALF).astype("<f2").tobytes()


def from_halves(data: bytes, count: int) -> Floats:
    """Return the ``count`` numbers that `halves` wrote.

    Raises:
        FrameError: there are more or fewer, or one is not finite.
    """
    if len(data) != 2 * count:
        raise FrameError(f"{len(data)} bytes of fp16 where {count} numbers were expected")
    values = np.frombuffer(data, "<f2").astype(np.float32)
    if not np.isfinite(values).all():
        raise FrameError("a number in the message is not finite")
    return values


def mean_size(values: Floats) -> Floats:
    """Return the mean absolute value (1,) of numbers; 0 if there are none."""
    if not len(values):
        return np.zeros(1, np.float32)
    return np.array([np.abs(values).mean(dtype=np.float64)], np.float32)


def short(scales: Scales, up: bool = False) -> Scales:
    """Round numbers >= 0 to bfloat16, which takes two bytes: to the nearest, or up."""
    bits = scales.astype(np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0xFFFF if up else 0x8000)) & np.uint32(0xFFFF0000)
    short_bits: NDArray[np.uint32] = np.minimum(rounded, np.uint32(0x7F7F0000))
    return short_bits.view(np.float32)


def pack_scales(scales: Scales) -> bytes:
    """Return numbers that `short` returned as bytes."""
    return (scales.view(np.uint32) >> 16).astype("<u2").tobytes()


def unpack_scales(body: bytes, count: int) -> tuple[Scales, bytes]:
    """Return ``count`` scales, and the bytes after them.

    Raises:
        FrameError: there are fewer, or one is negative or not finite.
    """
    head = body[: _SHORT * count]
    if len(head) != _SHORT * count:
        raise FrameError(f"the message ends within its {count} scales")
    scales = (np.frombuffer(head, "<u2").astype(np.uint32) << 16).view(np.float32)
    if not np.isfinite(scales).all() or np.signbit(scales).any():
        raise FrameError("a scale in the message is negative or not finite")
    return scales, body[_SHORT * count :]


def finite(values: Floats) -> Floats:
    """Clip infinite numbers to the largest finite ones, in place."""
    return np.clip(values, -LARGEST, LARGEST, out=values)


def _sum(left: Floats, right: Floats) -> Floats:
    """Add finite numbers; a sum that is too large for float32 becomes the largest finite one."""
    with np.errstate(over="ignore"):
        return finite(left + right)

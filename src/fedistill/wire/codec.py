"""Codecs turn real numbers into bytes and back; both sides of an arm use the same one.

A codec never writes shapes: the receiver knows how many numbers it expects, so a sender cannot make
it allocate more.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedistill.errors import ExperimentError, FrameError, nearest

Floats = NDArray[np.float32]


class Codec(ABC):
    """How real numbers are written. Subclasses are final."""

    name: ClassVar[str]
    loses: ClassVar[str]

    @abstractmethod
    def encode(self, values: Floats) -> bytes:
        """Write an array of any shape, in C order."""

    @abstractmethod
    def decode(self, payload: bytes, count: int) -> Floats:
        """Read exactly ``count`` numbers, as a flat array.

        Raises:
            FrameError: the payload holds another number of them, or one that is not finite.
        """


class _Plain(Codec):
    """Numbers at a fixed width, little-endian."""

    dtype: ClassVar[np.dtype[np.float16] | np.dtype[np.float32]]

    def decode(self, payload: bytes, count: int) -> Floats:
        if len(payload) != count * self.dtype.itemsize:
            raise FrameError(
                f"{len(payload)} bytes of {self.name} where {count} numbers were expected"
                f" ({count * self.dtype.itemsize} bytes)"
            )
        values = np.frombuffer(payload, dtype=self.dtype).astype(np.float32)
        if not np.isfinite(values).all():
            raise FrameError("a number in the message is not finite")
        return values


class Fp32(_Plain):
    name = "fp32"
    loses = "nothing"
    dtype = np.dtype("<f4")

    def encode(self, values: Floats) -> bytes:
        return values.astype(self.dtype, copy=False).tobytes()


class Fp16(_Plain):
    name = "fp16"
    loses = "all but 11 significant bits; values beyond 65,504 are clipped to it"
    dtype = np.dtype("<f2")

    def encode(self, values: Floats) -> bytes:
        largest = float(np.finfo(np.float16).max)
        return np.clip(values, -largest, largest).astype(self.dtype).tobytes()


CODECS: dict[str, Codec] = {codec.name: codec for codec in (Fp32(), Fp16())}


def get(name: str) -> Codec:
    """Return the codec of that name.

    Raises:
        ExperimentError: there is none; the nearest name is offered.
    """
    if name not in CODECS:
        known = ", ".join(CODECS)
        raise ExperimentError(f"codec {name!r} is not one of {known}.{nearest(name, CODECS)}")
    return CODECS[name]

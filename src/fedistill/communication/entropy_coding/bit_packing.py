"""Integers at a fixed number of bits."""

import numpy as np

from fedistill.communication.tensor_specs import Classes
from fedistill.errors import FrameError

_CHUNK = 1 << 16  # a multiple of 8, so that chunks start at whole bytes


def pack(values: Classes, width: int) -> bytes:
    """Return integers (n,) below 2**width as bytes, ``width`` bits each, the lowest first."""
    places = np.arange(width)
    chunks = (
        np.packbits(values[start : start + _CHUNK, None] >> places & 1, bitorder="little").tobytes()
        for start in range(0, len(values), _CHUNK)
    )
    return b"".join(chunks)


def unpack(payload: bytes, count: int, width: int) -> Classes:
    """Return the ``count`` integers that `pack` wrote.

    Raises:
        FrameError: there are fewer or more, or unused bits are not 0.
    """
    if len(payload) != -(-count * width // 8):
        raise FrameError(f"{len(payload)} bytes where {count} numbers of {width} bits were expected")
    if payload and payload[-1] >> (count * width - 1) % 8 + 1:
        raise FrameError("the last byte has bits that mean nothing")
    data, step = np.frombuffer(payload, np.uint8), _CHUNK * width // 8
    values = np.empty(count, np.int64)
    for place, start in enumerate(range(0, len(data), step)):
        part = values[place * _CHUNK : (place + 1) * _CHUNK]
        bits = np.unpackbits(data[start : start + step], count=len(part) * width, bitorder="little")
        part[:] = bits.reshape(-1, width) @ (1 << np.arange(width))
    return values

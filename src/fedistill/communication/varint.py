"""Integers of any size in as few bytes as they need (LEB128)."""

from fedistill.errors import FrameError


def varint(value: int) -> bytes:
    """Return an integer as LEB128: seven bits per byte, low bits first.

    Raises:
        ValueError: the integer is negative.

    Examples:
        >>> varint(5), varint(127), varint(300)
        (b'\\x05', b'\\x7f', b'\\xac\\x02')
    """
    if value < 0:
        raise ValueError(f"{value} is negative")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: memoryview | bytes, at: int) -> tuple[int, int]:
    """Return the integer at offset ``at`` and the offset after it; at most 9 bytes are read.

    Raises:
        FrameError: the data end within the integer, or it has more than 63 bits.

    Examples:
        >>> read_varint(b"\\xac\\x02rest", 0)
        (300, 2)
    """
    value = 0
    for index in range(9):
        if at >= len(data):
            raise FrameError("frame ends in the middle of a field")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at
    raise FrameError("frame has an integer of more than 63 bits")

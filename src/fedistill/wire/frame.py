"""The frame: the bytes of one message, and the only thing that crosses between server and client.

Layout, all integers unsigned little-endian or LEB128 varints::

    "fd"  version  kind  round  peer  sections  { name-length name length bytes }...  crc32
     2       1       1   varint varint    1            1      1..8  varint            4

``peer`` is 0 for a frame to every client, else the client's number plus one. The checksum covers all
that stands before it. There is no pickle, no type and no shape in a frame: the receiver knows what it
expects, and a frame that differs is refused.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from fedistill.errors import FrameError

MAGIC = b"fd"
VERSION = 1
EVERYONE = 0
_CHECKSUM = 4
_LONGEST_NAME = 8


class Kind(IntEnum):
    """What a frame carries; the ledger counts bytes by kind. Numbers are never used again."""

    WEIGHTS = 1
    CLASS_OUTPUTS = 2
    LOGITS = 3
    SOFT_LABELS = 4
    VOCABULARY = 5

    @property
    def label(self) -> str:
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True)
class Frame:
    """A decoded frame. ``peer``: 0 for everyone, else client + 1; ``round`` counts from 1, 0 is set-up."""

    kind: Kind
    round: int
    peer: int
    sections: Mapping[str, bytes]


def encode(frame: Frame) -> bytes:
    """Return the bytes of a frame; the overhead is 11 bytes plus about 8 for each section."""
    parts = [MAGIC, bytes((VERSION, frame.kind)), varint(frame.round), varint(frame.peer)]
    parts.append(bytes((len(frame.sections),)))
    for name, payload in frame.sections.items():
        tag = name.encode("ascii")
        if not 1 <= len(tag) <= _LONGEST_NAME:
            raise ValueError(f"section name {name!r} must have 1 to {_LONGEST_NAME} letters")
        parts += [bytes((len(tag),)), tag, varint(len(payload)), payload]
    body = b"".join(parts)
    return body + zlib.crc32(body).to_bytes(_CHECKSUM, "little")


def decode(data: bytes) -> Frame:
    """Read a frame.

    Never allocates more than ``data`` holds, whatever the bytes say.

    Raises:
        FrameError: the bytes are not one whole frame of this version, or the checksum differs.
    """
    if len(data) < len(MAGIC) + 2 + 3 + _CHECKSUM:
        raise FrameError(f"frame of {len(data)} bytes is too short to be one")
    if data[:2] != MAGIC:
        raise FrameError("not a fedistill frame: it does not begin with 'fd'")
    if data[2] != VERSION:
        raise FrameError(f"frame version {data[2]} is not {VERSION}; both sides need one release")
    body = memoryview(data)[:-_CHECKSUM]
    if zlib.crc32(body) != int.from_bytes(data[-_CHECKSUM:], "little"):
        raise FrameError("frame is damaged: its checksum differs")
    try:
        kind = Kind(data[3])
    except ValueError:
        raise FrameError(f"frame kind {data[3]} is unknown") from None
    round, at = read_varint(body, 4)
    peer, at = read_varint(body, at)
    count, at = _byte(body, at)
    sections: dict[str, bytes] = {}
    for _ in range(count):
        length, at = _byte(body, at)
        tag, at = _slice(body, at, length)
        size, at = read_varint(body, at)
        payload, at = _slice(body, at, size)
        try:
            name = tag.decode("ascii")
        except UnicodeDecodeError:
            raise FrameError("frame has a section name that is not ASCII") from None
        if not name or len(name) > _LONGEST_NAME or name in sections:
            raise FrameError(f"frame has an empty, long or repeated section name {name!r}")
        sections[name] = payload
    if at != len(body):
        raise FrameError(f"frame has {len(body) - at} bytes after its last section")
    return Frame(kind, round, peer, sections)


def varint(value: int) -> bytes:
    """LEB128: seven bits a byte, low bits first; ``value`` must not be negative."""
    if value < 0:
        raise ValueError(f"{value} is negative")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: memoryview | bytes, at: int) -> tuple[int, int]:
    """Return the value at ``at`` and the place behind it; at most 9 bytes are read."""
    value = 0
    for index in range(9):
        byte, at = _byte(data, at)
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at
    raise FrameError("frame has an integer of more than 63 bits")


def _byte(data: memoryview | bytes, at: int) -> tuple[int, int]:
    if at >= len(data):
        raise FrameError("frame ends in the middle of a field")
    return data[at], at + 1


def _slice(data: memoryview, at: int, size: int) -> tuple[bytes, int]:
    if size > len(data) - at:
        raise FrameError(f"frame says {size} bytes follow, but only {len(data) - at} do")
    return bytes(data[at : at + size]), at + size

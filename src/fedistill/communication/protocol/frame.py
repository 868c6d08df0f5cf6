"""The frame: the bytes of one message, and the only thing that crosses between server and client.

Layout of version 2, all integers unsigned little-endian or LEB128 varints::

    "fd"  version  kind  [ local ]  round  peer   id                { length  bytes }...  crc32
     2       1       1    varint    varint varint 0 | version+1 hash  varint               4
                                                  1 | varint    4

``peer`` is 0 in a frame to every client, else the client's number plus one. ``id`` is the id of the shared
state that the message was coded against (`shared_state`), or 0 if it was coded against none. ``local``, the
rounds of local training that the server asks for, is present if the highest bit of ``kind`` is set. The
sections are the fields of the message, in their order. The checksum covers all bytes before it. A frame has
no pickle, no type, no name and no shape: the receiver knows what it expects, and refuses anything else.
"""

import zlib
from dataclasses import dataclass

from fedistill.communication.kinds import Kind, kind_of
from fedistill.communication.varint import read_varint, varint
from fedistill.errors import FrameError

MAGIC = b"fd"
VERSION = 2
EVERYONE = 0
_CHECKSUM = 4
_HASH = 4
_ASKS = 0x80
_SHORTEST = len(MAGIC) + 2 + 3 + _CHECKSUM


@dataclass(frozen=True)
class StateId:
    """The id of a shared state: the number of exchanges behind it, and 4 bytes of its hash."""

    version: int
    hash: bytes

    def __str__(self) -> str:
        return f"{self.version} ({self.hash.hex()})"


@dataclass(frozen=True)
class Frame:
    """A decoded frame.

    Attributes:
        kind: a member of `Kind`, or one of the `CUSTOM` numbers for messages of other packages.
        round: counts from 1; 0 is set-up.
        peer: 0 for every client, else the client's number plus one.
        state_id: of the shared state that the message was coded against, or None if there is none.
        local: rounds of local training that the server asks for.
    """

    kind: int
    round: int
    peer: int
    sections: tuple[bytes, ...]
    state_id: StateId | None = None
    local: int = 1


def encode(frame: Frame) -> bytes:
    """Return the bytes of a frame.

    The overhead is 11 bytes, 4 to 6 more for a state id, and 1 to 4 for each section: up to round and client
    16,383, at most 24 bytes for any message of one tensor in this package and 28 for any other. ``local``
    takes 1 or 2 more.
    """
    parts = [MAGIC, bytes((VERSION, frame.kind))]
    if frame.local != 1:
        parts = [MAGIC, bytes((VERSION, frame.kind | _ASKS)), varint(frame.local)]
    parts += [varint(frame.round), varint(frame.peer)]
    parts.append(
        b"\0" if frame.state_id is None else varint(frame.state_id.version + 1) + frame.state_id.hash
    )
    for payload in frame.sections:
        parts += [varint(len(payload)), payload]
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    data = b"".join([*parts, checksum.to_bytes(_CHECKSUM, "little")])
    if isinstance(frame.kind, Kind) and all(type(payload) is bytes for payload in frame.sections):
        _keep(data, frame)
    return data


_read: tuple[tuple[bytes, Frame], ...] = ()
"""The frames that were read or written last, the latest first: one that came down, and one that went up."""
_READ = 2


def decode(data: bytes) -> Frame:
    """Read a frame.

    Never allocates more than the length of ``data``, whatever the bytes say. The ledger, the endpoint and, in
    one process, all clients of a broadcast read the same `bytes`, so the last ones are read once, and those
    that this process has just written, not at all.

    Raises:
        FrameError: the bytes are not exactly one frame of this version, or the checksum differs.
    """
    frame = next((frame for known, frame in _read if known is data), None) or _decode(data)
    if isinstance(data, bytes):  # which cannot change
        _keep(data, frame)
    return frame


def _keep(data: bytes, frame: Frame) -> None:
    global _read
    others = [pair for pair in _read if pair[0] is not data]
    _read = ((data, frame), *others[: _READ - 1])


def _decode(data: bytes) -> Frame:
    if len(data) < _SHORTEST:
        raise FrameError(f"frame of {len(data)} bytes is too short to be one")
    if data[:2] != MAGIC:
        raise FrameError("not a fedistill frame: it does not start with 'fd'")
    if data[2] != VERSION:
        raise FrameError(f"frame version {data[2]} is not {VERSION}; both sides need the same release")
    body = memoryview(data)[:-_CHECKSUM]
    if zlib.crc32(body) != int.from_bytes(data[-_CHECKSUM:], "little"):
        raise FrameError("frame is damaged: its checksum differs")
    try:
        kind = kind_of(data[3] & ~_ASKS)
    except ValueError:
        raise FrameError(f"frame kind {data[3] & ~_ASKS} is unknown") from None
    local, at = read_varint(body, 4) if data[3] & _ASKS else (1, 4)
    if local == 1 and data[3] & _ASKS:
        raise FrameError("frame asks for one round of local training, which must not be written")
    round, at = read_varint(body, at)
    peer, at = read_varint(body, at)
    held, at = read_varint(body, at)
    state_id = None
    if held:
        mark, at = _slice(body, at, _HASH)
        state_id = StateId(held - 1, mark)
    sections = []
    while at < len(body):
        size, at = read_varint(body, at)
        payload, at = _slice(body, at, size)
        sections.append(payload)
    return Frame(kind, round, peer, tuple(sections), state_id, local)


def _slice(data: memoryview, at: int, size: int) -> tuple[bytes, int]:
    if size > len(data) - at:
        raise FrameError(f"frame says {size} bytes follow, but only {len(data) - at} do")
    return bytes(data[at : at + size]), at + size

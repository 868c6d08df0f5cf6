"""The frames of secure sums: four turns, in each of which clients send one frame and the server answers.

::

    kind               a client sends                             the server sends
    secure-keys        its two public keys and a commitment       those of all clients, to each of them
    secure-shares      sealed shares of its two secrets           to each client, the shares for it
    secure-addends     its masked integers                        nothing: it adds them up
    secure-unmasking   a share of one secret of each client       whose integers have arrived (sent first)

What a frame holds is checked against what is known of it before: clients are those of the round, in ascending
order, and sections have exactly the lengths that follow from their number.
"""

from collections.abc import Sequence

from fedistill.communication.kinds import Kind, kind_label
from fedistill.communication.protocol import frame as frames
from fedistill.communication.protocol.frame import EVERYONE, Frame, StateId
from fedistill.communication.varint import read_varint, varint
from fedistill.errors import FrameError


def up(kind: Kind, round: int, client: int, *sections: bytes, state_id: StateId | None = None) -> bytes:
    """Return a client's frame."""
    return frames.encode(Frame(kind, round, client + 1, sections, state_id))


def down(kind: Kind, round: int, client: int | None, *sections: bytes) -> bytes:
    """Return the server's frame to a client, or, if that is None, to all."""
    return frames.encode(Frame(kind, round, EVERYONE if client is None else client + 1, sections))


def opened(data: bytes, kind: Kind, round: int, client: int, sections: int) -> Frame:
    """Return a frame from or to a client.

    Raises:
        FrameError: it is damaged, or not the one that belongs here.
    """
    frame = frames.decode(data)
    if frame.kind != kind:
        raise FrameError(f"a frame of {kind_label(frame.kind)} came where {kind.label} belong")
    if frame.round != round:
        raise FrameError(f"a frame of round {frame.round} came in round {round}")
    if frame.peer not in (EVERYONE, client + 1):
        raise FrameError(f"a frame of client {frame.peer - 1} came where client {client}'s belongs")
    if frame.local != 1:
        raise FrameError("a frame of a secure sum asks for local training")
    if len(frame.sections) != sections:
        raise FrameError(f"a frame of {kind.label} has {len(frame.sections)} sections, not {sections}")
    return frame


def parts(section: bytes, count: int, size: int) -> list[bytes]:
    """Return the ``count`` parts of ``size`` bytes that a section consists of.

    Raises:
        FrameError: it has another length.
    """
    if len(section) != count * size:
        raise FrameError(f"a section has {len(section)} bytes, not {count} times {size}")
    return [section[place : place + size] for place in range(0, len(section), size)]


def client_list(clients: Sequence[int]) -> bytes:
    """Return a section with the numbers of clients, which are ascending: the first, then differences."""
    before, written = 0, b""
    for client in clients:
        written += varint(client - before)
        before = client
    return written


def read_clients(section: bytes) -> list[int]:
    """Return the clients that `client_list` wrote.

    Raises:
        FrameError: they are not in ascending order, or the section ends within a number.
    """
    found: list[int] = []
    at = 0
    while at < len(section):
        step, at = read_varint(section, at)
        if found and step == 0:
            raise FrameError(f"client {found[-1]} is listed twice")
        found.append(step + (found[-1] if found else 0))
    return found

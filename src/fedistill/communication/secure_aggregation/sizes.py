"""How many bytes the parts of a secure sum take, known without the libraries that make them."""

from collections.abc import Mapping

from fedistill.communication.kinds import Kind
from fedistill.communication.protocol import frame as frames
from fedistill.communication.protocol.frame import Frame
from fedistill.communication.secure_aggregation.fixed_point import Addend

SECRET = 16
"""Bytes of a secret, and of a share of it; 128 bits are as secure as X25519."""
PUBLIC_KEY = 32
COMMITMENT = 16
TAG = 16

ANNOUNCED = 2 * PUBLIC_KEY + COMMITMENT
"""Bytes of the keys and the commitment of a client."""
SHARES = 2 * SECRET
"""Bytes of the two shares that a client has for another one."""
SEALED = SHARES + TAG
SECRETS = 3 * SECRET
"""Bytes that a client draws in each round."""


def round_bytes(addends: Mapping[str, Addend], clients: int) -> tuple[int, int]:
    """Return the bytes that one of so many clients sends and receives in a round in which all remain.

    These are all frames of the secure sum. What the method itself sends down comes on top. Rounds and clients
    are counted as up to 127, and client by client from 0.
    """
    masked = [bytes(-(-addend.count * addend.bits(clients) // 8)) for addend in addends.values()]
    listed = bytes(clients)
    up = (
        (Kind.SECURE_KEYS, [bytes(ANNOUNCED)]),
        (Kind.SECURE_SHARES, [bytes((clients - 1) * SEALED)]),
        (Kind.SECURE_ADDENDS, masked),
        (Kind.SECURE_UNMASKING, [bytes(clients * SECRET)]),
    )
    down = (
        (Kind.SECURE_KEYS, [listed, bytes(clients * ANNOUNCED)]),
        (Kind.SECURE_SHARES, [listed, bytes((clients - 1) * SEALED)]),
        (Kind.SECURE_UNMASKING, [listed]),
    )
    sent, received = (
        sum(len(frames.encode(Frame(kind, 1, 1, tuple(sections)))) for kind, sections in turns)
        for turns in (up, down)
    )
    return sent, received

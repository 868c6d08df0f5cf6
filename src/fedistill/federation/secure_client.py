"""A client's part of a round with secure sums: its work, and then three more turns without any work.

Work comes first: in the first turn a client trains, keeps what it has to add, and announces its keys. So slow
clients drop out before they have shared any secret, and the turns after that take milliseconds.
"""

from collections.abc import Callable

from fedistill.communication.messages.base import Message
from fedistill.communication.protocol.frame import StateId
from fedistill.communication.secure_aggregation.participant import Participant
from fedistill.communication.secure_aggregation.sizes import SECRETS
from fedistill.errors import FrameError, TrainingError
from fedistill.federation.arm import ReadyArm
from fedistill.methods.participants import Client
from fedistill.rng import numpy_stream
from fedistill.state import decode_state, encode_state, from_plain, to_plain


def begin_sum(
    arm: ReadyArm,
    client: Client,
    message: Message,
    state_id: StateId | None,
    draw: Callable[[int], bytes] | None,
) -> tuple[bytes, bytes]:
    """Return a client's first frame of a secure sum, and what it keeps for the next turn.

    Args:
        message: what it would send to the server without secure sums.
        state_id: of the state that its link shares.
        draw: returns as many random bytes; None for those of a simulation, which the seed determines.
    """
    assert arm.secure_sums is not None
    values = arm.adds_up.to_add(client, message, arm.secure_sums)
    integers = {name: addend.encode(values[name], name) for name, addend in arm.addends.items()}
    draw = draw or numpy_stream(arm.seed, f"secure sums of {arm.name}", client.id, client.round).bytes
    participant = Participant.begin(client.id, client.round, draw(SECRETS), integers)
    return participant.announce(state_id), encode_state(to_plain(participant))


def next_turn(arm: ReadyArm, client: int, round: int, kept: bytes, frame: bytes) -> tuple[bytes, bytes]:
    """Return a client's frame of the next turn, and what it keeps after that: nothing after the last.

    Raises:
        FrameError: the frame is not the one that belongs here.
    """
    assert arm.secure_sums is not None
    if not kept:
        raise FrameError("a frame of a secure sum came where none was begun")
    participant = from_plain(Participant, decode_state(kept))
    if participant.round != round or participant.client != client:
        raise TrainingError("what it kept for a secure sum is of another round or client")
    after, reply = participant.answer(frame, arm.addends, arm.secure_sums)
    return reply, b"" if after is None else encode_state(to_plain(after))

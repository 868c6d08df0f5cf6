"""What a round will cost, before it is played."""

from fedistill.communication.kinds import Direction
from fedistill.communication.messages.base import Message
from fedistill.communication.secure_aggregation.sizes import round_bytes
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client_sampling import participants


def expected_bytes(arm: ReadyArm, population: int | None = None) -> tuple[int, int]:
    """Return the bytes up and down of a full round, an upper bound where a codec has no fixed width.

    Messages that cross in place of the usual ones are not counted.

    Args:
        population: from how many clients, like those of the task, the round's are drawn; default: the task's.
    """
    clients = len(arm.task.clients)
    working = participants(arm.sampling, population or clients)
    if arm.secure_sums is not None:
        up, down = round_bytes(arm.addends, working)
        own = _all_clients(arm, "down", arm.method.downlink)
        return up * working, down * working + own * working // clients
    up, down = (
        _all_clients(arm, "up", arm.method.uplink),
        _all_clients(arm, "down", arm.method.downlink),
    )
    return up * working // clients, down * working // clients


def expected_bytes_of_others(arm: ReadyArm) -> int:
    """Return the bytes of messages in place of the usual ones, one of each type with each client."""
    others: list[tuple[Direction, type[Message]]] = [
        *(("up", kind) for kind in arm.method.also_up),
        *(("down", kind) for kind in arm.method.also_down),
    ]
    return sum(_all_clients(arm, way, kind) for way, kind in others)


def _all_clients(arm: ReadyArm, way: Direction, kind: type[Message] | None) -> int:
    """Return the expected bytes of a message of this type with each client."""
    if kind is None:
        return 0
    # Of clients that differ in neither, messages are equally long.
    alike = [(info.model, arm.message_context(info.id).private) for info in arm.federation.clients]
    by_kind = {
        key: arm.coder.length(way, kind, arm.message_context(client))
        for client, key in enumerate(alike)
        if key not in alike[:client]
    }
    return sum(by_kind[key] for key in alike)

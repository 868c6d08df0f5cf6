"""When to exchange: each round, or after local training has accumulated over several (ALU, arXiv 2312.04166).

Rounds count local training. In a round without an exchange nothing crosses and the server's model stays as it
is; what clients would train in it they train when the next exchange comes, on the knowledge that they then
receive. So a fixed number of rounds is that many times the local epochs, with as many times fewer exchanges.
A client that is sent nothing, as in some methods before its first work, cannot be told an adaptive number,
and trains for one.
The adaptive form expects of a further round as much change as the last exchange brought for each of its own.
It is ours: of the paper the abstract was read.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedistill.communication.messages.base import Message, MessageContext
from fedistill.communication.tensor_specs import Classes
from fedistill.config.schema import WhenWorth


class PastExchange(NamedTuple):
    """What an exchange was.

    Attributes:
        round: in which it was; ``local``: rounds of local training behind it.
        bytes: up and down, of all clients.
        change: as `change` measures it, or None where it could not.
    """

    round: int
    local: int
    bytes: int
    change: float | None


def scheduled_rounds(
    accumulate: int | WhenWorth, before: Sequence[PastExchange], round: int, rounds: int
) -> int:
    """Rounds of local training behind an exchange in this round; 0: none is due yet. The last always is."""
    since = round - (before[-1].round if before else 0)
    wanted = accumulate if isinstance(accumulate, int) else worthwhile_rounds(accumulate, before)
    return since if since >= wanted or round == rounds else 0


def fixed_rounds(accumulate: int, round: int) -> int:
    """What `due` says of a fixed number, in a round that has an exchange: a client can tell by itself."""
    return round - (round - 1) // accumulate * accumulate


def worthwhile_rounds(settings: WhenWorth, before: Sequence[PastExchange]) -> int:
    """Rounds from one exchange to the next, at which the change to expect is worth its bytes."""
    measured = [one for one in before if one.change is not None and one.bytes]
    if not measured:
        return 1
    first, last = measured[0], measured[-1]
    assert first.change is not None
    assert last.change is not None
    rate = last.change / last.local
    needed = settings.worth * first.change / first.bytes * last.bytes
    if needed >= rate * settings.most:
        return settings.most
    return max(1, math.ceil(needed / rate))


def relative_change(before: Message, after: Message, context: MessageContext) -> float | None:
    """How far one message is from another: ``|after - before| / |after|``, over all tensors.

    Rows of public samples are compared where both messages have them. None where nothing can be compared.
    """
    moved = size = 0.0
    for name, places in _rows(after, context).items():
        old, new, held = before.tensors()[name], after.tensors()[name], _rows(before, context)[name]
        if places is not None and held is not None:
            _, at, to = np.intersect1d(held, places, return_indices=True)
            old, new = old[at], new[to]
        if old.shape == new.shape:
            moved += float((new - old).double().square().sum())
            size += float(new.double().square().sum())
    return math.sqrt(moved / size) if size else None


def _rows(message: Message, context: MessageContext) -> dict[str, Classes | None]:
    """The places of each tensor's rows in the public set; None where it has all, or rows without a place."""
    kind = type(message)
    numbers: dict[str, Any] = {"held": 0, **message.numbers()}
    numbers |= {name: message.tensors()[name].numpy() for name in kind.integer_arrays(context, numbers)}
    specs = kind.specs(context, numbers)
    return {name: None if kind.caches else spec.rows for name, spec in specs.items()}

"""When to exchange: in each round, or after several rounds of local training (ALU, arXiv 2312.04166).

Rounds count local training. In a round without an exchange nothing crosses and the server's model stays as it
is; clients make up for its training at the next exchange, on the knowledge that they then receive. So a fixed
number of local rounds means that many times the local epochs, and as many times fewer exchanges. A client
that is sent nothing, as in some methods before its first work, cannot be told an adaptive number, and trains
for one round.

The adaptive form expects of one more round as much change as the last exchange brought per local round. It is
ours: of the paper we have read the abstract only.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedistill.communication.messages.base import Message, MessageContext
from fedistill.communication.tensor_specs import Classes
from fedistill.config.schema import WhenWorth


class PastExchange(NamedTuple):
    """An exchange of an earlier round.

    Attributes:
        round: when it was; ``local``: rounds of local training behind it.
        bytes: up and down, summed over clients.
        change: as `relative_change` measures it, or None if it could not be measured.
    """

    round: int
    local: int
    bytes: int
    change: float | None


def scheduled_rounds(
    accumulate: int | WhenWorth, before: Sequence[PastExchange], round: int, rounds: int
) -> int:
    """Return the rounds of local training behind an exchange in this round, or 0 if none is due.

    In the last round one is always due.
    """
    since = round - (before[-1].round if before else 0)
    wanted = accumulate if isinstance(accumulate, int) else worthwhile_rounds(accumulate, before)
    return since if since >= wanted or round == rounds else 0


def fixed_rounds(accumulate: int, round: int) -> int:
    """Return what `scheduled_rounds` does for a fixed number, from what a client knows in an exchange."""
    return round - (round - 1) // accumulate * accumulate


def worthwhile_rounds(settings: WhenWorth, before: Sequence[PastExchange]) -> int:
    """Return the rounds from one exchange to the next for which the change to expect is worth the bytes."""
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
    """Return how far one message is from another, ``|after - before| / |after|`` over all tensors.

    Rows of public samples are compared where both messages have them; None if nothing can be compared, as
    between messages of two types.
    """
    if type(before) is not type(after):
        return None
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
    """Return the public places of each tensor's rows, or None if it has all, or rows without a place."""
    kind = type(message)
    numbers: dict[str, int | Classes] = {"held": 0, **message.numbers()}
    numbers |= {name: message.tensors()[name].numpy() for name in kind.integer_arrays(context, numbers)}
    specs = kind.specs(context, numbers)
    return {name: None if kind.caches else spec.rows for name, spec in specs.items()}

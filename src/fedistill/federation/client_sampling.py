"""Who takes part in a round, and whose reply is lost."""

import math

from fedistill.config.schema import Sampling
from fedistill.rng import numpy_stream


def sample_clients(settings: Sampling, clients: int, seed: int, round: int) -> list[int]:
    """Draw the clients of a round, in order; at least one."""
    count = max(1, math.floor(settings.fraction * clients + 0.5))
    if count >= clients:
        return list(range(clients))
    drawn = numpy_stream(seed, "sampling", round=round).choice(clients, count, replace=False)
    return sorted(int(client) for client in drawn)


def sample_dropouts(settings: Sampling, clients: list[int], seed: int, round: int) -> list[int]:
    """Of the chosen clients, those whose reply never arrives: they worked and sent in vain."""
    if settings.dropout == 0:
        return []
    draws = [numpy_stream(seed, "dropout", client, round).random() < settings.dropout for client in clients]
    return [client for client, gone in zip(clients, draws, strict=True) if gone]

"""Who takes part in a round, and whose reply is lost."""

import math

from fedistill.config.schema import Sampling
from fedistill.rng import numpy_stream


def participants(settings: Sampling, clients: int) -> int:
    """Return how many clients take part in a round, at least one."""
    return max(1, math.floor(settings.fraction * clients + 0.5))


def sample_clients(settings: Sampling, clients: int, seed: int, round: int) -> list[int]:
    """Draw the clients of a round; return them in order."""
    count = participants(settings, clients)
    if count >= clients:
        return list(range(clients))
    drawn = numpy_stream(seed, "sampling", round=round).choice(clients, count, replace=False)
    return sorted(int(client) for client in drawn)


def sample_dropouts(settings: Sampling, clients: list[int], seed: int, round: int) -> list[int]:
    """Draw which of a round's clients send a reply that never arrives."""
    if settings.dropout == 0:
        return []
    draws = [numpy_stream(seed, "dropout", client, round).random() < settings.dropout for client in clients]
    return [client for client, lost in zip(clients, draws, strict=True) if lost]

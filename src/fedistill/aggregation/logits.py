"""Pooling of logits that a minority of liars cannot move far."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedistill.aggregation.classwise import class_medians
from fedistill.aggregation.learned import Reliability
from fedistill.aggregation.robust import agreement
from fedistill.state import State


@dataclass(frozen=True)
class PooledLogits:
    """The outcome of pooling.

    Attributes:
        scores: (n, C).
        reliability: how far each client was followed, by number, from 0 to 1.
        state: what is kept for the next exchange.
    """

    scores: Tensor
    reliability: dict[int, float]
    state: State = field(default_factory=dict)


def median_logits(scores: Mapping[int, Tensor]) -> PooledLogits:
    """Return the median, entry by entry; a client is followed as far as its probabilities are those of it.

    Args:
        scores: logits (n, C) by client, of at least one.
    """
    rows = torch.stack([*scores.values()])
    everywhere = torch.ones(rows.shape[:2], dtype=torch.bool)
    pooled, _ = class_medians(rows, everywhere)
    alike = agreement(pooled.softmax(dim=1), rows.softmax(dim=2), everywhere)
    return PooledLogits(pooled, dict(zip(scores, alike.tolist(), strict=True)))


def reliable_logits(scores: Mapping[int, Tensor], state: State) -> PooledLogits:
    """Return the mean of clients' logits, each weighted as `Reliability` finds from their probabilities.

    Logits longer than the median client's are first cut to its length, which probabilities hardly show: who
    sends true ones ten times as large is believed, moves the mean no further than others, and is followed a
    tenth as far.

    Args:
        scores: logits (n, C) by client, of at least one.
        state: that of the exchange before, empty in the first one.
    """
    rows = {client: own.double().softmax(dim=1) for client, own in scores.items()}
    found = Reliability().aggregate(rows.items(), torch.Generator(), state=state)
    assert found is not None
    lengths = torch.stack([own.double().norm() for own in scores.values()])
    cuts = (lengths.median() / lengths.clamp(min=torch.finfo(torch.float64).tiny)).clamp(max=1).tolist()
    alike = not any(found.trust.values())  # nobody confirms anybody
    pooled = torch.zeros_like(next(iter(scores.values())), dtype=torch.float64)
    followed = {}
    for (client, own), cut in zip(scores.items(), cuts, strict=True):
        pooled += (1 / len(scores) if alike else found.trust[client]) * cut * own
        followed[client] = found.reliability[client] * cut
    return PooledLogits(pooled.float(), followed, found.state)

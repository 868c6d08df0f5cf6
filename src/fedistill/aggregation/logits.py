"""Pooling of logits that a minority of liars cannot move far."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedistill.aggregation.classwise import class_medians
from fedistill.aggregation.learned import Reliability
from fedistill.aggregation.robust import agreement
from fedistill.state import State

_TINY = 1e-12
_SHARP = 3.0
"""Root mean square of the median client's logits, less the mean of each row, as they are compared."""


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
    """Return the mean of clients' logits, less the mean of each row, weighted as `Reliability` finds.

    For that all are scaled alike, so that the median client's are sharp, whatever its logits' size: who says
    nothing, logits of zero, agrees with nobody. Logits longer than those of the median client that is
    followed are then cut to its length, which probabilities hardly show: who sends true ones ten times as
    large is believed, moves the mean no further than others, and is followed a tenth as far.

    Args:
        scores: logits (n, C) by client, of at least one.
        state: that of the exchange before, empty in the first one.
    """
    # What all classes of a row have in common says nothing of its class, and a lie in it would not be seen.
    exact = {client: own.double() - own.double().mean(dim=1, keepdim=True) for client, own in scores.items()}
    lengths = torch.stack([own.norm() for own in exact.values()]).clamp(min=_TINY)
    scale = _SHARP * next(iter(exact.values())).numel() ** 0.5 / lengths.median()
    rows = {client: (scale * own).softmax(dim=1) for client, own in exact.items()}
    found = Reliability().aggregate(rows.items(), torch.Generator(), state=state)
    assert found is not None
    shares = torch.tensor([found.trust[client] for client in scores])
    if not shares.any():  # nobody confirms anybody
        shares += 1 / len(shares)
    cuts = (lengths[shares > 0].median() / lengths).clamp(max=1).tolist()
    pooled = torch.zeros_like(next(iter(scores.values())), dtype=torch.float64)
    followed = {}
    for (client, own), share, cut in zip(exact.items(), shares.tolist(), cuts, strict=True):
        pooled += share * cut * own
        followed[client] = found.reliability[client] * cut
    return PooledLogits(pooled.float(), followed, found.state)

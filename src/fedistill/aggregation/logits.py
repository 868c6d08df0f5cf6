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
_UNLIKE = 3.0
"""Honest clients' logits may be this many times as long as the median one's: their models differ."""


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

    For that all are scaled alike, so that the median client's are sharp, whatever its logits' size. Who says
    nothing, logits of zero, is left out. Logits longer than those of the median client that is followed are
    cut to its length, which probabilities hardly show: who sends true ones ten times as large is believed,
    and moves the mean no further than others. Models of several kinds may differ so by a few times; beyond
    three, a client is reported as followed as much less as it is cut.

    Args:
        scores: logits (n, C) by client, of at least one.
        state: that of the exchange before, empty in the first one.
    """
    # What all classes of a row have in common says nothing of its class, and a lie in it would not be seen.
    exact = {client: own.double() - own.double().mean(dim=1, keepdim=True) for client, own in scores.items()}
    exact = {client: own for client, own in exact.items() if own.norm() > _TINY}
    pooled = torch.zeros_like(next(iter(scores.values())), dtype=torch.float64)
    followed = dict.fromkeys(scores, 0.0)
    if not exact:
        return PooledLogits(pooled.float(), followed, state)
    lengths = torch.stack([own.norm() for own in exact.values()])
    scale = _SHARP * next(iter(exact.values())).numel() ** 0.5 / lengths.median()
    rows = {client: (scale * own).softmax(dim=1) for client, own in exact.items()}
    found = Reliability().aggregate(rows.items(), torch.Generator(), state=state)
    assert found is not None
    shares = torch.tensor([found.trust[client] for client in exact])
    if not shares.any():  # nobody confirms anybody
        shares += 1 / len(shares)
    cuts = (lengths[shares > 0].median() / lengths).clamp(max=1).tolist()
    for (client, own), share, cut in zip(exact.items(), shares.tolist(), cuts, strict=True):
        pooled += share * cut * own
        followed[client] = found.reliability[client] * min(1.0, _UNLIKE * cut)
    return PooledLogits(pooled.float(), followed, found.state)

"""Aggregation: from the clients' replies, in client order, to one value."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import one_hot


def weighted_mean(values: Iterable[tuple[Tensor, float]]) -> Tensor | None:
    """Mean of equally shaped tensors with weights, or None where there is none.

    Sums in float64 one value at a time, so memory does not grow with the number of clients and the
    result depends on their order only below float32.
    """
    total: Tensor | None = None
    weight_sum = 0.0
    for value, weight in values:
        if total is None:
            total = torch.zeros_like(value, dtype=torch.float64)
        total.add_(value, alpha=weight)
        weight_sum += weight
    return None if total is None else total.div_(weight_sum).float()


def mean(values: Iterable[Tensor]) -> Tensor | None:
    """Mean of equally shaped tensors, or None where there is none."""
    return weighted_mean((value, 1.0) for value in values)


def entropy_reduced(probs: Tensor, temperature: float) -> Tensor:
    """Entropy reduction aggregation of DS-FL: softmax of mean probabilities (n, C) over a temperature.

    Temperatures below 1 sharpen; a uniform row stays uniform and no odds exceed ``e**(1/T)``
    (Itahara et al., arXiv 2008.06180).
    """
    return torch.softmax(probs / temperature, dim=1)


def enhanced_era(probs: Tensor, beta: float) -> Tensor:
    """Enhanced entropy reduction of SCARLET: ``p**beta`` of mean probabilities (n, C), normalised.

    1 is the plain mean; greater sharpens (arXiv 2504.19602).
    """
    powers = probs.pow(beta)
    return powers / powers.sum(dim=1, keepdim=True)


def majority(shares: Tensor, before: Tensor | None, generator: torch.Generator) -> Tensor:
    """One-hot majority (n, C) of vote shares (n, C).

    A tie goes to the class of ``before``, one-hot (n, C), if it is among the tied, else it is drawn.
    """
    most = shares.max(dim=1, keepdim=True).values
    # Shares are means of whole votes: those of tied classes are equal to the last bit.
    rank = (shares == most) * (1 + torch.rand(shares.shape, generator=generator))
    if before is not None:
        rank = rank * (1 + 2 * before)
    return one_hot(rank.argmax(dim=1), shares.shape[1]).float()

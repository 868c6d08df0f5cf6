"""Aggregation: from the clients' replies, in client order, to one value."""

from collections.abc import Iterable

import torch
from torch import Tensor


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

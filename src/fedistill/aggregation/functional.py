"""Aggregation: from the clients' replies, in client order, to one value."""

import math
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

Answers = Iterator[tuple[Tensor, Tensor]]
"""Of each client, rows (n, C) and which (n,) of them are answers."""


def weighted_mean(values: Iterable[tuple[Tensor, float]]) -> Tensor | None:
    """Mean of equally shaped tensors with weights, or None where there is none.

    Sums in float64 one value at a time, so memory does not grow with the number of clients and the
    result depends on their order only below float32.

    Examples:
        >>> weighted_mean([(torch.tensor([0.0, 4.0]), 1), (torch.tensor([2.0, 0.0]), 3)])
        tensor([1.5000, 1.0000])
        >>> weighted_mean([]) is None
        True
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


def mean_of_answers(answers: Answers) -> Tensor | None:
    """Mean of rows (n, C) over the clients that answer each sample, 0 where none does; None without clients.

    Examples:
        Two clients and two samples; the second client does not answer the second sample.

        >>> both, one = torch.tensor([True, True]), torch.tensor([True, False])
        >>> first = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> second = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
        >>> mean_of_answers(iter([(first, both), (second, one)]))
        tensor([[0.5000, 0.5000],
                [0.0000, 1.0000]])
    """
    total: Tensor | None = None
    counts = torch.zeros(())
    for rows, mask in answers:
        if total is None:
            total = torch.zeros_like(rows, dtype=torch.float64)
            counts = total.new_zeros(len(rows))
        total += torch.where(mask[:, None], rows, 0)
        counts += mask
    return None if total is None else (total / counts.clamp(min=1)[:, None]).float()


def entropy_reduced(probs: Tensor, temperature: float) -> Tensor:
    """Entropy reduction aggregation of DS-FL: softmax of mean probabilities (n, C) over a temperature.

    Temperatures below 1 sharpen; a uniform row stays uniform and no odds exceed ``e**(1/T)``
    (Itahara et al., arXiv 2008.06180).

    Examples:
        >>> entropy_reduced(torch.tensor([[0.6, 0.4], [0.5, 0.5]]), temperature=0.1)
        tensor([[0.8808, 0.1192],
                [0.5000, 0.5000]])
    """
    return torch.softmax(probs / temperature, dim=1)


def enhanced_era(probs: Tensor, beta: float) -> Tensor:
    """Enhanced entropy reduction of SCARLET: ``p**beta`` of mean probabilities (n, C), normalised.

    1 is the plain mean; greater sharpens (arXiv 2504.19602).

    Examples:
        >>> enhanced_era(torch.tensor([[0.8, 0.2]]), beta=2.0)
        tensor([[0.9412, 0.0588]])
    """
    # Over the greatest: no power of it is lost below the smallest number.
    powers = (probs / probs.max(dim=1, keepdim=True).values).pow(beta)
    return powers / powers.sum(dim=1, keepdim=True)


def prior_corrected(answers: Answers, sharpness: float, floor: float) -> Tensor | None:
    """Geometric mean of answers (n, C), each divided by the mean answer of its sender, to a power; or None.

    The mean answer of a client is its class prior, as its own answers show it. A share ``floor`` of each row
    is spread evenly first, so that no class is ruled out. A class that a client never names then has the
    prior that its rows give it, and the client has no say in it.
    """

    def corrected(rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        spread = rows.double() * (1 - floor) + floor / rows.shape[1]
        return spread.log() - spread[mask].mean(dim=0).log(), mask

    logs = mean_of_answers(corrected(rows, mask) for rows, mask in answers)
    return None if logs is None else torch.softmax(sharpness * logs, dim=1)


def confidences(probs: Tensor, measure: Literal["entropy", "max"]) -> Tensor:
    """How sure each row (n, C) is, from 0 for a uniform one to 1 for a one-hot one.

    Examples:
        >>> confidences(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), "max")
        tensor([0., 1.])
    """
    classes = probs.shape[1]
    if measure == "max":
        return (probs.max(dim=1).values * classes - 1) / (classes - 1)
    entropies: Tensor = -torch.special.xlogy(probs, probs).sum(dim=1)
    return 1 - entropies / math.log(classes)


def median(rows: Tensor, mask: Tensor) -> Tensor:
    """Median (n, C) of each entry of rows (k, n, C) where ``mask`` (k, n), normalised; of two the mean."""
    return trimmed(rows, mask, (mask.sum(dim=0) - 1).clamp(min=0) // 2)


def trimmed(rows: Tensor, mask: Tensor, cut: Tensor) -> Tensor:
    """Mean (n, C) of each entry of rows (k, n, C) where ``mask`` (k, n), without its extremes, normalised.

    ``cut`` (n,) says how many fall away at either end. A row of which nothing is left is the plain mean.
    """
    mask = mask[..., None]
    count = mask.sum(dim=0)
    place = torch.arange(len(rows))[:, None, None]
    inside = (place >= cut[:, None]) & (place < count - cut[:, None])
    ordered = torch.where(mask, rows.double(), torch.inf).sort(dim=0).values
    kept = torch.where(inside, ordered, 0).sum(dim=0)
    kept = torch.where(kept.sum(dim=1, keepdim=True) > 0, kept, rows.double().sum(dim=0))
    return (kept / kept.sum(dim=1, keepdim=True)).float()


def dawid_skene(votes: Tensor, classes: int, iterations: int, smoothing: float) -> tuple[Tensor, Tensor]:
    """Posterior (n, C) and confusion matrices (k, C, C) of classes (k, n) that k clients named, by EM.

    Starts from the shares of votes; -1 is none. An entry [i, c, v] is the chance that client i names v where
    c is true; ``smoothing`` is added to each count, so that what was never seen is not ruled out.
    """
    hot = one_hot(votes + 1, classes + 1)[..., 1:].double()
    named = (votes >= 0).sum(dim=0)
    posterior = hot.sum(dim=0) / named.clamp(min=1)[:, None]
    confusion = hot.new_zeros(len(votes), classes, classes)
    for _ in range(iterations):
        counts = torch.einsum("nc,knv->kcv", posterior, hot) + smoothing
        confusion = counts / counts.sum(dim=2, keepdim=True)
        prior = posterior[named > 0].sum(dim=0) + smoothing
        said = torch.einsum("kcv,knv->nc", confusion.log(), hot)
        before, posterior = posterior, torch.softmax((prior / prior.sum()).log() + said, dim=1)
        if torch.allclose(before, posterior, rtol=0, atol=1e-6):
            break
    return posterior.float(), confusion.float()


def majority(shares: Tensor, before: Tensor | None, generator: torch.Generator) -> Tensor:
    """One-hot majority (n, C) of vote shares (n, C).

    A tie goes to the class of ``before``, one-hot (n, C), if it is among the tied, else it is drawn.

    Examples:
        >>> shares = torch.tensor([[0.75, 0.25, 0.0], [0.5, 0.5, 0.0]])
        >>> before = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
        >>> majority(shares, before, torch.Generator())
        tensor([[1., 0., 0.],
                [0., 1., 0.]])
    """
    most = shares.max(dim=1, keepdim=True).values
    # Shares are means of whole votes: those of tied classes are equal to the last bit.
    rank = (shares == most) * (1 + torch.rand(shares.shape, generator=generator))
    if before is not None:
        rank = rank * (1 + 2 * before)
    return one_hot(rank.argmax(dim=1), shares.shape[1]).float()

"""Aggregation functions on tensors; replies are taken in client order."""

import math
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

Answers = Iterator[tuple[Tensor, Tensor]]
"""For each client, rows (n, C) and a mask (n,) of the rows that it answered."""


def weighted_mean(values: Iterable[tuple[Tensor, float]]) -> Tensor | None:
    """Return the weighted mean of tensors of equal shape, or None if there are none.

    Sums in float64, one value at a time: memory does not grow with the number of clients, and their
    order affects the result only below float32 precision.

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
    """Return the mean of tensors of equal shape, or None if there are none."""
    return weighted_mean((value, 1.0) for value in values)


def mean_by_sample(values: Iterable[tuple[Tensor, Tensor]]) -> Tensor | None:
    """Return the mean of rows (n, C) by weights (n,) > 0 of each row, or None if there are none.

    Examples:
        >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> mean_by_sample([(rows, torch.tensor([3.0, 1.0])), (1 - rows, torch.tensor([1.0, 1.0]))])
        tensor([[0.7500, 0.2500],
                [0.5000, 0.5000]])
    """
    total: Tensor | None = None
    weights = torch.zeros(())
    for rows, weight in values:
        weighted = rows.double() * weight.double()[:, None]
        total = weighted if total is None else total.add_(weighted)
        weights = weights + weight.double()
    return None if total is None else (total / weights[:, None]).float()


def mean_of_answers(answers: Answers) -> Tensor | None:
    """Return the mean of rows (n, C) over the clients that answered each sample, or None if there are none.

    Samples that no client answered get rows of zeros.

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
    """Return the softmax of mean probabilities (n, C) divided by a temperature: DS-FL's entropy reduction.

    Temperatures below 1 sharpen the rows. A uniform row stays uniform, and no odds exceed ``e**(1/T)``
    (Itahara et al., arXiv 2008.06180).

    Examples:
        >>> entropy_reduced(torch.tensor([[0.6, 0.4], [0.5, 0.5]]), temperature=0.1)
        tensor([[0.8808, 0.1192],
                [0.5000, 0.5000]])
    """
    return torch.softmax(probs / temperature, dim=1)


def enhanced_era(probs: Tensor, beta: float) -> Tensor:
    """Return ``p**beta`` of mean probabilities (n, C), normalised: SCARLET's enhanced entropy reduction.

    A power of 1 keeps the mean; larger powers sharpen it (arXiv 2504.19602).

    Examples:
        >>> enhanced_era(torch.tensor([[0.8, 0.2]]), beta=2.0)
        tensor([[0.9412, 0.0588]])
    """
    # Divided by the largest entry, whose power can then not underflow to 0.
    powers = (probs / probs.max(dim=1, keepdim=True).values).pow(beta)
    return powers / powers.sum(dim=1, keepdim=True)


def prior_corrected(answers: Answers, sharpness: float, floor: float) -> Tensor | None:
    """Return the geometric mean of the answers, each divided by its client's mean answer, to a power.

    A client's mean answer estimates its class prior. A share ``floor`` of each row is first spread evenly
    over the classes, so that no class is ruled out. For a class that a client never names, its rows then
    equal its prior, so the client has no influence there.

    Args:
        answers: rows and masks of the clients.
        sharpness: the power.
        floor: share of each row that is spread evenly, above 0 and below 1.

    Returns:
        Rows (n, C) that sum to 1, or None if there are no clients.
    """

    def corrected(rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        spread = rows.double() * (1 - floor) + floor / rows.shape[1]
        return spread.log() - spread[mask].mean(dim=0).log(), mask

    logs = mean_of_answers(corrected(rows, mask) for rows, mask in answers)
    return None if logs is None else torch.softmax(sharpness * logs, dim=1)


def confidences(probs: Tensor, measure: Literal["entropy", "max"]) -> Tensor:
    """Return the confidence (n,) of rows (n, C), from 0 for a uniform row to 1 for a one-hot row.

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
    """Return the entrywise median (n, C) of rows (k, n, C) where ``mask`` (k, n) is true, normalised.

    The median of an even number of values is the mean of the middle two.
    """
    return trimmed(rows, mask, (mask.sum(dim=0) - 1).clamp(min=0) // 2)


def trimmed(rows: Tensor, mask: Tensor, cut: Tensor) -> Tensor:
    """Return the entrywise trimmed mean (n, C) of rows (k, n, C) where ``mask`` (k, n) is true, normalised.

    ``cut`` (n,) is the number of values dropped at each end. A row in which only zeros remain is the plain
    mean instead; a row that nobody answered is all 0.
    """
    mask = mask[..., None]
    count = mask.sum(dim=0)
    place = torch.arange(len(rows))[:, None, None]
    inside = (place >= cut[:, None]) & (place < count - cut[:, None])
    ordered = torch.where(mask, rows.double(), torch.inf).sort(dim=0).values
    kept = torch.where(inside, ordered, 0).sum(dim=0)
    kept = torch.where(kept.sum(dim=1, keepdim=True) > 0, kept, rows.double().sum(dim=0))
    whole = kept.sum(dim=1, keepdim=True)
    return (kept / torch.where(whole > 0, whole, 1)).float()


def dawid_skene(votes: Tensor, classes: int, iterations: int, smoothing: float) -> tuple[Tensor, Tensor]:
    """Estimate the true classes and each client's errors from the votes of k clients, by EM.

    Args:
        votes: classes (k, n) that the clients named, -1 where a client did not answer.
        classes: C.
        iterations: at most; EM starts from the shares of votes and stops once nothing changes.
        smoothing: added to each count, so that what was never seen is not ruled out.

    Returns:
        The posterior (n, C), and confusion matrices (k, C, C), whose entry [i, c, v] is the probability
        that client i names v if c is true.
    """
    hot = one_hot(votes + 1, classes + 1)[..., 1:].double()
    named = (votes >= 0).sum(dim=0)
    posterior = hot.sum(dim=0) / named.clamp(min=1)[:, None]
    confusion = hot.new_zeros(len(votes), classes, classes)
    for _ in range(iterations):
        counts = torch.einsum("nc,knv->kcv", posterior, hot) + smoothing
        confusion = counts / counts.sum(dim=2, keepdim=True)
        prior = posterior[named > 0].sum(dim=0) + smoothing
        likelihood = torch.einsum("kcv,knv->nc", confusion.log(), hot)
        before, posterior = posterior, torch.softmax((prior / prior.sum()).log() + likelihood, dim=1)
        if torch.allclose(before, posterior, rtol=0, atol=1e-6):
            break
    return posterior.float(), confusion.float()


def majority(shares: Tensor, before: Tensor | None, generator: torch.Generator) -> Tensor:
    """Return the one-hot majority (n, C) of vote shares (n, C).

    A tie goes to the class of ``before``, one-hot (n, C), if it is among the tied classes; otherwise one
    of them is drawn.

    Examples:
        >>> shares = torch.tensor([[0.75, 0.25, 0.0], [0.5, 0.5, 0.0]])
        >>> before = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
        >>> majority(shares, before, torch.Generator())
        tensor([[1., 0., 0.],
                [0., 1., 0.]])
    """
    most = shares.max(dim=1, keepdim=True).values
    # Shares are means of integer votes, so those of tied classes are exactly equal.
    rank = (shares == most) * (1 + torch.rand(shares.shape, generator=generator))
    if before is not None:
        rank = rank * (1 + 2 * before)
    return one_hot(rank.argmax(dim=1), shares.shape[1]).float()

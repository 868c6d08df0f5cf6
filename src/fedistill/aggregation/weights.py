"""Averages of clients' weights, plain and robust: the choices of the setting ``averaging``."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedistill.aggregation.functional import weighted_mean

Averaging = Literal["mean", "norm-clipping", "median", "trimmed-mean", "multi-krum", "screened"]

_LEAST = 0.5


@dataclass(frozen=True)
class Merged:
    """The average of clients' weights.

    Attributes:
        weights: (P,).
        reliability: how far each client's change agrees with the average one, from 0 to 1, in the order of
            the weights; None for the mean.
    """

    weights: Tensor
    reliability: list[float] | None = None


def merge_weights(
    sent: Iterable[tuple[Tensor, float]], before: Tensor, averaging: Averaging, liars: float
) -> Merged | None:
    """Return the average of weights, or None if there are none.

    - ``mean``: by the weight of each; memory does not grow with the number of clients.
    - ``norm-clipping``: the same, with changes longer than the median one cut to its length (after Sun et
      al., 2019, arXiv 1911.07963, who fix the length).
    - ``median``, ``trimmed-mean``: of each number, every client counting once; the mean leaves out the share
      ``liars`` at each end (Yin et al., 2018, arXiv 1803.01498).
    - ``multi-krum``: the mean of those whose changes are close to others', all but the share ``liars``
      (Blanchard et al., 2017, arXiv 1703.02757, section 4).
    - ``screened``: as ``norm-clipping``, without the clients whose reliability, against the median of the
      changes cut to length, is below half of the median client's. This rule is ours; FLTrust (Cao et al.,
      2021, arXiv 2012.13995) weighs by the cosine with a change that a trusted server has trained.

    A client's reliability is the cosine of its change and the average one, 0 if it is negative, times the
    share of its change that remains if those longer than the median one are cut to its length.

    Args:
        sent: the weights (P,) of each client, and how much it counts.
        before: the weights (P,) that the clients were sent.
        liars: the share of clients that may lie, below a half.
    """
    if averaging == "mean":
        mean = weighted_mean(sent)
        return None if mean is None else Merged(mean)
    rows, counts = [], []
    for values, count in sent:
        rows.append(values - before)
        counts.append(count)
    if not rows:
        return None
    changes, weights = torch.stack(rows), torch.tensor(counts, dtype=torch.float64)
    lengths = changes.norm(dim=1)
    kept = (lengths.median() / lengths.clamp(min=torch.finfo(lengths.dtype).tiny)).clamp(max=1)
    bound = int(liars * len(rows))
    if averaging == "norm-clipping":
        change = _mean(changes * kept[:, None], weights)
    elif averaging == "multi-krum":
        chosen = _close_to_others(changes, bound)
        change = _mean(changes[chosen], weights[chosen])
    elif averaging == "screened":
        cut_changes = changes * kept[:, None]
        figures = _cosines(changes, cut_changes.sort(dim=0).values[_middle(len(rows))].mean(dim=0)) * kept
        followed = figures >= _LEAST * figures.median()
        change = _mean(cut_changes[followed], weights[followed])
    else:
        cut = (len(rows) - 1) // 2 if averaging == "median" else bound
        change = changes.sort(dim=0).values[cut : len(rows) - cut].mean(dim=0)
    return Merged(before + change, (_cosines(changes, change) * kept).tolist())


def _middle(count: int) -> slice:
    """Return the place of the median, or of the middle two, of as many sorted values."""
    return slice((count - 1) // 2, count // 2 + 1)


def _cosines(changes: Tensor, change: Tensor) -> Tensor:
    """Return the cosine (k,) of changes (k, P) and another (P,), 0 where it is negative."""
    return torch.cosine_similarity(changes.double(), change.double()[None], dim=1).clamp(0, 1)


def _mean(changes: Tensor, weights: Tensor) -> Tensor:
    return ((changes.double() * weights[:, None]).sum(dim=0) / weights.sum()).float()


def _close_to_others(changes: Tensor, liars: int) -> Tensor:
    """Return a mask (k,) of the changes (k, P) that multi-Krum selects: all but ``liars``."""
    count = len(changes)
    distances = torch.cdist(changes.double(), changes.double()).square()
    nearest = max(count - liars - 2, 1)
    # The first of each sorted row is the distance to itself.
    scores = distances.sort(dim=1).values[:, 1 : nearest + 1].sum(dim=1)
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[scores.argsort(stable=True)[: max(count - liars, 1)]] = True
    return chosen

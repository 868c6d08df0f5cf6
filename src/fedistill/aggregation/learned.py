"""Label aggregators that learn over rounds, without labels, whom to rely on."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedistill.aggregation.functional import Answers
from fedistill.aggregation.labels import Aggregation, Combined, ExchangeInfo, stacked
from fedistill.aggregation.robust import agreement, geometric_median
from fedistill.config.schema import Positive
from fedistill.state import State

_ITERATIONS = 10
_PRIOR = 5.0
"""Samples that a client's agreement in all classes is worth in each of them."""
_POWER = 3
_TINY = 1e-12


class Reliability(Aggregation):
    """Prior-corrected mean in which a client counts, class by class, as far as the others confirm it.

    For each client and class, the aggregator counts how much of the probability that the client gives to the
    class the pooled labels of the *other* clients give too, in this exchange and earlier ones. The share, to
    a power, is the client's weight in that class. Weights and labels are found in turn, ten times in each
    exchange; they begin with the correlation of each client's rows with those of the median other one, which
    liars who all send the same cannot raise while they are fewer than half. A client that is confirmed less
    than ``least`` times as often as the median one counts nothing. The work grows with the square of the
    number of clients.

    The rows are pooled as in `prior-corrected`, whose ``sharpness`` and ``floor`` these are. This rule is
    ours; learning reliability from agreement alone is Dawid and Skene's (1979), whose confusion matrices it
    replaces by one figure a class, so that no client is believed to mean another class than it says. One-hot
    rows lose nothing.
    """

    name: Literal["reliability"] = "reliability"
    memory: float = Field(
        default=0.8, ge=0, lt=1, description="share of earlier counts that is kept in each exchange"
    )
    least: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="a client that is confirmed less often than this share of the median one counts nothing",
    )
    sharpness: Positive = Field(default=3.0, description="power of the mean")
    floor: float = Field(
        default=0.01, gt=0, lt=1, description="share of each row spread evenly over the classes"
    )

    def combine(self, answers: Answers, exchange: ExchangeInfo) -> Combined | None:
        came = stacked(answers)
        if came is None:
            return None
        heard = came[1].any(dim=1)
        if not heard.any():
            return Combined(came[0][0], state=exchange.state)
        clients = [one for one, said in zip(exchange.clients, heard.tolist(), strict=True) if said]
        rows, mask = came[0][heard].double(), came[1][heard].double()[..., None]
        logs = self._corrected(rows, mask)
        past = self._past(clients, exchange.state, rows.shape[2])
        weights = _common(rows, mask).pow(_POWER)[:, None, None] * mask
        shared = mask * (mask.sum(dim=0) > 1)  # where nobody else answered, nothing confirms or contradicts
        for _ in range(_ITERATIONS):
            said, in_all = weights * logs, weights.sum(dim=0)
            others = (said.sum(dim=0) - said) / (in_all - weights).clamp(min=_TINY)
            confirmed = torch.softmax(self.sharpness * others, dim=2)
            agreed = (torch.minimum(rows, confirmed) * shared).sum(dim=1)
            spoken = ((rows + confirmed) / 2 * shared).sum(dim=1)
            counts = past + torch.stack([agreed, spoken], dim=1)
            weights = self._weights(counts)[:, None] * mask
        pooled = (weights * logs).sum(dim=0) / weights.sum(dim=0).clamp(min=_TINY)
        kept = {str(client): own for client, own in zip(clients, counts, strict=True)}
        return Combined(
            torch.softmax(self.sharpness * pooled, dim=1).float(),
            _placed(weights.mean(dim=2).sum(dim=1), heard),
            state={**exchange.state, **kept},
            reliability=_placed(_overall(counts).clamp(0, 1), heard),
        )

    def _corrected(self, rows: Tensor, mask: Tensor) -> Tensor:
        """Return the logarithms of rows (k, n, C), each less that of its client's mean row."""
        spread = rows * (1 - self.floor) + self.floor / rows.shape[2]
        prior = (spread * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        return spread.log() - prior.clamp(min=_TINY).log()[:, None]

    def _past(self, clients: Sequence[int], state: State, classes: int) -> Tensor:
        """Return (k, 2, C): what was confirmed, and what was said, in earlier exchanges."""
        none = torch.zeros(2, classes, dtype=torch.float64)
        return self.memory * torch.stack([state.get(str(client), none) for client in clients])

    def _weights(self, counts: Tensor) -> Tensor:
        """Return the weights (k, C) that follow from counts (k, 2, C)."""
        agreed, spoken = counts.unbind(dim=1)
        overall = _overall(counts)
        figures = (agreed + _PRIOR * overall[:, None]) / (spoken + _PRIOR)
        followed = overall >= self.least * overall.median()
        return figures.pow(_POWER) * followed[:, None]


class HistoryWeighted(Aggregation):
    """Mean weighted by how near each client has been to the others so far (after ExpGuard, arXiv 2402.12265).

    In each exchange, a client's distance is the probability that its rows do not share with the geometric
    median of all. Its weight is ``exp(-rate D)``: D is the mean of its distances, beyond that of the nearest
    client, times the most exchanges that any client has answered. Whoever lies again and again soon counts
    nothing, and who comes late is judged by as much as the others.

    Departs from the paper, of which we had the abstract alone: it weighs clients exponentially by what it
    holds of them from present and past rounds; the distance is ours. For one-hot rows, it is the share of
    votes against the majority.
    """

    name: Literal["history-weighted"] = "history-weighted"
    rate: Positive = Field(default=5.0, description="how fast a weight falls with distance")

    def combine(self, answers: Answers, exchange: ExchangeInfo) -> Combined | None:
        came = stacked(answers)
        if came is None:
            return None
        rows, mask = came
        distances = 1 - agreement(geometric_median(rows, mask, iterations=20), rows, mask)
        none = torch.zeros(2, dtype=torch.float64)
        past = torch.stack([exchange.state.get(str(client), none) for client in exchange.clients])
        came_now = mask.any(dim=1).double()
        sums, counts = (past + torch.stack([distances * came_now, came_now], dim=1)).unbind(dim=1)
        apart = sums / counts.clamp(min=1)
        nearest = torch.where(counts > 0, apart, torch.inf).min()
        weights = torch.exp(-self.rate * counts.max() * (apart - nearest)).clamp(min=_TINY)
        counted = weights[:, None] * mask
        summed = (rows.double() * counted[..., None]).sum(dim=0)
        labels = (summed / counted.sum(dim=0).clamp(min=_TINY)[:, None]).float()
        found = zip(exchange.clients, torch.stack([sums, counts], dim=1), strict=True)
        kept = {str(client): own.clone() for client, own in found if own[1] > 0}
        return Combined(
            labels,
            counted.sum(dim=1).tolist(),
            state={**exchange.state, **kept},
            reliability=weights.tolist(),
        )


def _common(rows: Tensor, mask: Tensor) -> Tensor:
    """Return the correlation (k,) of each client's rows with those of the median other one, above 0.

    Liars who all send the same correlate with less than half of the others, however well with each other;
    and unlike agreement, correlation gives nothing for what their rows have in common with any by chance.

    Args:
        rows: (k, n, C); ``mask``: (k, n, 1), 0 where a client did not answer.
    """
    if len(rows) == 1:
        return rows.new_ones(1)
    usual = (rows * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    away = (rows - usual) * mask
    found = []
    for place, own in enumerate(away):
        lengths = (away.square() * mask[place]).sum(dim=(1, 2)) * (own.square() * mask).sum(dim=(1, 2))
        alike = (own * away).sum(dim=(1, 2)) / lengths.sqrt().clamp(min=_TINY)
        others = torch.cat([alike[:place], alike[place + 1 :]]).sort().values
        found.append(others[len(others) // 2])  # of two in the middle, the one that the honest decide
    return torch.stack(found).clamp(min=_TINY)


def _placed(figures: Tensor, heard: Tensor) -> list[float]:
    """Return the figures of those who were heard, a mask (k,), at their places, and 0 for the others."""
    found = figures.new_zeros(len(heard))
    found[heard] = figures
    return found.tolist()


def _overall(counts: Tensor) -> Tensor:
    """Return the share (k,) of what was said that was confirmed, from counts (k, 2, C).

    For a client of which nothing could be confirmed, it is the median of the others; 1 if there are none.
    """
    agreed, spoken = counts.sum(dim=2).unbind(dim=1)
    found, judged = agreed / spoken.clamp(min=_TINY), spoken > 0
    usual = found[judged].median() if judged.any() else found.new_ones(())
    return torch.where(judged, found, usual)

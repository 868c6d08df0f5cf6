"""Label aggregators that a minority of liars cannot move far, whatever they send."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedistill.aggregation.functional import Answers, median, trimmed
from fedistill.aggregation.labels import Aggregation, Combined, ExchangeInfo, stacked


class Median(Aggregation):
    """Median of each entry, normalised (Yin et al., 2018, arXiv 1803.01498, there for gradients).

    Fewer than half of the clients cannot move it out of the range of the others. Under label skew it drops
    what only a few clients know. For one-hot rows, it is the class that more than half of the clients named,
    or the shares of votes if there is no such class.
    """

    name: Literal["median"] = "median"

    def combine(self, answers: Answers, exchange: ExchangeInfo) -> Combined | None:
        came = stacked(answers)
        return None if came is None else _followed(median(*came), *came)


class Trimmed(Aggregation):
    """Mean of each entry without its lowest and highest values, normalised (Yin et al., arXiv 1803.01498).

    For one-hot rows, these are shares of votes in which the first few votes for a class and the first few
    against it do not count, or the plain shares if nothing is left.
    """

    name: Literal["trimmed"] = "trimmed"
    share: float = Field(
        default=0.1, ge=0, lt=0.5, description="share of the answers dropped at each end, rounded down"
    )

    def combine(self, answers: Answers, exchange: ExchangeInfo) -> Combined | None:
        came = stacked(answers)
        if came is None:
            return None
        rows, mask = came
        cut = (self.share * mask.sum(dim=0).double()).long()
        return _followed(trimmed(rows, mask, cut), rows, mask)


class GeometricMedian(Aggregation):
    """Geometric median of the rows of each sample (Pillutla et al., arXiv 1912.13445, there for weights).

    It has the least sum of distances to the clients' rows, so that a minority, however it colludes, cannot
    move it far. Found by Weiszfeld's iterations, which begin at the mean. For one-hot rows, it is the class
    that most clients named wherever that is more than half of them.
    """

    name: Literal["geometric-median"] = "geometric-median"
    iterations: int = Field(default=20, ge=1, description="of Weiszfeld's, for each sample")

    def combine(self, answers: Answers, exchange: ExchangeInfo) -> Combined | None:
        came = stacked(answers)
        return None if came is None else _followed(geometric_median(*came, self.iterations), *came)


class Cronus(Aggregation):
    """Mean without the clients that stretch the spread of rows most (after Cronus, arXiv 1912.11279).

    Robust mean estimation by filtering: of the clients that remain, the one that is furthest from their mean
    along the direction in which they differ most is left out, and so on, until the share ``liars`` is out.

    Departs from the paper, of which we had summaries alone: a client is left out for all samples of an
    exchange or for none, and a fixed number of clients is, whatever their spread; of those equally far out,
    the first. One-hot rows are filtered as they are.
    """

    name: Literal["cronus"] = "cronus"
    liars: float = Field(default=0.2, ge=0, lt=0.5, description="share of clients left out, rounded down")

    def combine(self, answers: Answers, exchange: ExchangeInfo) -> Combined | None:
        came = stacked(answers)
        if came is None:
            return None
        rows, mask = came
        kept = mask.any(dim=1)
        for _ in range(int(self.liars * int(kept.sum()))):
            kept[_outlier(rows, mask, kept)] = False
        labels = _masked_mean(rows, mask & kept[:, None])
        # Samples that only clients left out have answered keep their mean.
        alone = ~(mask & kept[:, None]).any(dim=0)
        labels = torch.where(alone[:, None], _masked_mean(rows, mask), labels)
        counts = (mask.sum(dim=1) * kept).tolist()
        return Combined(labels, [float(count) for count in counts], reliability=kept.double().tolist())


def geometric_median(rows: Tensor, mask: Tensor, iterations: int) -> Tensor:
    """Return the geometric median (n, C) of rows (k, n, C) where ``mask`` (k, n) is true.

    Examples:
        Two clients agree, and so outweigh a third.

        >>> rows = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
        >>> geometric_median(rows, torch.ones(3, 1, dtype=torch.bool), iterations=50).round(decimals=3)
        tensor([[1., 0.]])
    """
    exact, counted = rows.double(), mask.double()
    centre = (exact * counted[..., None]).sum(dim=0) / counted.sum(dim=0).clamp(min=1)[:, None]
    for _ in range(iterations):
        weights = counted / (exact - centre).norm(dim=2).clamp(min=1e-6)
        shares = weights / weights.sum(dim=0).clamp(min=1e-12)
        centre = (exact * shares[..., None]).sum(dim=0)
    return centre.float()


def _followed(labels: Tensor, rows: Tensor, mask: Tensor) -> Combined:
    """Return labels (n, C), and as reliability how far each client agrees with them, from 0 to 1."""
    return Combined(labels, reliability=agreement(labels, rows, mask).tolist())


def agreement(labels: Tensor, rows: Tensor, mask: Tensor) -> Tensor:
    """Return the probability (k,) that a client's rows (k, n, C) and the labels (n, C) share, on average.

    It is 1 for equal rows and 0 for rows without a class in common; 0 for a client that answered nothing.
    """
    shared = torch.minimum(rows.double(), labels.double()).sum(dim=2)
    return (shared * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def _masked_mean(rows: Tensor, mask: Tensor) -> Tensor:
    total = (rows.double() * mask[..., None]).sum(dim=0)
    return (total / mask.sum(dim=0).clamp(min=1)[:, None]).float()


def _outlier(rows: Tensor, mask: Tensor, kept: Tensor) -> int:
    """Return the client, of those kept (k,), that is furthest out along the widest direction."""
    mean = _masked_mean(rows, mask & kept[:, None])
    # A sample that a client did not answer says nothing for or against it.
    away = torch.where(mask[kept][..., None], rows[kept] - mean, 0).double().flatten(start_dim=1)
    # The direction's coordinates are an eigenvector of the matrix of inner products of clients.
    _, vectors = torch.linalg.eigh(away @ away.T)
    return int(kept.nonzero()[vectors[:, -1].abs().argmax()])

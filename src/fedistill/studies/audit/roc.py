"""How well scores tell members from non-members: the area under the ROC, and its left end.

Accuracy and area say what an attack does on average. What counts for privacy is whether it names any member
with confidence: the share of members that it finds (TPR) while it takes few non-members for one (FPR), as
Carlini et al. (2022, arXiv 2112.03570) argue.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FPRS = (0.01, 0.001)
"""The false positive rates at which results report the true positive rate."""
RESAMPLES = 300
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Scored:
    """Candidates with the scores of an attack; the higher, the more like a member.

    Attributes:
        members, others: scores (m,) of members and (n,) of non-members.
        member_ids, other_ids: which sample each is. A non-member may be a candidate of several clients.
    """

    members: Floats
    others: Floats
    member_ids: Integers
    other_ids: Integers

    @classmethod
    def join(cls, parts: Sequence["Scored"]) -> "Scored":
        """Return the candidates of several clients as those of one attack; at least one client."""
        columns = zip(
            *((one.members, one.others, one.member_ids, one.other_ids) for one in parts), strict=True
        )
        return cls(*(np.concatenate(column) for column in columns))


@dataclass(frozen=True)
class Estimate:
    """A figure, and the range in which it is with 95 % confidence."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Roc:
    """What scores reveal.

    Attributes:
        auc: the area under the ROC; 0.5 for scores that say nothing.
        tpr: by false positive rate (`FPRS`); None where there are fewer than 1 / rate non-members, so that
            the rate cannot be told from 0.
        points: (rate, TPR) of the curve, ascending.
    """

    auc: Estimate
    tpr: dict[float, Estimate | None]
    points: list[tuple[float, float]]


def auc(members: Floats, others: Floats) -> float:
    """Return the probability that a member has a higher score than a non-member; a tie counts half.

    Examples:
        >>> auc(np.array([3.0, 1.0]), np.array([2.0, 0.0]))
        0.75
        >>> auc(np.array([1.0]), np.array([1.0]))
        0.5
    """
    ordered = np.sort(others)
    below = np.searchsorted(ordered, members, side="left")
    up_to = np.searchsorted(ordered, members, side="right")
    return float((below + up_to).mean() / (2 * len(others)))


def tpr_at(members: Floats, others: Floats, fpr: float) -> float:
    """Return the largest share of members that a threshold finds with at most this share of non-members.

    Examples:
        One of four non-members may be taken for a member, so the threshold is the second highest of them.

        >>> tpr_at(np.array([9.0, 5.0, 3.0, 1.0]), np.array([8.0, 4.0, 2.0, 0.0]), 0.25)
        0.5
        >>> tpr_at(np.array([9.0, 5.0, 3.0, 1.0]), np.array([8.0, 4.0, 2.0, 0.0]), 0.0)
        0.25
    """
    allowed = int(np.floor(fpr * len(others) + 1e-9))
    if allowed >= len(others):
        return 1.0
    threshold = -np.partition(-others, allowed)[allowed]
    return float((members > threshold).mean())


def roc(scored: Scored, generator: np.random.Generator) -> Roc:
    """Return what scores reveal; ranges by the bootstrap.

    What is resampled is samples, each with all its scores: a non-member that several clients are asked about
    is one observation and not several.

    Args:
        scored: with at least one member and one non-member.
        generator: draws the resamples.
    """
    member_groups, other_groups = _groups(scored.member_ids), _groups(scored.other_ids)
    rates = [rate for rate in FPRS if len(other_groups) * rate >= 1]
    areas, found = [], {rate: list[float]() for rate in rates}
    for _ in range(RESAMPLES):
        members = scored.members[_resampled(member_groups, generator)]
        others = scored.others[_resampled(other_groups, generator)]
        areas.append(auc(members, others))
        for rate in rates:
            found[rate].append(tpr_at(members, others, rate))
    values = {rate: tpr_at(scored.members, scored.others, rate) for rate in rates}
    tpr = {rate: _estimate(values[rate], found[rate]) if rate in rates else None for rate in FPRS}
    steps = np.unique(np.concatenate([[0.0], np.geomspace(1 / len(scored.others), 1.0, 40)]))
    points = [(round(float(at), 5), round(tpr_at(scored.members, scored.others, at), 4)) for at in steps]
    return Roc(_estimate(auc(scored.members, scored.others), areas), tpr, points)


def _groups(ids: Integers) -> list[Integers]:
    """Return the places of each id."""
    order = np.argsort(ids, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(ids[order])) + 1)


def _resampled(groups: list[Integers], generator: np.random.Generator) -> Integers:
    return np.concatenate([groups[at] for at in generator.integers(len(groups), size=len(groups))])


def _estimate(value: float, resampled: Sequence[float]) -> Estimate:
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, float(low), float(high))

"""Which clients a server has come to distrust, from how far it followed each in every round."""

from collections.abc import Mapping, Sequence
from statistics import fmean, median

from fedistill.federation.history import RoundRecord

DISTRUSTED = 0.5
FEWEST = 3


def mean_reliability(records: Sequence[RoundRecord]) -> dict[str, float]:
    """Return the mean reliability of each client, by number, over the rounds that have one of it."""
    found: dict[str, list[float]] = {}
    for record in records:
        for client, figure in record.reliability.items():
            found.setdefault(client, []).append(figure)
    return {client: round(fmean(found[client]), 4) for client in sorted(found, key=int)}


def distrusted(reliability: Mapping[str, float]) -> list[int]:
    """Return the clients whose figure is below half of the median client's; none of fewer than three.

    Examples:
        >>> distrusted({"0": 0.8, "1": 0.3, "2": 0.7, "3": 0.5})
        [1]
    """
    if len(reliability) < FEWEST:
        return []
    least = DISTRUSTED * median(reliability.values())
    return [int(client) for client, figure in reliability.items() if figure < least]

"""Label aggregators that a minority of liars cannot move far, whatever they send."""

from typing import Literal

from pydantic import Field

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
        return None if came is None else Combined(median(*came))


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
        return Combined(trimmed(rows, mask, (self.share * mask.sum(dim=0).double()).long()))

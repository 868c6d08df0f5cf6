"""An aggregation of soft labels: the geometric mean."""

from typing import Literal

from pydantic import Field

from fedistill.aggregation.functional import Answers, mean_of_answers
from fedistill.aggregation.labels import Aggregation, Combined, ExchangeInfo
from fedistill.config.schema import Positive


class Geometric(Aggregation):
    """Geometric mean, normalised: a class counts as far as nobody rules it out."""

    name: Literal["geometric"] = "geometric"
    floor: Positive = Field(default=1e-4, description="the least probability that a client can give a class")

    def combine(self, answers: Answers, exchange: ExchangeInfo) -> Combined | None:
        logs = mean_of_answers((rows.clamp(min=self.floor).log(), mask) for rows, mask in answers)
        return None if logs is None else Combined(logs.softmax(dim=1))

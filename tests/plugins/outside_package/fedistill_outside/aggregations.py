"""An aggregation of soft labels: the geometric mean."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedistill.aggregation.functional import Answers, mean_of_answers
from fedistill.aggregation.labels import Aggregation
from fedistill.config.schema import Positive


class Geometric(Aggregation):
    """Geometric mean, normalised: a class counts as far as nobody rules it out."""

    name: Literal["geometric"] = "geometric"
    floor: Positive = Field(default=1e-4, description="the least probability that a client can give a class")

    def _aggregate(self, answers: Answers, draws: torch.Generator, before: Tensor | None) -> Tensor | None:
        logs = mean_of_answers((rows.clamp(min=self.floor).log(), mask) for rows, mask in answers)
        return None if logs is None else logs.softmax(dim=1)

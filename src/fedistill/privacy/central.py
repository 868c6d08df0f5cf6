"""Majorities to which a trusted server adds noise."""

from typing import Literal

import torch
from torch.nn.functional import one_hot

from fedistill.aggregation.functional import Answers
from fedistill.aggregation.labels import Aggregation, Combined, ExchangeInfo
from fedistill.config.section import Positive
from fedistill.rng import stream


class NoisyMajority(Aggregation):
    """One-hot row of the class that has most votes, after Gaussian noise was added to those of each class."""

    name: Literal["noisy-majority"] = "noisy-majority"
    noise: Positive
    arm: str
    """Whose noise it is: no two arms have the same."""

    def combine(self, answers: Answers, exchange: ExchangeInfo) -> Combined | None:
        counts: torch.Tensor | None = None
        for rows, mask in answers:
            votes = one_hot(rows.argmax(dim=1), rows.shape[1]) * mask[:, None]
            counts = votes if counts is None else counts + votes
        if counts is None:
            return None
        seed = int(torch.randint(2**62, (), generator=exchange.draws))
        draws = stream(seed, f"noisy votes of {self.arm}")
        noise = torch.randn(counts.shape, generator=draws, dtype=torch.float64)
        return Combined(one_hot((counts + self.noise * noise).argmax(dim=1), counts.shape[1]).float())

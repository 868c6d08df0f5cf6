"""Functions of a user's own that training calls, sound ones and others."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

Parameters = list[nn.Parameter]


class Counting(torch.optim.SGD):
    """SGD that notes the rate of each step."""

    rates: ClassVar[list[float]] = []

    def step(self, closure: Any = None) -> Any:
        Counting.rates.append(self.param_groups[0]["lr"])
        super().step()


def counting(parameters: Parameters, lr: float) -> torch.optim.Optimizer:
    return Counting(parameters, lr=lr, momentum=0.9)


def two_rates(parameters: Parameters, lr: float) -> torch.optim.Optimizer:
    """The first parameter learns ten times as fast."""
    groups: list[dict[str, Any]] = [{"params": parameters[:1], "lr": 10 * lr}, {"params": parameters[1:]}]
    return torch.optim.SGD(groups, lr=lr)


def vectors_first(parameters: Parameters, lr: float) -> torch.optim.Optimizer:
    """In another order than that of the model."""
    groups = [
        {"params": [value for value in parameters if (value.ndim > 1) == wide]} for wide in (False, True)
    ]
    return torch.optim.SGD(groups, lr=lr, momentum=0.9)


def no_optimizer(parameters: Parameters, lr: float) -> int:
    return 3


def fails(parameters: Parameters, lr: float) -> torch.optim.Optimizer:
    raise ValueError("not today")


class _Forgetful(torch.optim.SGD):
    """Remembers its steps outside of its state."""

    steps = 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        self.param_groups[0]["lr"] /= self.steps
        super().step()


def forgetful(parameters: Parameters, lr: float) -> torch.optim.Optimizer:
    return _Forgetful(parameters, lr=lr)


class _Odd(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        super().step()
        for group in self.param_groups:
            for value in group["params"]:
                self.state[value]["seen"] = {1, 2}


def odd(parameters: Parameters, lr: float) -> torch.optim.Optimizer:
    return _Odd(parameters, lr=lr)


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    """The focal loss with gamma = 2, one value per sample."""
    loss = cross_entropy(logits, labels, reduction="none")
    return (1 - torch.exp(-loss)) ** 2 * loss


def brier(logits: Tensor, labels: Tensor) -> Tensor:
    """The Brier score, one value for all."""
    return (logits.softmax(dim=1) - one_hot(labels, logits.shape[1])).square().sum(dim=1).mean()


def per_class(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.square()


def constant(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.ones(())


def a_number(logits: Tensor, labels: Tensor) -> float:
    return 1.0


def steep(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits - logits).sqrt().sum()


EVERYTHING: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 16,
    "optimizer": {
        "name": "adamw",
        "lr": 0.02,
        "decay": "matrices",
        "clip_norm": 0.5,
        "schedule": "cosine(warm_up=1)",
    },
    "loss": "balanced-softmax",
    "early_stopping": {"share": 0.2, "patience": 1},
    "augment": {"flip": True, "crop": 1, "erase": 0.5},
}
"""All settings of training that are built in, none at its default."""
OF_ONES_OWN: dict[str, Any] = {
    **EVERYTHING,
    "optimizer": {
        "name": f"{__name__}:counting",
        "lr": 0.02,
        "clip_norm": 0.5,
        "schedule": "cosine(warm_up=2, over=steps)",
    },
    "loss": f"{__name__}:focal",
}
"""The same with functions of the user's own, and a schedule over steps."""

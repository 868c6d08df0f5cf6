"""Stopping a training once samples that are kept from it no longer gain, and going back to the best epoch."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedistill.config.training import EarlyStopping
from fedistill.state import State
from fedistill.training.model_state import ModelState
from fedistill.training.optimizers import Optimizer

FEWEST = 5
"""Samples whose mean loss is taken for a sign of anything; with fewer, nothing is held out."""


@dataclass(frozen=True)
class Validation:
    """What a training is stopped by.

    Attributes:
        training: positions (m,) of the samples to train on.
        held_out: positions (v,) of those that are kept from it, by whose loss it is stopped.
        loss: of logits and positions (b,), a scalar.
        patience: epochs without a lower loss after which it stops.
    """

    training: Tensor
    held_out: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    patience: int


def held_out(samples: int, settings: EarlyStopping) -> int:
    """Return how many of these samples are kept from training: 0 if they would be fewer than `FEWEST`."""
    count = round(settings.share * samples)
    return count if count >= FEWEST else 0


def draw_validation(
    samples: int,
    settings: EarlyStopping | None,
    loss: Callable[[Tensor, Tensor], Tensor],
    generator: torch.Generator,
) -> Validation | None:
    """Draw which samples to hold out; None without settings, or with too few samples."""
    count = 0 if settings is None else held_out(samples, settings)
    if settings is None or count == 0:
        return None
    order = torch.randperm(samples, generator=generator)
    return Validation(order[count:].sort().values, order[:count], loss, settings.patience)


class BestEpoch:
    """Remembers the model and the optimizer after the epoch with the lowest loss."""

    def __init__(self, validation: Validation) -> None:
        self.validation = validation
        self._waited, self._lowest = 0, math.inf
        self._kept: tuple[ModelState, State] | None = None

    def ends(self, loss: float, model: nn.Module, optimizer: Optimizer) -> bool:
        """Note the loss after an epoch; return whether training is to end."""
        if loss < self._lowest:
            self._waited, self._lowest = 0, loss
            self._kept = ModelState.of(model), _copy(optimizer.state())
        else:
            self._waited += 1
        return self._waited >= self.validation.patience

    def restore(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Put model and optimizer back to where they were after the best epoch."""
        if self._kept is not None:
            self._kept[0].load_into(model)
            optimizer.restore(self._kept[1])


def _copy(state: State) -> State:
    """Return the optimizer's buffers as they are now; later steps change them in place."""
    return {
        place: {name: value.clone() if isinstance(value, Tensor) else value for name, value in entry.items()}
        for place, entry in state.items()
    }

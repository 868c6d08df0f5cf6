"""SGD and Adam with their buffers as plain data, computed by the functions behind torch's own optimizers.

Those optimizers import torch's compiler in their first step, which doubles the import time of torch in every
process. On Flower, every message starts a process.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Self

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from fedistill.config.training import OptimizerConfig
from fedistill.state import State

Moved = list[tuple[Tensor, Tensor, dict[str, Tensor]]]
"""Parameters, their gradients and their buffers."""


class Optimizer(ABC):
    """Base of all optimizers; subclasses are final. Steps are bit-identical to those of `torch.optim`."""

    def __init__(self, parameters: Iterable[nn.Parameter], settings: OptimizerConfig) -> None:
        self._parameters = list(parameters)
        self._buffers: list[dict[str, Tensor]] = [{} for _ in self._parameters]
        self._settings = settings.resolved("image")  # an arm has resolved its own for its kind of data

    def zero_grad(self) -> None:
        """Discard all gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters that have a gradient."""
        each = zip(self._parameters, self._buffers, strict=True)
        self._move(
            [
                (parameter, _dense(parameter.grad), buffers)
                for parameter, buffers in each
                if parameter.grad is not None
            ]
        )

    def state(self) -> State:
        """Return the buffers of each parameter that has any, by its position."""
        return {str(place): dict(buffers) for place, buffers in enumerate(self._buffers) if buffers}

    def restore(self, state: State) -> Self:
        """Load copies of the buffers that `state` returned; return this optimizer."""
        for place, buffers in state.items():
            self._buffers[int(place)] = {name: value.clone() for name, value in buffers.items()}
        return self

    @abstractmethod
    def _move(self, moved: Moved) -> None:
        """Update parameters by their gradients, and their buffers for the next step."""


class Sgd(Optimizer):
    """`torch.optim.SGD` without dampening."""

    def _move(self, moved: Moved) -> None:
        before = [buffers.get("momentum_buffer") for _, _, buffers in moved]
        sgd(
            [parameter for parameter, _, _ in moved],
            [gradient for _, gradient, _ in moved],
            before,  # updated in place
            foreach=False,
            fused=False,
            lr=self._settings.lr,
            momentum=self._settings.momentum,
            weight_decay=self._settings.weight_decay,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        for (_, _, buffers), after in zip(moved, before, strict=True):
            if after is not None:
                buffers["momentum_buffer"] = after


class Adam(Optimizer):
    """`torch.optim.Adam` with betas of 0.9 and 0.999."""

    def _move(self, moved: Moved) -> None:
        for parameter, _, buffers in moved:
            if not buffers:
                buffers["step"] = torch.tensor(0.0)
                buffers["exp_avg"] = torch.zeros_like(parameter)
                buffers["exp_avg_sq"] = torch.zeros_like(parameter)
        adam(
            [parameter for parameter, _, _ in moved],
            [gradient for _, gradient, _ in moved],
            [buffers["exp_avg"] for _, _, buffers in moved],
            [buffers["exp_avg_sq"] for _, _, buffers in moved],
            [],
            [buffers["step"] for _, _, buffers in moved],
            foreach=False,
            fused=False,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self._settings.lr,
            weight_decay=self._settings.weight_decay,
            eps=1e-8,
            maximize=False,
        )


def _dense(gradient: Tensor) -> Tensor:
    """Return a gradient as all rules take it, also that of ``nn.EmbeddingBag(sparse=True)``."""
    return gradient.to_dense() if gradient.is_sparse else gradient


def make_optimizer(settings: OptimizerConfig, model: nn.Module) -> Optimizer:
    """Return a fresh optimizer over all parameters of a model."""
    kind = Adam if settings.name == "adam" else Sgd
    return kind(model.parameters(), settings)

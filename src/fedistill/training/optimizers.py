"""SGD, Adam and AdamW with their buffers as plain data, computed by the functions behind torch's own ones.

Torch's optimizers import its compiler in their first step, which doubles the import time of torch in every
process. On Flower, every message starts a process.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from fedistill.config.plugins import named
from fedistill.config.training import OptimizerConfig
from fedistill.state import State

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Of `Adam`: what is kept of its means in each step, and what is added where it divides."""
_COUNT = "step"
Moved = Sequence[tuple[Tensor, Tensor, dict[str, Tensor]]]
"""Parameters, their gradients and their buffers."""


class Optimizer(ABC):
    """Base of all optimizers; subclasses are final."""

    def __init__(self, parameters: Iterable[nn.Parameter], settings: OptimizerConfig) -> None:
        self._parameters = list(parameters)
        self._settings = settings.resolved("image")  # an arm has resolved its own for its kind of data

    @property
    def kind(self) -> Hashable | None:
        """The same for all that keep buffers of the same sizes for a model; None if that is not known."""
        return None

    def zero_grad(self) -> None:
        """Discard all gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, place: int = 0, steps: int = 1) -> None:
        """Update all parameters that have a gradient.

        Args:
            place: number of this step in its local training, from 0; a schedule over steps needs it.
            steps: how many steps that training has.
        """
        gradients = []
        for value in self._parameters:
            if value.grad is not None:
                # Those of ``nn.EmbeddingBag(sparse=True)`` are sparse.
                value.grad = value.grad.to_dense() if value.grad.is_sparse else value.grad
                gradients.append(value.grad)
        if self._settings.clip_norm is not None:
            _clip(gradients, self._settings.clip_norm)
        self._update(self._settings.lr_at(place, steps))

    @abstractmethod
    def state(self) -> State:
        """Return the buffers of each parameter that has any, by its position."""

    @abstractmethod
    def restore(self, state: State) -> Self:
        """Load copies of the buffers that `state` returned; return this optimizer."""

    @abstractmethod
    def follow(self) -> None:
        """Move the buffers to the device on which their parameters are now."""

    @abstractmethod
    def _update(self, lr: float) -> None:
        """Update parameters by their dense gradients, and their buffers for the next step."""


class _BuiltIn(Optimizer):
    """Steps are bit-identical to those of `torch.optim`."""

    def __init__(self, parameters: Iterable[nn.Parameter], settings: OptimizerConfig) -> None:
        super().__init__(parameters, settings)
        self._buffers: list[dict[str, Tensor]] = [{} for _ in self._parameters]

    @property
    def kind(self) -> Hashable:
        return type(self), self._settings.momentum > 0, tuple(one.shape for one in self._parameters)

    def state(self) -> State:
        return {str(place): dict(buffers) for place, buffers in enumerate(self._buffers) if buffers}

    def restore(self, state: State) -> Self:
        for place, buffers in state.items():
            self._buffers[int(place)] = {name: value.clone() for name, value in buffers.items()}
        return self

    def follow(self) -> None:
        for parameter, buffers in zip(self._parameters, self._buffers, strict=True):
            # Torch counts steps on the processor, whatever the device.
            moved = {name: value.to(parameter.device) for name, value in buffers.items() if name != _COUNT}
            buffers.update(moved)

    def _update(self, lr: float) -> None:
        each = zip(self._parameters, self._buffers, strict=True)
        moved = [(value, value.grad, buffers) for value, buffers in each if value.grad is not None]
        decay = self._settings.weight_decay
        if self._settings.decay == "all":
            self._move(moved, lr, decay)
        else:
            self._move([one for one in moved if one[0].ndim >= 2], lr, decay)
            self._move([one for one in moved if one[0].ndim < 2], lr, 0.0)

    @abstractmethod
    def _move(self, moved: Moved, lr: float, decay: float) -> None:
        """Do as `_update`, with this weight decay, for some of the parameters."""


class Sgd(_BuiltIn):
    """`torch.optim.SGD` without dampening."""

    def _move(self, moved: Moved, lr: float, decay: float) -> None:
        before = [buffers.get("momentum_buffer") for _, _, buffers in moved]
        sgd(
            [parameter for parameter, _, _ in moved],
            [gradient for _, gradient, _ in moved],
            before,  # updated in place
            foreach=False,
            fused=False,
            lr=lr,
            momentum=self._settings.momentum,
            weight_decay=decay,
            dampening=0.0,
            nesterov=self._settings.nesterov,
            maximize=False,
        )
        for (_, _, buffers), after in zip(moved, before, strict=True):
            if after is not None:
                buffers["momentum_buffer"] = after


class Adam(_BuiltIn):
    """`torch.optim.Adam` or `torch.optim.AdamW`, with betas of 0.9 and 0.999."""

    def _move(self, moved: Moved, lr: float, decay: float) -> None:
        for parameter, _, buffers in moved:
            if not buffers:
                buffers[_COUNT] = torch.tensor(0.0)
                buffers["exp_avg"] = torch.zeros_like(parameter)
                buffers["exp_avg_sq"] = torch.zeros_like(parameter)
        adam(
            [parameter for parameter, _, _ in moved],
            [gradient for _, gradient, _ in moved],
            [buffers["exp_avg"] for _, _, buffers in moved],
            [buffers["exp_avg_sq"] for _, _, buffers in moved],
            [],
            [buffers[_COUNT] for _, _, buffers in moved],
            foreach=False,
            fused=False,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=lr,
            weight_decay=decay,
            decoupled_weight_decay=self._settings.name == "adamw",
            eps=EPSILON,
            maximize=False,
        )


class Own(Optimizer):
    """What a function of the user's returns, a `torch.optim.Optimizer`, whose rates follow those set here."""

    def __init__(self, parameters: Iterable[nn.Parameter], settings: OptimizerConfig) -> None:
        super().__init__(parameters, settings)
        make = named("optimizer", self._settings.name, "function")
        self.inner: torch.optim.Optimizer = make(self._parameters, lr=self._settings.lr)
        self._rates = [group["lr"] / self._settings.lr for group in self.inner.param_groups]
        # Torch numbers parameters in the order of the groups.
        positions = {id(value): place for place, value in enumerate(self._parameters)}
        self._order = [positions[id(value)] for group in self.inner.param_groups for value in group["params"]]

    def state(self) -> State:
        held = self.inner.state_dict()["state"]
        return {str(self._order[number]): dict(buffers) for number, buffers in held.items()}

    def restore(self, state: State) -> Self:
        whole = self.inner.state_dict()
        for place, buffers in state.items():
            # Torch keeps the tensors that it is given, and changes them.
            whole["state"][self._order.index(int(place))] = {
                name: value.clone() if isinstance(value, Tensor) else value for name, value in buffers.items()
            }
        self.inner.load_state_dict(whole)
        return self

    def follow(self) -> None:
        self.inner.load_state_dict(self.inner.state_dict())  # which moves them

    def _update(self, lr: float) -> None:
        for group, rate in zip(self.inner.param_groups, self._rates, strict=True):
            group["lr"] = lr * rate
        self.inner.step()


def _clip(gradients: list[Tensor], most: float) -> None:
    """Scale gradients, in place, so that their norm, as one vector, is at most this."""
    if not gradients:
        return
    norm = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]).norm()
    for gradient in gradients:
        gradient.mul_((most / (norm + 1e-6)).clamp(max=1.0))


def make_optimizer(settings: OptimizerConfig, model: nn.Module) -> Optimizer:
    """Return a fresh optimizer over all parameters of a model.

    A schedule over rounds must have been applied (`ResolvedOptimizer.in_round`): here it changes nothing.
    """
    kind = Own if settings.own else Adam if settings.name in ("adam", "adamw") else Sgd
    return kind(model.parameters(), settings)

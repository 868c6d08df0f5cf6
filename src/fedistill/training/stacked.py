"""Training several clients' small models of one architecture together, in products over all of them.

Weights of the models lie side by side, (k, P), and each layer is one product for the batches of all of them.
What is computed for a model is what `fedistill.training.loop.fit` computes, with the same samples in the same
order: only sums inside products are added in another order, so that results differ by rounding. Models leave
as their training ends; shorter batches are filled with samples that count nothing.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, layer_norm

from fedistill.config.training import ResolvedOptimizer, ResolvedTrain
from fedistill.training.cost import Cost, counting, known_cost
from fedistill.training.loop import drawn_batches, fit, kind_of_loop, to_float
from fedistill.training.losses import class_shift, label_loss
from fedistill.training.model_state import trainable, unflatten
from fedistill.training.optimizers import BETAS, EPSILON, make_optimizer

STACK = 16
"""Models that are trained together at most: with more, weights and gradients no longer fit in the caches."""
_LAYERS = nn.Flatten | nn.Identity | nn.LayerNorm | nn.Linear | nn.ReLU
_FEATURES, _HEAD = "features", "head"
_Context = Any
"""What torch hands from a function to its gradient."""


@dataclass(frozen=True)
class Trainee:
    """A model that is trained together with others.

    Attributes:
        weights: float32 (P,), those that it starts from.
        inputs: its samples (n, ...), as stored.
        labels: int64 (n,).
        generator: what the order of the samples is drawn from, as in `fit`.
    """

    weights: Tensor
    inputs: Tensor
    labels: Tensor
    generator: torch.Generator


@dataclass(frozen=True)
class Trained:
    """What training a model has given.

    Attributes:
        weights: float32 (P,), a row of those of the whole stack; None if a loss was NaN or infinite.
        cost: what the same training would be counted at alone.
    """

    weights: Tensor | None
    cost: Cost


def not_stacked(train: ResolvedTrain) -> str | None:
    """Return which of these settings needs models to be trained one by one; None if they can be stacked."""
    if train.own_loss:
        return f"loss {train.loss}"
    if train.optimizer.own:
        return f"optimizer {train.optimizer.name}"
    others = {
        "not_true": train.not_true is not None and train.not_true.beta > 0,
        "early_stopping": train.early_stopping is not None,
        "augment": train.augment is not None,
    }
    return next((f"train.{name}" for name, is_set in others.items() if is_set), None)


def is_stackable(model: nn.Module) -> bool:
    """Return whether a model of the ladder consists of linear layers, layer norms and ReLUs, one by one."""
    names = [name for name, _ in model.named_children()]
    if names != [_FEATURES, _HEAD]:
        return False
    return all(isinstance(layer, _LAYERS) for layer in _layers(model))


def fit_together(
    model: nn.Module, trainees: Sequence[Trainee], train: ResolvedTrain, classes: int
) -> list[Trained]:
    """Train models of one architecture on labels, as `fit` would with `label_loss` and fresh optimizers.

    Args:
        model: of this architecture (`is_stackable`); its weights are not kept.
        trainees: at least one; their inputs have one shape and type but for the number of samples.
        train: settings that can be stacked (`not_stacked`).
        classes: C.

    Returns:
        What became of each, in the order of the trainees.
    """
    plans = [_plan(one, train) for one in trainees]
    # Those that end first are last, so that the models of any step are the first ones.
    order = sorted(range(len(trainees)), key=lambda place: -len(plans[place]))
    ordered = [trainees[place] for place in order]
    weights = torch.stack([one.weights for one in ordered])
    finite = _Stack(model, weights, train).fit(_Samples(ordered, [plans[place] for place in order]), classes)
    counted = _Counted(unflatten(model, trainees[0].weights), trainees, train, classes)
    found: dict[int, Trained] = {}
    for row, place in enumerate(order):
        found[place] = Trained(weights[row] if finite[row] else None, counted.cost(plans[place]))
    return [found[place] for place in range(len(trainees))]


def _plan(one: Trainee, train: ResolvedTrain) -> list[Tensor]:
    """Return the positions (b,) of the samples of each batch."""
    places = torch.arange(len(one.labels))
    epochs = drawn_batches(places, train.epochs, train.batch_size, train.steps, one.generator)
    return [batch for batches in epochs for batch in batches]


class _Samples:
    """The batches of all models, step by step."""

    def __init__(self, trainees: Sequence[Trainee], plans: Sequence[list[Tensor]]) -> None:
        self.inputs = torch.cat([one.inputs for one in trainees])
        self.labels = torch.cat([one.labels for one in trainees])
        self.by_model = [one.labels for one in trainees]
        self.steps = [len(plan) for plan in plans]
        longest = max(len(batch) for plan in plans for batch in plan)
        table = np.zeros((self.steps[0], len(plans), longest), np.int64)
        self._share = np.zeros(table.shape, np.float32)
        start = 0
        for row, (one, plan) in enumerate(zip(trainees, plans, strict=True)):
            table[:, row] = start
            for step, batch in enumerate(plan):
                table[step, row, : len(batch)] = batch.numpy()
                table[step, row, : len(batch)] += start
                self._share[step, row, : len(batch)] = 1 / len(batch)
            start += len(one.labels)
        self._table = table

    def __iter__(self) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Yield, for each step, how many models take it, their batches (k, b, ...), labels (k b,) and shares.

        The share (k, b) of a sample is its part in the mean of its batch: 0 for one that fills a batch up.
        """
        for step in range(self.steps[0]):
            rows = sum(count > step for count in self.steps)
            shares = self._share[step, :rows]
            longest = int((shares > 0).sum(axis=1).max())
            places = torch.from_numpy(self._table[step, :rows, :longest].reshape(-1))
            picked = self.inputs.index_select(0, places)
            if picked.dtype == torch.uint8:
                picked = to_float(picked)
            batches = picked.view(rows, longest, *picked.shape[1:])
            yield (
                rows,
                batches,
                self.labels.index_select(0, places),
                torch.from_numpy(shares[:, :longest].copy()),
            )


class _Stack:
    """Models side by side: their weights (k, P), and the parts of these that are each parameter's."""

    def __init__(self, model: nn.Module, weights: Tensor, train: ResolvedTrain) -> None:
        """Take weights, which training changes in place."""
        self._model, self._train = model, train
        self._parameters = list(trainable(model))
        parts = torch.split(weights, [one.numel() for one in self._parameters], dim=1)
        self._whole = [
            part.view(len(weights), *one.shape) for part, one in zip(parts, self._parameters, strict=True)
        ]

    def fit(self, samples: _Samples, classes: int) -> list[bool]:
        """Train; return of which models all losses were finite."""
        shift = None
        if self._train.loss == "balanced-softmax":
            shift = torch.stack([class_shift(labels, classes) for labels in samples.by_model]).unsqueeze(1)
        updates = _Updates(self._train.optimizer, samples.steps)
        total = torch.zeros(len(samples.steps))
        for step, (rows, batches, labels, shares) in enumerate(samples):
            current = [whole[:rows].detach().requires_grad_() for whole in self._whole]
            logits = self._logits(batches, current)
            if shift is not None:
                logits = logits + shift[:rows]
            each = cross_entropy(
                logits.flatten(0, 1), labels, reduction="none", label_smoothing=self._train.label_smoothing
            )
            losses = (each.view(shares.shape) * shares).sum(dim=1)
            gradients = torch.autograd.grad(losses.sum(), current)
            with torch.no_grad():
                total[:rows] += losses
                updates.step(step, current, list(gradients))
        return torch.isfinite(total).tolist()

    def _logits(self, batches: Tensor, current: list[Tensor]) -> Tensor:
        """Return logits (k, b, C) of batches (k, b, ...)."""
        of_parameter = {id(one): part for one, part in zip(self._parameters, current, strict=True)}
        hidden = batches
        for layer in _layers(self._model):
            if isinstance(layer, nn.Flatten):
                hidden = hidden.flatten(2)
            elif isinstance(layer, nn.ReLU):
                hidden = hidden.relu()
            elif isinstance(layer, nn.Linear | nn.LayerNorm):
                weight, bias = (of_parameter[id(one)] for one in (layer.weight, layer.bias))
                if isinstance(layer, nn.Linear):
                    hidden = _Linear.apply(hidden, weight, bias)  # type: ignore[no-untyped-call]  # torch leaves it untyped
                else:
                    plain = layer_norm(hidden, layer.normalized_shape, eps=layer.eps)
                    hidden = plain * weight.unsqueeze(1) + bias.unsqueeze(1)
        return hidden


class _Linear(torch.autograd.Function):
    """A linear layer of each model, of weights (k, m, d), on batches (k, b, d).

    Torch's own gradient of the weights lies transposed in memory, and to add that takes half as long again.
    """

    @staticmethod
    def forward(ctx: _Context, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        return torch.baddbmm(bias.unsqueeze(1), hidden, weight.transpose(1, 2))

    @staticmethod
    def backward(ctx: _Context, slopes: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        hidden, weight = ctx.saved_tensors
        of_hidden = torch.bmm(slopes, weight) if ctx.needs_input_grad[0] else None
        return of_hidden, torch.bmm(slopes.transpose(1, 2), hidden), slopes.sum(dim=1)


class _Updates:
    """The optimizers of all models: those of `fedistill.training.optimizers`, on stacked parameters."""

    def __init__(self, settings: ResolvedOptimizer, steps: list[int]) -> None:
        """``steps``: how many steps each model takes, most first."""
        self._settings, self._steps = settings, steps
        self._first: list[Tensor] = []
        self._second: list[Tensor] = []

    def step(self, step: int, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """Move parameters, each (k, ...), in place, by their gradients, which are changed too."""
        rows, settings = len(parameters[0]), self._settings
        self._first, self._second = ([one[:rows] for one in held] for held in (self._first, self._second))
        if settings.clip_norm is not None:
            squares = torch.stack([one.flatten(1).square().sum(dim=1) for one in gradients])
            scale = (settings.clip_norm / (squares.sum(dim=0).sqrt() + 1e-6)).clamp(max=1.0)
            for one in gradients:
                one.mul_(_like(scale, one))
        rates = [settings.lr_at(step, steps) for steps in self._steps[:rows]]
        decayed = [settings.weight_decay and (settings.decay == "all" or one.ndim > 2) for one in parameters]
        if settings.name == "adamw":
            for one, decays in zip(parameters, decayed, strict=True):
                if decays:
                    one.mul_(1 - _like(torch.tensor(rates) * settings.weight_decay, one))
        else:
            for one, gradient, decays in zip(parameters, gradients, decayed, strict=True):
                if decays:
                    gradient.add_(one, alpha=settings.weight_decay)
        moves = self._sgd(gradients) if settings.name == "sgd" else self._adam(gradients, step + 1)
        for one, move in zip(parameters, moves, strict=True):
            if min(rates) == max(rates):
                one.add_(move, alpha=-rates[0])
            else:
                one.sub_(move * _like(torch.tensor(rates), one))

    def _sgd(self, gradients: list[Tensor]) -> list[Tensor]:
        momentum = self._settings.momentum
        if not momentum:
            return gradients
        if not self._first:
            self._first = gradients
        else:
            for held, gradient in zip(self._first, gradients, strict=True):
                held.mul_(momentum).add_(gradient)
        if not self._settings.nesterov:
            return self._first
        return [gradient + momentum * held for gradient, held in zip(gradients, self._first, strict=True)]

    def _adam(self, gradients: list[Tensor], count: int) -> list[Tensor]:
        if not self._first:
            self._first, self._second = ([torch.zeros_like(one) for one in gradients] for _ in range(2))
        moves = []
        for first, second, gradient in zip(self._first, self._second, gradients, strict=True):
            first.lerp_(gradient, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            root = second.sqrt().div_((1 - BETAS[1] ** count) ** 0.5).add_(EPSILON)
            moves.append(first / (1 - BETAS[0] ** count) / root)
        return moves


class _Counted:
    """What training costs a model alone, for batches of any size."""

    def __init__(
        self, model: nn.Module, trainees: Sequence[Trainee], train: ResolvedTrain, classes: int
    ) -> None:
        self._model, self._train, self._classes = model, train, classes
        self._longest = max(trainees, key=lambda one: len(one.labels))
        loss = label_loss(train, self._longest.labels, classes)
        self._optimizer = make_optimizer(train.optimizer, model)
        self._kind = kind_of_loop(model, self._longest.inputs, loss, self._optimizer.kind)

    def cost(self, batches: Sequence[Tensor]) -> Cost:
        """Return the cost of a training on these batches (b,)."""
        sizes = Counter(map(len, batches))
        each = {size: self._of(size) for size in sizes}
        return Cost(
            sum(each[size].multiply_adds * count for size, count in sizes.items()),
            max(each[size].memory for size in sizes),
        )

    def _of(self, size: int) -> Cost:
        """Return the cost of one batch: the one that is known, or else that of a training on it."""
        known = None if self._kind is None else known_cost(self._kind, size)
        if known is not None:
            return known
        inputs, labels = self._longest.inputs[:size], self._longest.labels[:size]
        with counting() as counter:
            fit(
                self._model,
                self._optimizer,
                inputs,
                label_loss(self._train, labels, self._classes),
                epochs=1,
                batch_size=size,
                generator=torch.Generator(),
            )
        return counter.cost


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of a model of the ladder in the order in which they are run."""
    for part in (model.get_submodule(_FEATURES), model.get_submodule(_HEAD)):
        yield from _flat(part)


def _flat(part: nn.Module) -> Iterator[nn.Module]:
    if isinstance(part, nn.Sequential):
        for layer in part:
            yield from _flat(layer)
    else:
        yield part


def _like(values: Tensor, other: Tensor) -> Tensor:
    """Return numbers (k,) in a shape that multiplies parameters (k, ...)."""
    return values.view(-1, *[1] * (other.ndim - 1))

"""Models that keep more, or something else, than weights: what a run must carry, start anew, or refuse.

Each is used by its forward pass, so that a run in which it leaked, or was lost, would end otherwise.
"""

import itertools
import random
from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedistill.models.signature import Signature

WIDTH = 12


class Net(nn.Module):
    """64 pixels to a hidden layer to ten classes; subclasses change what is between."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def between(self, hidden: Tensor) -> Tensor:
        return hidden

    def forward(self, inputs: Tensor) -> Any:
        return self.head(self.between(self.body(inputs.flatten(1)).relu()))


class IntegerBuffer(Net):
    """Turns its hidden units by one place after every batch."""

    turn: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("turn", torch.zeros((), dtype=torch.int64))

    def between(self, hidden: Tensor) -> Tensor:
        if self.training:
            self.turn += 1
        turned: Tensor = hidden.roll(int(self.turn) // 30, dims=1)
        return turned


class BooleanBuffer(Net):
    """Switches half of its hidden units off once it has seen a batch."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(WIDTH, dtype=torch.bool))

    def between(self, hidden: Tensor) -> Tensor:
        if self.training:
            self.seen[::2] = True
        return hidden * (~self.seen | (torch.arange(WIDTH) > 3))


class ComplexBuffer(Net):
    """Keeps a running mean of the hidden units' spectrum and subtracts part of it."""

    spectrum: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("spectrum", torch.zeros(WIDTH, dtype=torch.complex64))

    def between(self, hidden: Tensor) -> Tensor:
        if self.training:
            now = torch.fft.fft(hidden.detach()).mean(dim=0)
            self.spectrum.mul_(0.9).add_(0.1 * now)
        rest: Tensor = hidden - 0.1 * torch.fft.ifft(self.spectrum).real - 0.01 * self.spectrum.imag
        return rest


class PassingBuffer(Net):
    """A running mean that no state holds."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH), persistent=False)

    def between(self, hidden: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * hidden.detach().mean(dim=0)
        return hidden - self.mean


class RunningMean(Net):
    """A running mean that every state holds, replaced by a new tensor in each batch."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))

    def between(self, hidden: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * hidden.mean(dim=0).detach()
        return hidden - self.mean


class Cumulative(Net):
    """Batch norm whose running statistics are plain means, for which it counts its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH, momentum=None)

    def between(self, hidden: Tensor) -> Tensor:
        normed: Tensor = self.norm(hidden)
        return normed


class Attributes(Net):
    """Counts batches in an attribute, a list, an object, and in one that counts by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = 0
        self.last: list[float] = []
        self.recent: deque[int] = deque(maxlen=3)
        self.inner = SimpleNamespace(batches=0)
        self.ticks = itertools.count()

    def between(self, hidden: Tensor) -> Tensor:
        self.batches += 1
        self.last.append(float(hidden.detach().mean()))
        self.recent.append(self.batches)
        self.inner.batches += 1
        share = 1 / (1 + self.batches + self.inner.batches + next(self.ticks) + sum(self.recent))
        changed: Tensor = hidden * (1 + share) + 0.01 * sum(self.last)
        return changed


class OwnGenerators(Net):
    """Draws noise from generators of its own: torch's, Python's and NumPy's."""

    def __init__(self) -> None:
        super().__init__()
        self.torch_generator = torch.Generator().manual_seed(1)
        self.python = random.Random(2)
        self.numpy = np.random.default_rng(3)
        self.legacy = np.random.RandomState(4)

    def between(self, hidden: Tensor) -> Tensor:
        noise = torch.rand(WIDTH, generator=self.torch_generator)
        scale = self.python.random() + self.numpy.random() + self.legacy.random_sample()
        return hidden + noise * scale


class GlobalGenerators(Net):
    """Draws noise from the generators that all of a process shares, in evaluation too."""

    def between(self, hidden: Tensor) -> Tensor:
        return hidden + torch.rand(WIDTH) * random.random() * np.random.random()


class FrozenByHand(Net):
    """A frozen copy of its body that follows the body after every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = nn.Linear(64, WIDTH).requires_grad_(False)

    def forward(self, inputs: Tensor) -> Any:
        if self.training:
            with torch.no_grad():
                self.slow.weight.lerp_(self.body.weight, 0.1)
        flat = inputs.flatten(1)
        return self.head(self.body(flat).relu() + self.slow(flat).relu())


class Resized(Net):
    """Remembers every batch's mean in a tensor that no state holds, and that grows."""

    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(0, WIDTH), persistent=False)

    def between(self, hidden: Tensor) -> Tensor:
        if self.training:
            self.rows = torch.cat([self.rows, hidden.detach().mean(dim=0, keepdim=True)])
        return hidden - self.rows.sum(dim=0) / (1 + len(self.rows))


class Late(Net):
    """Registers a buffer in its first forward pass."""

    mean: Tensor

    def between(self, hidden: Tensor) -> Tensor:
        if not hasattr(self, "mean"):
            self.register_buffer("mean", torch.zeros(hidden.shape[1]))
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * hidden.detach().mean(dim=0)
        return hidden - self.mean


class Tied(nn.Module):
    """One layer used twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 64)
        self.again = nn.Linear(64, 64)
        self.again.weight = self.body.weight
        self.head = nn.Linear(64, 10)

    def forward(self, inputs: Tensor) -> Any:
        return self.head(self.again(self.body(inputs.flatten(1)).relu()).relu())


class Logits(Net):
    """Returns an object, as models of transformers do."""

    def forward(self, inputs: Tensor) -> Any:
        return SimpleNamespace(logits=super().forward(inputs), hidden_states=None)


class Kept(Net):
    """Keeps the last activations, with their graph."""

    def between(self, hidden: Tensor) -> Tensor:
        self.activations = hidden
        return hidden


class ComplexWeights(Net):
    """A linear layer of complex numbers; its real part is the output."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, 10, dtype=torch.complex64)

    def forward(self, inputs: Tensor) -> Any:
        hidden = self.body(inputs.flatten(1)).relu()
        return self.head(torch.complex(hidden, 0.5 * hidden.roll(1, dims=1))).real


def integer_buffer(signature: Signature) -> nn.Module:
    return IntegerBuffer()


def boolean_buffer(signature: Signature) -> nn.Module:
    return BooleanBuffer()


def complex_buffer(signature: Signature) -> nn.Module:
    return ComplexBuffer()


def complex_weights(signature: Signature) -> nn.Module:
    return ComplexWeights()


def passing_buffer(signature: Signature) -> nn.Module:
    return PassingBuffer()


def running_mean(signature: Signature) -> nn.Module:
    return RunningMean()


def cumulative(signature: Signature) -> nn.Module:
    return Cumulative()


def spectral_norm(signature: Signature) -> nn.Module:
    net = Net()
    nn.utils.parametrizations.spectral_norm(net.body)
    return net


def weight_norm(signature: Signature) -> nn.Module:
    net = Net()
    nn.utils.parametrizations.weight_norm(net.head)
    return net


def attributes(signature: Signature) -> nn.Module:
    return Attributes()


def hook_with_a_count(signature: Signature) -> nn.Module:
    """Its hook counts batches in a variable around it, and scales the hidden units by that."""
    batches = 0

    def scale(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        nonlocal batches
        batches += module.training
        return output * (1 + 0.01 * batches)

    model = Net()
    model.body.register_forward_hook(scale)
    return model


def own_generators(signature: Signature) -> nn.Module:
    return OwnGenerators()


def global_generators(signature: Signature) -> nn.Module:
    return GlobalGenerators()


def frozen_by_hand(signature: Signature) -> nn.Module:
    return FrozenByHand()


def resized(signature: Signature) -> nn.Module:
    return Resized()


def late(signature: Signature) -> nn.Module:
    return Late()


def lazy(signature: Signature) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.LazyLinear(WIDTH), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(10)
    )


def tied(signature: Signature) -> nn.Module:
    return Tied()


def logits(signature: Signature) -> nn.Module:
    return Logits()


def kept(signature: Signature) -> nn.Module:
    return Kept()


def batch_norm(signature: Signature) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


CARRIED_OR_ANEW = (
    "integer_buffer",
    "boolean_buffer",
    "complex_buffer",
    "complex_weights",
    "passing_buffer",
    "running_mean",
    "cumulative",
    "spectral_norm",
    "weight_norm",
    "attributes",
    "hook_with_a_count",
    "own_generators",
    "global_generators",
    "frozen_by_hand",
    "resized",
    "late",
    "lazy",
    "tied",
    "logits",
    "kept",
    "batch_norm",
)
"""Names of the functions above, whose models are the same in every runtime."""

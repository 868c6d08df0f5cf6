"""Shared by methods that train a random part of the weights at a time, and merge its changes.

A random mask as in the structured updates of Konečný et al. (2016, arXiv 1610.05492, section 2): what is not
sent is not trained either, so that only rounding loses anything. All clients have the same mask in a merge,
which follows from the seed and the merge's number; changes are rounded to multiples of one step.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import prod
from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn

from fedistill.aggregation.weights import merge_weights
from fedistill.communication.messages.base import MessageContext
from fedistill.communication.messages.masked import (
    MOST_STEPS,
    Chain,
    step_bits,
    step_size,
    steps_from_bytes,
)
from fedistill.errors import FrameError, Refusal
from fedistill.methods.base import ClientStateT, Down, Method, ServerStateT, Up
from fedistill.methods.participants import Client, FederationInfo
from fedistill.methods.shared.own_model import train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.methods.shared.weight_averaging import AveragingSettings
from fedistill.rng import stream
from fedistill.training.loop import Loss
from fedistill.training.model_state import ModelState, trainable
from fedistill.training.optimizers import make_optimizer


class MaskSettings(AveragingSettings):
    """How much of the weights is trained and sent for a merge, and how."""

    trained_share: float = Field(
        default=0.05, gt=0, le=1, description="share of the weights of matrices and kernels per merge"
    )
    lr_factor: float = Field(
        default=5.0, gt=0, description="the learning rate of merges, as a multiple of train.optimizer.lr"
    )
    up_step: float = Field(
        default=2.0, gt=0, description="step of clients' changes, in units of their root mean square"
    )
    down_step: float = Field(
        default=2.0, gt=0, description="step of the merged changes, in units of their root mean square"
    )


@lru_cache(maxsize=16)
def trained_weights(seed: int, parts: tuple[tuple[int, ...], ...], share: float, merge: int) -> Tensor:
    """Return flags (P,): the weights that are trained for a merge. Those of vectors, such as biases, are."""
    flags = torch.rand(sum(map(prod, parts)), generator=stream(seed, "mask", round=merge)) < share
    place = 0
    for shape in parts:
        if len(shape) < 2:
            flags[place : place + prod(shape)] = True
        place += prod(shape)
    return flags


@dataclass(frozen=True)
class Changes:
    """Changes (m,) of some weights, as int64 multiples of a step (`step_size`)."""

    step: int
    multiples: Tensor

    @classmethod
    def rounded(cls, values: Tensor, coarseness: float) -> Self:
        """Round values (m,) to multiples of about ``coarseness`` times their root mean square."""
        step = step_bits(coarseness * float(values.double().square().mean().sqrt())) if len(values) else 0
        size = step_size(step)
        if not size:
            return cls(0, torch.zeros(len(values), dtype=torch.int64))
        multiples = (values.double() / size).round().clamp(-MOST_STEPS, MOST_STEPS)
        return cls(step, multiples.long())

    def values(self) -> Tensor:
        """Return the changes, float32 (m,)."""
        return self.multiples.float() * step_size(self.step)


@dataclass(frozen=True)
class Trail:
    """How the weights of an architecture, which all clients follow, have moved since the start.

    Attributes:
        weights: (P,), where they are.
        steps: (merges,) the step of each change.
        counts: (merges,) how many weights each change is of.
        changes: of all merges, one after the other, int8.
    """

    weights: Tensor
    steps: Tensor
    counts: Tensor
    changes: Tensor

    @classmethod
    def at(cls, weights: Tensor) -> "Trail":
        """Return a trail that begins at these weights (P,)."""
        none = torch.zeros(0, dtype=torch.int64)
        return cls(weights, none, none, none.to(torch.int8))

    @property
    def merges(self) -> int:
        return len(self.steps)

    def after(self, changes: Changes, trained: Tensor) -> "Trail":
        """Return the trail after one more merge, of the weights with these flags (P,)."""
        return Trail(
            moved(self.weights, changes.values(), trained),
            torch.cat([self.steps, torch.tensor([changes.step])]),
            torch.cat([self.counts, torch.tensor([len(changes.multiples)])]),
            torch.cat([self.changes, changes.multiples.to(torch.int8)]),
        )

    def since(self, merge: int) -> tuple[Tensor, Tensor]:
        """Return the steps and the changes, both int64, of all merges after this one."""
        return self.steps[merge:], self.changes[int(self.counts[:merge].sum()) :].long()


def moved(weights: Tensor, changes: Tensor, trained: Tensor) -> Tensor:
    """Return weights (P,) after changes (m,) of those with these flags (P,)."""
    after = weights.clone()
    after[trained] += changes
    return after


def catch_up(weights: Tensor, merges: int, received: Chain, mask: Callable[[int], Tensor]) -> Tensor | None:
    """Return weights (P,) that have followed so many merges after all those that a request tells of.

    None if the request takes it that more is known, or tells of fewer merges; the client has lost its state.
    """
    if not received.known <= merges < received.turn:
        return None
    place = 0
    for number, step in enumerate(steps_from_bytes(received.steps).tolist(), start=received.known + 1):
        trained = mask(number)
        count = int(trained.sum())
        if number > merges:  # a reply that did not arrive leaves the client ahead of what the server knows
            changes = Changes(step, received.changes[place : place + count])
            weights = moved(weights, changes.values(), trained)
        place += count
    return weights


def train_part(
    client: Client,
    weights: Tensor,
    trained: Tensor,
    settings: MaskSettings,
    loss_of: Callable[[Client, nn.Module], Loss],
) -> ModelState:
    """Return a client's model, begun at these weights (P,), after training those with these flags (P,)."""
    module = client.load(ModelState(weights))
    config = client.train.optimizer
    optimizer = make_optimizer(config.model_copy(update={"lr": config.lr * settings.lr_factor}), module)
    with _only(module, trained):
        train_private(module, optimizer, client, loss_of(client, module))
    # Weight decay moves the others, too, by a little.
    return ModelState(torch.where(trained, ModelState.of(module).weights, weights))


@dataclass(frozen=True)
class Merge:
    """What a merge has led to.

    Attributes:
        trail: after it.
        weights: (P,), before they were rounded.
        reliability: how far each client was followed, by number, if the average is a robust one.
    """

    trail: Trail
    weights: Tensor
    reliability: dict[int, float]


def merge(
    trail: Trail, came: Iterable[tuple[int, Changes, float]], trained: Tensor, settings: MaskSettings
) -> Merge | None:
    """Merge changes of the weights with these flags (P,); return None if none came.

    Args:
        came: the number of each client, its changes, and how much they count.
    """
    clients: list[int] = []

    def values() -> Iterator[tuple[Tensor, float]]:
        for client, changes, weight in came:
            clients.append(client)
            yield changes.values(), weight

    start = torch.zeros(int(trained.sum()))
    found = merge_weights(values(), start, settings.averaging, settings.liars)
    if found is None:
        return None
    after = trail.after(Changes.rounded(found.weights, settings.down_step), trained)
    figures = {} if found.reliability is None else dict(zip(clients, found.reliability, strict=True))
    return Merge(after, moved(trail.weights, found.weights, trained), figures)


def masks_of(federation: FederationInfo, model: str, share: float) -> Callable[[int], Tensor]:
    """Return what maps the number of a merge to flags (P,) of the weights of this model that are trained."""
    return partial(trained_weights, federation.seed, federation.layouts[model].parts, share)


class MergesParts(Method[Up, Down, ServerStateT, ClientStateT]):
    """Base of methods that merge a random part of the weights at a time, to be named first."""

    clients_build_common = True
    settings: MaskSettings

    def check(self, federation: FederationInfo) -> None:
        """Check that the state of each client's model is its trainable parameters alone.

        Raises:
            Refusal: one of them has buffers.
        """
        super().check(federation)
        for name in sorted({info.model for info in federation.clients}):
            layout = federation.layouts[name]
            if layout.buffers or layout.integers.values:
                raise Refusal(
                    f"method {self.name} sends changes of weights that are trained, but {name} has buffers,"
                    " such as the statistics of batch norm: choose a client model without them (group or"
                    " layer norm)"
                )

    def message_context(self, federation: FederationInfo, client: int) -> MessageContext:
        trained = self.masks(federation, federation.clients[client].model)
        return replace(super().message_context(federation, client), trained=trained)

    def masks(self, federation: FederationInfo, model: str) -> Callable[[int], Tensor]:
        """Return what maps the number of a merge to flags (P,) of the weights of this model."""
        return masks_of(federation, model, self.settings.trained_share)

    def merge_loss(self, client: Client, module: nn.Module) -> Loss:
        """Return the loss on a client's private samples in a merge; call it right before that."""
        return private_loss(client, module)

    def train_merge(self, client: Client, weights: Tensor, merge: int) -> tuple[ModelState, Changes]:
        """Return a client's model after its part of a merge, begun at these weights (P,), and its changes."""
        trained = self.masks(client.federation, client.model)(merge)
        model = train_part(client, weights, trained, self.settings, self.merge_loss)
        return model, Changes.rounded((model.weights - weights)[trained], self.settings.up_step)


def check_turn(turn: int, trail: Trail) -> None:
    """Check the number of the merge that a client's changes are for.

    Raises:
        FrameError: it is not the next one.
    """
    if turn != trail.merges + 1:
        raise FrameError(f"changes for merge {turn} came where those for {trail.merges + 1} were asked for")


@contextmanager
def _only(module: nn.Module, trained: Tensor) -> Iterator[None]:
    """Have only the weights with these flags (P,) get a gradient that is not 0."""
    values = list(trainable(module))
    flags = torch.split(trained, [value.numel() for value in values])
    handles = []
    for value, part in zip(values, flags, strict=True):
        parameter = value if value.is_leaf else value._base  # complex numbers are seen as pairs of real ones
        assert parameter is not None
        masked = partial(_masked, part.view(value.shape))
        handles.append(parameter.register_hook(masked))  # type: ignore[no-untyped-call]  # torch leaves it untyped
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _masked(flags: Tensor, gradient: Tensor) -> Tensor:
    flags = flags.to(gradient.device)
    if gradient.is_complex():
        return torch.view_as_complex(torch.view_as_real(gradient) * flags)
    return gradient.to_dense() * flags

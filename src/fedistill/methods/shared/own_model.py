"""Shared by methods in which clients or the server keep a model and an optimizer between rounds."""

from dataclasses import dataclass, field, replace
from typing import Self

from torch import nn

from fedistill.methods.participants import Client, Participant
from fedistill.state import State
from fedistill.training.loop import Loss, fit
from fedistill.training.model_state import ModelState
from fedistill.training.optimizers import Optimizer, make_optimizer


@dataclass(frozen=True)
class ServerModel:
    """The state of a server that keeps only its model."""

    model: ModelState


@dataclass(frozen=True)
class Learner:
    """A model and its optimizer state, kept between rounds."""

    model: ModelState
    optimizer: State = field(default_factory=dict)

    def restore(self, side: Participant) -> tuple[nn.Module, Optimizer]:
        """Return the model and the optimizer with this state."""
        model = side.load(self.model)
        return model, make_optimizer(side.train.optimizer, model).restore(self.optimizer)

    def after(self, model: nn.Module, optimizer: Optimizer) -> Self:
        """Return this state updated with the model and the optimizer after training."""
        return replace(self, model=ModelState.of(model), optimizer=optimizer.state())


def train_private(
    model: nn.Module, optimizer: Optimizer, client: Client, loss: Loss, epochs: int | None = None
) -> None:
    """Train on the client's private samples with the arm's training settings."""
    fit(
        model,
        optimizer,
        client.inputs(),
        loss,
        epochs=epochs or client.train.epochs,
        batch_size=client.train.batch_size,
        generator=client.stream("private"),
        steps=None if epochs else client.train.steps,
    )

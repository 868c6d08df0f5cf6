"""Shared by methods whose clients keep a model and an optimiser of their own between rounds."""

from torch import nn

from fedistill.methods.base import Client
from fedistill.state import State
from fedistill.training.loop import Loss, fit
from fedistill.training.model_state import flatten
from fedistill.training.optimizers import Optimizer, make_optimizer


def initial_state(client: Client) -> State:
    """State of a client that has not trained yet."""
    return {"model": client.initial_weights(), "optimizer": {}}


def restore(state: State, client: Client) -> tuple[nn.Module, Optimizer]:
    """Load the client's model and optimiser."""
    model = client.load(state["model"])
    optimizer = make_optimizer(client.train.optimizer, model)
    return model, optimizer.restore(state["optimizer"])


def state_of(model: nn.Module, optimizer: Optimizer) -> State:
    """State to keep until the client takes part again."""
    return {"model": flatten(model), "optimizer": optimizer.state()}


def train_private(
    model: nn.Module, optimizer: Optimizer, client: Client, loss: Loss, epochs: int | None = None
) -> None:
    """Train on the client's private samples, by the arm's training settings."""
    fit(
        model,
        optimizer,
        client.data.inputs,
        loss,
        epochs=epochs or client.train.epochs,
        batch_size=client.train.batch_size,
        generator=client.stream("private"),
        steps=None if epochs else client.train.steps,
    )

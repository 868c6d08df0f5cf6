"""Shared by methods that learn from labels on public samples."""

import torch
from pydantic import Field
from torch import Tensor, nn

from fedistill.config import Section
from fedistill.distill import kl
from fedistill.methods.base import Server, Site
from fedistill.state import State
from fedistill.train import fit, flatten, make_optimizer, optimizer_state, restore_optimizer


class DistillSettings(Section):
    distill_epochs: int = Field(default=1, ge=1, description="epochs on the global labels")
    distill_batch_size: int = Field(default=32, ge=1)


class DrawnSettings(DistillSettings):
    samples: int | None = Field(
        default=None, ge=1, description="public samples a round, drawn anew; default: all"
    )


def distil(
    site: Site,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    probs: Tensor,
    settings: DistillSettings,
) -> None:
    """Train a model on public inputs (n, ...) to give probabilities (n, C), by KL divergence."""
    fit(
        model,
        optimizer,
        inputs,
        lambda logits, at: kl(logits, probs[at]),
        epochs=settings.distill_epochs,
        batch_size=settings.distill_batch_size,
        generator=site.stream("distil"),
    )


def distil_server(
    state: State, server: Server, inputs: Tensor, probs: Tensor, settings: DistillSettings
) -> State:
    """Go on with the server's model and optimiser; return their new state."""
    model = server.load(state["model"])
    optimizer = make_optimizer(server.train.optimizer, model)
    restore_optimizer(optimizer, state["optimizer"])
    distil(server, model, optimizer, inputs, probs, settings)
    return {"model": flatten(model), "optimizer": optimizer_state(optimizer)}

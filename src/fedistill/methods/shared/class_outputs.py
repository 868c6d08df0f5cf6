"""Shared by methods that exchange the mean softmax output of each class."""

import torch
from torch import Tensor, nn

from fedistill.methods.base import Client
from fedistill.methods.shared.own_model import train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.state import State
from fedistill.training.losses import soft_cross_entropy
from fedistill.training.optimizers import Optimizer


def train_following(
    model: nn.Module, optimizer: Optimizer, client: Client, targets: Tensor, gamma: float
) -> Tensor:
    """Train on private data with ``gamma CE(F(x), G_y)`` added, G being the targets (C, C).

    Classes whose target is a row of zeros have no such term. Returns the mean softmax output of each class
    over this training, (C, C); a row of zeros for a class that the client does not hold.
    """
    labels, known = client.data.labels, targets.sum(dim=1) > 0
    private = private_loss(client, model)
    sums, counts = torch.zeros_like(targets), torch.zeros(len(targets))

    def loss(logits: Tensor, at: Tensor) -> Tensor:
        y = labels[at]
        sums.index_add_(0, y, logits.detach().softmax(dim=1))
        counts.index_add_(0, y, torch.ones(len(y)))
        value = private(logits, at)
        told = known[y]
        if told.any():
            # Divided by the whole batch: a sample without a target adds nothing.
            share = told.float().mean()
            value = value + gamma * share * soft_cross_entropy(logits[told], targets[y[told]])
        return value

    train_private(model, optimizer, client, loss)
    return sums / counts.clamp(min=1)[:, None]


def pooled(outputs: dict[str, Tensor]) -> State:
    """What the server keeps of clients' tables (C, C): each, their sum, and how many hold each class."""
    # In client order, whatever the order of the keys. Doubles, so that a client's own can be taken out
    # of the sum again: adding up the others for each client takes the square of their number.
    tables = torch.stack([outputs[name] for name in sorted(outputs, key=int)]).double()
    return {"outputs": outputs, "sum": tables.sum(dim=0), "holders": _held(tables).sum(dim=0)}


def mean_of_others(state: State, client: int) -> Tensor | None:
    """Mean (C, C) of the tables in what `pooled` returned but a client's own; None where there are none.

    Row by row, over those whose row is not zero; a row that nobody else has is zero.
    """
    own: Tensor | None = state["outputs"].get(str(client))
    if len(state["outputs"]) == (own is not None):
        return None
    total: Tensor = state["sum"]
    holders: Tensor = state["holders"]
    if own is not None:
        total, holders = total - own, holders - _held(own).long()
    known = holders > 0
    # Where the others' part is tiny, a rounding error may leave it below zero.
    return (torch.where(known[:, None], total, 0).clamp(min=0) / holders.clamp(min=1)[:, None]).float()


def _held(tables: Tensor) -> Tensor:
    """Which rows (…, C) of tables (…, C, C) are not zero."""
    return tables.sum(dim=-1) > 0

"""Shared by methods that exchange the mean softmax output of each class."""

import torch
from torch import Tensor, nn

from fedistill.distill import soft_cross_entropy
from fedistill.methods.base import Client
from fedistill.methods.own_model import train_private
from fedistill.methods.private_loss import private_loss
from fedistill.optim import Optimizer


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


def mean_of_others(outputs: dict[str, Tensor], client: int) -> Tensor | None:
    """`class_mean` of all clients' outputs but one's, or None where there are no others."""
    names = sorted(outputs, key=int)  # in client order, whatever the order of the keys
    others = [outputs[name] for name in names if name != str(client)]
    return class_mean(others) if others else None


def class_mean(tables: list[Tensor]) -> Tensor:
    """Mean of (C, C) tables row by row, over those whose row is not zero; a row nobody has stays zero."""
    stacked = torch.stack(tables)
    present = (stacked.sum(dim=2) > 0).sum(dim=0).clamp(min=1)
    return stacked.sum(dim=0) / present[:, None]

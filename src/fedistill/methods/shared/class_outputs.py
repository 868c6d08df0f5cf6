"""Shared by methods that exchange the mean softmax output of each class."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fedistill.methods.participants import Client
from fedistill.methods.shared.own_model import train_private
from fedistill.methods.shared.private_loss import private_loss
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
        taught = known[y]
        if taught.any():
            # Divided by the whole batch: a sample without a target adds nothing.
            share = taught.float().mean()
            value = value + gamma * share * soft_cross_entropy(logits[taught], targets[y[taught]])
        return value

    train_private(model, optimizer, client, loss)
    return sums / counts.clamp(min=1)[:, None]


@dataclass(frozen=True)
class ClassTables:
    """What the server keeps of clients' tables (C, C) of class outputs.

    Attributes:
        tables: each client's, by its number.
        total: their sum, in float64, so that a client's own can be taken out of it again: adding up the
            others for each client takes the square of their number.
        holders: how many clients hold each class (C,).
    """

    tables: dict[int, Tensor] = field(default_factory=dict)
    total: Tensor = field(default_factory=lambda: torch.zeros(0))
    holders: Tensor = field(default_factory=lambda: torch.zeros(0))

    @classmethod
    def of(cls, tables: dict[int, Tensor]) -> "ClassTables":
        """Return the tables of these clients; at least one."""
        # In client order, whatever the order of the keys.
        stacked = torch.stack([tables[client] for client in sorted(tables)]).double()
        return cls(tables, stacked.sum(dim=0), _held(stacked).sum(dim=0))

    def mean_of_others(self, client: int) -> Tensor | None:
        """Mean (C, C) of the tables of all others, or None where there are none.

        Row by row, over those whose row is not zero; a row that nobody else has is zero.
        """
        own = self.tables.get(client)
        if len(self.tables) == (own is not None):
            return None
        total, holders = self.total, self.holders
        if own is not None:
            total, holders = total - own, holders - _held(own).long()
        known = holders > 0
        # Where the others' part is tiny, a rounding error may leave it below zero.
        return (torch.where(known[:, None], total, 0).clamp(min=0) / holders.clamp(min=1)[:, None]).float()


def _held(tables: Tensor) -> Tensor:
    """Which rows (…, C) of tables (…, C, C) are not zero."""
    return tables.sum(dim=-1) > 0

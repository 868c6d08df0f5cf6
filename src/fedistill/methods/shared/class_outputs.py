"""Shared by methods that exchange mean softmax outputs per class."""

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
    """Train on private data with the extra loss ``gamma CE(F(x), G_y)``, where G are the targets (C, C).

    Classes whose target is a row of zeros have no such term. Returns the mean softmax output per class
    during this training, (C, C), with a row of zeros for each class that the client does not hold.
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
            # The mean is over the full batch: samples without a target add zero.
            share = taught.float().mean()
            value = value + gamma * share * soft_cross_entropy(logits[taught], targets[y[taught]])
        return value

    train_private(model, optimizer, client, loss)
    return sums / counts.clamp(min=1)[:, None]


@dataclass(frozen=True)
class ClassTables:
    """The clients' tables (C, C) of class outputs, as the server keeps them.

    Attributes:
        tables: each client's table, by client number.
        total: sum of the tables, in float64, from which a client's own table is subtracted: summing the
            others again for every client would take quadratic time.
        holders: number of clients that hold each class (C,).
    """

    tables: dict[int, Tensor] = field(default_factory=dict)
    total: Tensor = field(default_factory=lambda: torch.zeros(0))
    holders: Tensor = field(default_factory=lambda: torch.zeros(0))

    @classmethod
    def of(cls, tables: dict[int, Tensor]) -> "ClassTables":
        """Build the state from the tables by client; there must be at least one."""
        # Summed in client order, so that the order of the keys changes nothing.
        stacked = torch.stack([tables[client] for client in sorted(tables)]).double()
        return cls(tables, stacked.sum(dim=0), _held(stacked).sum(dim=0))

    def mean_of_others(self, client: int) -> Tensor | None:
        """Return the mean (C, C) of all other clients' tables, or None if there are none.

        Each row is averaged over the tables in which it is not zero; rows that no other client has are zero.
        """
        own = self.tables.get(client)
        if len(self.tables) == (own is not None):
            return None
        total, holders = self.total, self.holders
        if own is not None:
            total, holders = total - own, holders - _held(own).long()
        known = holders > 0
        # After the subtraction, a tiny sum may be below zero by a rounding error.
        return (torch.where(known[:, None], total, 0).clamp(min=0) / holders.clamp(min=1)[:, None]).float()


def _held(tables: Tensor) -> Tensor:
    """Mask (…, C) of the rows of tables (…, C, C) that are not zero."""
    return tables.sum(dim=-1) > 0

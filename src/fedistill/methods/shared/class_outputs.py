"""Shared by methods that exchange mean softmax outputs per class."""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedistill.aggregation.classwise import class_agreement, class_medians
from fedistill.config.schema import Section
from fedistill.methods.participants import Client, Server
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


class ClassPoolingSettings(Section):
    pooling: Literal["mean", "median"] = Field(
        default="mean",
        description="how the server pools what clients say of a class; the median, entry by entry, is of all"
        " clients, the receiver among them, and bounds what liars can do",
    )


@dataclass(frozen=True)
class ClassTables:
    """The clients' tables (C, C) of class outputs, as the server keeps them.

    Attributes:
        tables: each client's table, by client number.
        total: sum of the tables, in float64, from which a client's own table is subtracted: summing the
            others again for every client would take quadratic time.
        holders: number of clients that hold each class (C,).
        median: what all clients are sent in place of the mean of the others (C, C), or None.
    """

    tables: dict[int, Tensor] = field(default_factory=dict)
    total: Tensor = field(default_factory=lambda: torch.zeros(0))
    holders: Tensor = field(default_factory=lambda: torch.zeros(0))
    median: Tensor | None = None

    @classmethod
    def of(cls, tables: dict[int, Tensor]) -> "ClassTables":
        """Build the state from the tables by client; there must be at least one."""
        # Summed in client order, so that the order of the keys changes nothing.
        stacked = torch.stack([tables[client] for client in sorted(tables)]).double()
        return cls(tables, stacked.sum(dim=0), _held(stacked).sum(dim=0))

    def for_client(self, client: int) -> Tensor | None:
        """Return what a client is sent (C, C), or None if there is nothing yet."""
        return self.mean_of_others(client) if self.median is None else self.median

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


def pool_tables(server: Server, tables: dict[int, Tensor], pooling: Literal["mean", "median"]) -> ClassTables:
    """Return the state with the tables (C, C) of at least one client.

    With the median, notes how far each client describes classes as the others do.
    """
    found = ClassTables.of(tables)
    if pooling == "mean":
        return found
    clients = sorted(tables)
    stacked = torch.stack([tables[client] for client in clients])
    present = _held(stacked)
    agreed = class_agreement(stacked, present, present).tolist()
    server.note_reliability(dict(zip(clients, agreed, strict=True)))
    medians, _ = class_medians(stacked, present)
    totals = medians.sum(dim=1, keepdim=True)
    return replace(found, median=torch.where(totals > 0, medians / totals, 0))


def _held(tables: Tensor) -> Tensor:
    """Mask (…, C) of the rows of tables (…, C, C) that are not zero."""
    return tables.sum(dim=-1) > 0

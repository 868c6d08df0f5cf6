"""Whom an audit asks about: members of a client's private set and non-members, as alike as can be.

An attack that tells a client's samples from other ones may have found the client's mix of classes and not its
members. So non-members are labelled samples that no client has, and each client has as many of them as
members of each class. They are what the client has held out of its own samples; where it holds out none,
samples of the test set, which come from the same source if the partition was drawn from one.

The server is taken to have the labelled test set, which it may train shadow models on. It is divided in two
halves: a candidate of one half is only compared with shadow models that were trained on the other half.
Members are assigned to a half at random, too, so that both are compared with equally many shadow models.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedistill.config.partitions import Listed, Natural
from fedistill.config.schema import Experiment
from fedistill.data.task import Task
from fedistill.models import registry as models
from fedistill.rng import numpy_stream
from fedistill.studies.audit.roc import Integers

HALVES = 2


@dataclass(frozen=True)
class Candidates:
    """The candidates of a client, members first, with the two sides of each class equally large.

    Attributes:
        client: the client.
        members: places (m,) in its private set.
        others: places (m,) in its own test set, or in the test set if it holds out none.
        labels: (2m,), of members, then of the others.
        half: (2m,), 0 or 1, see `fedistill.studies.audit.candidates`.
    """

    client: int
    members: Tensor
    others: Tensor
    labels: Tensor
    half: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_member(self) -> Tensor:
        """Mask (2m,)."""
        return torch.arange(len(self)) < len(self.members)

    def inputs(self, task: Task, model: str) -> Tensor:
        """Return the candidates (2m, ...) as a model takes them, by its name."""
        wanted = models.preprocessing(model)
        private = task.client_inputs(self.client, wanted)[self.members]
        if task.own_tests:
            return torch.cat([private, task.own_test_inputs(self.client, wanted)[self.others]])
        return torch.cat([private, task.test_inputs(wanted)[self.others]])

    def ids(self, task: Task) -> tuple[Integers, Integers]:
        """Return which sample each candidate is, (m,) members and (m,) others, equal for equal samples."""
        clients = len(task.clients)
        others = self.others * clients + self.client if task.own_tests else self.others
        return (self.members * clients + self.client).numpy(), others.numpy()


def halves(task: Task, seed: int) -> Tensor:
    """Return the half (n,), 0 or 1, of each sample of the test set; classes are divided evenly."""
    generator = numpy_stream(seed, "audit halves")
    found = np.zeros(len(task.test), dtype=np.int64)
    labels = task.test.labels.numpy()
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        found[rows[(len(rows) + int(generator.integers(HALVES))) // HALVES :]] = 1
    return torch.from_numpy(found)


def draw_candidates(task: Task, client: int, half: Tensor, most: int, seed: int) -> Candidates:
    """Draw the candidates of a client.

    Args:
        half: of each sample of the test set, from `halves`.
        most: the most members, and the most non-members.
        seed: of the audit.
    """
    generator = numpy_stream(seed, "audit candidates", client)
    pool = task.own_tests[client] if task.own_tests else task.test
    inside, outside = task.clients[client].labels.numpy(), pool.labels.numpy()
    pairs: list[tuple[int, int]] = []
    for label in np.unique(inside):
        own = generator.permutation(np.flatnonzero(inside == label))
        free = generator.permutation(np.flatnonzero(outside == label))
        pairs += zip(own.tolist(), free.tolist(), strict=False)
    chosen = [pairs[place] for place in np.sort(generator.permutation(len(pairs))[:most])]
    members = torch.tensor([member for member, _ in chosen], dtype=torch.int64)
    others = torch.tensor([other for _, other in chosen], dtype=torch.int64)
    drawn = torch.from_numpy(generator.integers(HALVES, size=2 * len(chosen)))
    if not task.own_tests:
        drawn[len(chosen) :] = half[others]
    labels = torch.cat([task.clients[client].labels[members], pool.labels[others]])
    return Candidates(client, members, others, labels, drawn)


def warning(experiment: Experiment, task: Task) -> str | None:
    """Return why members and non-members may differ in more than membership, or None."""
    if isinstance(experiment.task.partition, Natural | Listed) and not task.own_tests:
        return (
            "clients are sites and hold out no samples of their own, so that non-members come from other"
            " sites: an attack may tell sites apart, not members; set task.own_test_share"
        )
    return None

"""Shared by methods that pool votes by how well clients know the classes.

A client's *level* in a class says about how many private samples of it the client has, in half powers of two:
``round(2 log2(1 + n_c))``. Server and clients compare levels; exact counts never leave a client.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

RELIABILITY = 0.97
"""Accuracy on a class of a client that has very many samples of it."""
HALFWAY = 20.0
"""Samples of a class with which a client has half of that accuracy."""


def class_levels(labels: Tensor, classes: int) -> Tensor:
    """Return the levels (C,) of a client with these private labels (n,), int64 from 0 to 63."""
    return levels_of(torch.bincount(labels, minlength=classes))


def mean_level(samples: Sequence[int], classes: int) -> int:
    """Return the level, 1 or more, of the mean number of samples that these clients have of a class."""
    mean = torch.tensor(sum(samples) / (len(samples) * classes), dtype=torch.float64)
    return max(int(levels_of(mean)), 1)


def levels_of(counts: Tensor) -> Tensor:
    """Return the levels of these numbers of samples, int64 of the same shape."""
    return (2 * (1 + counts.double()).log2()).round().long().clamp(max=63)


def sizes(levels: Tensor) -> Tensor:
    """Return about how many samples levels stand for, as floats of the same shape."""
    return torch.exp2(levels.double() / 2) - 1


def thresholds(levels: Tensor, coverage: float) -> Tensor:
    """Return for each class the level (C,) from which clients are its experts.

    Experts are the clients with the most samples of a class, as many as are needed to hold the share
    ``coverage`` of them, but at least two.

    Args:
        levels: (K, C), those of the clients that are known.
    """
    largest = levels.sort(dim=0, descending=True).values
    held = sizes(largest).cumsum(dim=0)
    needed = (held < coverage * held[-1]).sum(dim=0).clamp(min=1, max=len(levels) - 1)
    return largest.gather(0, needed[None])[0].clamp(min=1)


def share_of_voters(counts: Tensor, least: int) -> Tensor:
    """Return the share (C,), 0 to 1, of each class's samples whose clients vote for it from this level on.

    Of clients with one class alone, which never vote (`expert_votes`), none count; 1 where all are theirs.

    Args:
        counts: (K, C) samples of all clients.
    """
    held = counts * ((counts > 0).sum(dim=1) > 1)[:, None]
    voting = (held * (levels_of(counts) >= least)).sum(dim=0)
    return torch.where(held.sum(dim=0) > 0, voting / held.sum(dim=0), 1.0)


def expert_votes(predicted: Tensor, levels: Tensor, least: Tensor) -> Tensor:
    """Return a client's votes (n,): its predicted class (n,) where it is an expert, else C, an abstention.

    A client with one class alone abstains: it would vote for that class whatever it sees.
    """
    expert = (levels >= least) & ((levels > 0).sum() > 1)
    return torch.where(expert[predicted], predicted, len(levels))


def pool_votes(votes: Tensor, weight: Tensor) -> Tensor:
    """Return the class (n,) with the most support for each sample; C where all abstain.

    Of equal classes the first wins.

    Args:
        votes: (K, n); C or a negative number for an abstention.
        weight: (K, C), how much a client's vote for a class counts.
    """
    classes = weight.shape[1]
    support = torch.zeros(votes.shape[1], classes + 1, dtype=torch.float64)
    for row, own in zip(votes, weight, strict=True):
        voted = ((row >= 0) & (row < classes)).nonzero().flatten()
        support[voted, row[voted]] += own[row[voted]]
    found = support[:, :classes].argmax(dim=1)
    return torch.where(support.sum(dim=1) > 0, found, classes)


def vote_evidence(votes: Tensor, levels: Tensor) -> Tensor:
    """Return the log-likelihood (n, C), float64, of all votes on each sample, by the sample's class.

    A client with n_c samples of a class votes for it with probability a = 0.97 n_c / (n_c + 20), and else for
    any of the classes that it has, each with the same probability. So a vote says nothing about a class that
    its client does not have, and tells those that it has apart.

    Args:
        votes: (K, n); C or a negative number for an abstention, which says nothing.
        levels: (K, C), of which only those of clients who have voted are used.
    """
    classes = levels.shape[1]
    found = torch.zeros(votes.shape[1], classes, dtype=torch.float64)
    for row, level in zip(votes, levels, strict=True):
        voted = ((row >= 0) & (row < classes)).nonzero().flatten()
        if not len(voted):
            continue
        held = sizes(level)
        sure = RELIABILITY * held / (held + HALFWAY)
        other = (held > 0).double() / (held > 0).sum().clamp(min=1)
        likelihood = torch.diag(sure) + torch.outer(1 - sure, other)  # rows: the class, columns: the vote
        found[voted] += likelihood.clamp(min=1e-4).log().T[row[voted]]
    return found

"""How well a client knows each public sample, as scores that are sent once (`messages.scored`)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fedistill.communication.messages.scored import LEVELS
from fedistill.methods.participants import Client
from fedistill.methods.shared.density import vectors

_STEPS = 4
"""Scores of densities per nat."""
_SAME = 1e-6
"""Up to this distance, which rounding alone can cause, vectors are the same."""


def density_scores(client: Client) -> Tensor:
    """Return about how unlikely each public sample is among a client's own, int64 (N,) from 0 to 63.

    The density is that of a Gaussian kernel estimate from all private samples. The kernel's width is the
    median distance from a public sample to the nearest other one, so that all clients have the same. A score
    is the negative logarithm of the density, relative to that at a sample where all private ones lie, in
    quarters of a nat.
    """
    own, public = _vectors(client)
    width = _nearest(public).median()
    mass = torch.cat(
        [torch.logsumexp(-apart.square() / (2 * width**2), dim=1) for apart in _distances(public, own)]
    )
    unlikely = torch.tensor(len(own)).log() - mass
    return (_STEPS * unlikely).round().long().clamp(0, LEVELS - 1)


def densities(scores: Tensor, temperature: float) -> Tensor:
    """Return the densities that `density_scores` stand for, to the power of 1 / temperature."""
    return torch.exp(-scores.double() / (_STEPS * temperature))


def certainty_scores(client: Client, penalty: float) -> Tensor:
    """Return the certainty that each public sample is one of a client's own, int64 (N,) from 0 to 63.

    It is the probability, in steps of 1/64, by a logistic regression of private against public samples,
    whose vectors are divided by the largest norm.

    Args:
        penalty: lambda; ``lambda / 2 ||w||^2`` is added to the sum of losses.
    """
    # Importing scikit-learn takes longer than most commands.
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    own, public = (rows.double() for rows in _vectors(client))
    rows = torch.cat([own, public])
    largest = rows.norm(dim=1).max().clamp(min=1e-12)
    private = torch.arange(len(rows)) < len(own)
    with threadpool_limits(1):  # sums in the same order on any number of cores, as torch does here
        model = LogisticRegression(C=1 / penalty, max_iter=10_000)
        model.fit((rows / largest).numpy(), private.numpy())
        probs = torch.from_numpy(model.predict_proba((public / largest).numpy())[:, 1])
    return (LEVELS * probs).long().clamp(0, LEVELS - 1)


def certainties(scores: Tensor) -> Tensor:
    """Return the probabilities that `certainty_scores` stand for, each the middle of its step."""
    return (scores.double() + 0.5) / LEVELS


def _vectors(client: Client) -> tuple[Tensor, Tensor]:
    known = client.public_inputs()
    return vectors(client.inputs(), client.signature, known), vectors(known, client.signature, known)


def _nearest(points: Tensor) -> Tensor:
    """Return the distance from each point (N, d) to the nearest at another place; 1 if there is none."""
    others = (torch.where(apart > _SAME, apart, torch.inf) for apart in _distances(points, points))
    nearest = torch.cat([apart.amin(dim=1) for apart in others])
    return torch.where(nearest.isfinite(), nearest, 1.0)


def _distances(points: Tensor, others: Tensor) -> Iterator[Tensor]:
    """Yield the distances from points (n, d) to others (m, d), a thousand points at a time."""
    for part in torch.split(points, 1000):
        yield torch.cdist(part.double(), others.double())

"""Reconstruction of class means: what a client's samples of a class look like on average.

Prototypes and statistics are means of features. The server knows the features of the test set: those of
statistics it computes as clients do; those of prototypes it takes from shadows, whose features the method has
pulled to the same global prototypes. A linear decoder from features to inputs, fitted by ridge regression
on the test set, decodes a mean of features into the mean of the decoded samples.

That an image of the class comes out says little, since the server knows what the class looks like. So what
counts is how far the client's mean is told from the test set's mean of that class.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

_RIDGE = 0.01


@dataclass(frozen=True)
class ClassMeans:
    """A client's class means (m, p), of the classes that it has.

    Attributes:
        decoded: as decoded from what it sent; ``truth``: as they are; ``usual``: those of the test set.
        counts: (m,), of how many samples.
    """

    decoded: Tensor
    truth: Tensor
    usual: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Reconstruction:
    """Class means of clients beside what was decoded of them, over clients and classes.

    Attributes:
        means: how many class means; ``single``: how many of these are of one sample, which is the mean.
        error: mean squared error of what was decoded, with inputs (pixels) from 0 to 1.
        usual_error: that of the test set's mean of the class in its place.
        gain: 1 - error / usual_error: 1 if the client's means were decoded, 0 or less if the test set's mean
            is the better guess.
        direction: mean cosine of what was decoded and the truth, both as differences to the test set's mean:
            0 if nothing is known of what sets the client apart.
    """

    means: int
    single: int
    error: float
    usual_error: float
    gain: float
    direction: float


def decode(features: Tensor, inputs: Tensor, means: Tensor) -> Tensor:
    """Return means (k, d) of features as means (k, p) of inputs, by ridge regression.

    Args:
        features: (n, d), of the inputs (n, p).
    """
    features, inputs = features.double(), inputs.double()
    centre, middle = features.mean(dim=0), inputs.mean(dim=0)
    deviations = features.std(dim=0).clamp(min=1e-6)
    scaled = (features - centre) / deviations
    gram = scaled.T @ scaled / len(scaled)
    weights = torch.linalg.solve(
        gram + _RIDGE * torch.eye(len(gram), dtype=torch.float64), scaled.T @ (inputs - middle) / len(scaled)
    )
    decoded: Tensor = ((means.double() - centre) / deviations) @ weights + middle
    return decoded


def compare(clients: Sequence[ClassMeans]) -> Reconstruction:
    """Return how well the class means of at least one client were decoded."""
    found, real, known = (
        torch.cat([getattr(one, name).double() for one in clients]) for name in ("decoded", "truth", "usual")
    )
    error, base = (found - real).square().mean(), (known - real).square().mean()
    return Reconstruction(
        means=len(real),
        single=sum(int((one.counts == 1).sum()) for one in clients),
        error=float(error),
        usual_error=float(base),
        gain=float(1 - error / base.clamp(min=1e-12)),
        direction=float(cosine_similarity(found - known, real - known, dim=1).mean()),
    )


def class_means(values: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the means (C, d) of values (n, d) by label (n,), zeros where there are none, and counts (C,)."""
    counts = torch.bincount(labels, minlength=classes)
    sums = torch.zeros(classes, values.shape[1], dtype=torch.float64).index_add_(0, labels, values.double())
    return sums / counts.clamp(min=1)[:, None], counts


def within_covariance(values: Tensor, labels: Tensor, means: Tensor) -> Tensor:
    """Return the covariance (d, d) within classes of values (n, d), given the means (C, d) of these."""
    centred = values.double() - means[labels]
    return centred.T @ centred / max(len(values), 1)

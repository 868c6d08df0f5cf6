"""Reconstruction of class means: what a client's samples of a class look like on average.

Prototypes and statistics are means of features. The server knows the features of the test set: those of
statistics it computes as clients do; those of prototypes it takes from shadows, whose features the method has
pulled to the same global prototypes. A linear decoder, fitted by ridge regression on the test set, turns
differences to the mean of a class in features into such differences in inputs. Being linear, it turns means
into means.

That an image of the class comes out would say little, since the server knows what the class looks like. So
what is decoded, and what counts, is how the client's mean differs from the test set's mean of that class.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

KNOWN, ALIKE = 0.01, 10.0
"""The ridge, by whether the server knows the features or has only shadows' (chosen on digits, seed 0)."""
_LEAST = 0.1
"""Standard deviations count as at least this share of their mean."""


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


def decode(features: Tensor, inputs: Tensor, shifts: Tensor, ridge: float) -> Tensor:
    """Return shifts (k, d) of class means of features as shifts (k, p) of class means of inputs.

    Args:
        features: (n, d), of the inputs (n, p); both as differences to the means of their classes.
        ridge: relative to the variance of each feature, `KNOWN` or `ALIKE`.
    """
    # A unit that hardly fires in these samples may do so in the client's.
    deviations = features.std(dim=0)
    deviations = deviations.clamp(min=_LEAST * float(deviations.mean()) + 1e-12)
    scaled = features / deviations
    gram = scaled.T @ scaled / len(scaled)
    gram += ridge * torch.eye(len(gram), dtype=gram.dtype)
    weights = torch.linalg.solve(gram, scaled.T @ inputs / len(scaled))
    decoded: Tensor = (shifts / deviations) @ weights
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

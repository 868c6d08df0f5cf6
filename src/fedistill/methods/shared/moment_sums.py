"""What clients add up of their features under secure sums, in place of the moments that they would send."""

import torch
from torch import Tensor

from fedistill.communication.secure_aggregation.fixed_point import Addend
from fedistill.config.secure_sums import SecureSums

MOST_FEATURE = 32.0
"""The size to which features are cut unless `secure_sums.range` names another."""


def moment_addends(classes: int, width: int, most: int, settings: SecureSums) -> dict[str, Addend]:
    """Return what clients with at most ``most`` samples add up of features (n, d), d being ``width``."""
    largest = settings.range or MOST_FEATURE
    return {
        "samples": Addend.integers((classes,), most),
        "sums": Addend.symmetric((classes, width), most * largest, settings.bits),
        "products": Addend.symmetric((width * (width + 1) // 2,), most * largest**2, settings.bits),
    }


def moments_to_add(features: Tensor, labels: Tensor, classes: int, settings: SecureSums) -> dict[str, Tensor]:
    """Return samples (C,), sums (C, d) and the triangle of products of features (n, d).

    Features are cut to the range of the settings, as their sums could not be bounded otherwise.
    """
    largest = settings.range or MOST_FEATURE
    cut = features.double().clamp(-largest, largest)
    sums = torch.zeros(classes, features.shape[1], dtype=torch.float64).index_add(0, labels, cut)
    row, column = torch.triu_indices(features.shape[1], features.shape[1])
    return {
        "samples": torch.bincount(labels, minlength=classes),
        "sums": sums,
        "products": (cut.T @ cut)[row, column],
    }

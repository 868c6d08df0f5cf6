"""A module with a model that trains well and whose outputs in evaluation are NaN, beside one that is fine."""

from pathlib import Path

_MODULE = """
from torch import nn


class Net(nn.Module):
    def __init__(self, signature):
        super().__init__()
        self.head = nn.Linear(64, signature.classes)

    def forward(self, x):
        outputs = self.head(x.flatten(1))
        return outputs if self.training else outputs * {scale}


def fine(signature):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, signature.classes))
"""


def write_nan_model(path: Path, *, mended: bool = False) -> None:
    """Write a module with ``Net`` and ``fine``, for digits; if it is mended, both are fine."""
    path.write_text(_MODULE.format(scale="1.0" if mended else 'float("nan")'))

"""Attacks on a client's own labels."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedistill.attacks.base import DataAttack


class LabelFlip(DataAttack):
    """Each label y becomes C - 1 - y."""

    kind: Literal["label-flip"] = "label-flip"
    source = "Fang et al., 2020, arXiv 1911.11815 (label flipping attack)"

    def labels(self, labels: Tensor, classes: int) -> Tensor:
        return classes - 1 - labels


class ShiftedLabels(DataAttack):
    """Each label y becomes y + 1, and the last class the first."""

    kind: Literal["shifted-labels"] = "shifted-labels"
    source = "after Tolpegin et al., 2020, arXiv 2007.08432 (label flipping); each class to the next is ours"

    def labels(self, labels: Tensor, classes: int) -> Tensor:
        return (labels + 1) % classes


class OneClass(DataAttack):
    """All labels become one class."""

    kind: Literal["one-class"] = "one-class"
    source = "Tolpegin et al., 2020, arXiv 2007.08432 (label flipping towards a target class)"
    target: int = Field(default=0, ge=0, description="the class, from 0; of fewer classes, the last one")

    def labels(self, labels: Tensor, classes: int) -> Tensor:
        return torch.full_like(labels, min(self.target, classes - 1))

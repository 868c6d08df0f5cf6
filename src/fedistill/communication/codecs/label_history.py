"""The earlier labels of each public sample, which both sides know, as tables over the public set."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedistill.communication.tensor_specs import Classes, SharedKnowledge, TensorSpec
from fedistill.state import State

Table = NDArray[np.int64]

TRIPLES = 1361
"""Entries for triples of classes, shared if there are more than 10 classes: evenly, as it is a prime."""


@dataclass(frozen=True)
class LabelHistory:
    """Earlier labels of the sample of each row: classes (n,), or -1 if there is none.

    Attributes:
        last: this side's last label.
        previous: this side's label before it last changed.
        other_labels: the other side's last label.
        other_labels_before: the other side's last label at the time of ``last``.
        history: bits about the last four messages: the upper four are set where this side's label differed
            from the other side's, the lower four where it changed; the lowest bit of each is the newest.
    """

    last: Classes
    previous: Classes
    other_labels: Classes
    other_labels_before: Classes
    history: Classes

    @classmethod
    def of(cls, spec: TensorSpec, known: SharedKnowledge) -> "LabelHistory":
        nothing = np.full(spec.shape[0], -1)
        other_labels = nothing if known.other_labels is None else known.other_labels
        last, previous, before, history = (
            recall(known, spec, name) for name in ("last", "previous", "told", "history")
        )
        if last is None or previous is None or before is None or history is None:
            return cls(nothing, nothing, other_labels, nothing, np.zeros_like(nothing))
        return cls(last, previous, other_labels, before, history)

    def candidates(self) -> Classes:
        """Return the classes (3, n) that the questions ask about; -1 if a question would be pointless."""
        other_labels = np.where(self.other_labels == self.last, -1, self.other_labels)
        again = (self.previous == self.last) | (self.previous == self.other_labels)
        return np.stack([self.last, other_labels, np.where(again, -1, self.previous)])

    def contexts(self, classes: int) -> Classes:
        """Return the entries (3, n) at which the three experts count the answer for each row."""
        pair = (self.last + 1) * (classes + 1) + self.other_labels + 1
        with_other, with_own = (
            (pair * (classes + 1) + third + 1) % TRIPLES
            for third in (self.other_labels_before, self.previous)
        )
        by_history = self.history * 2 + (self.last == self.other_labels)
        return np.stack([with_other, TRIPLES + with_own, 2 * TRIPLES + by_history])

    def after(self, labels: Classes, spec: TensorSpec, known: SharedKnowledge) -> State:
        """Return the tables over the public set after these labels (n,)."""
        changed = (labels != self.last) & (self.last >= 0)
        differed = (labels != self.other_labels) & (self.other_labels >= 0)
        news = {
            "last": labels,
            "previous": np.where(changed, self.last, self.previous),
            "told": self.other_labels,
            "history": (self.history << 1) & 0xEE | differed << 4 | changed,
        }
        return {
            name: remember(known, spec, name, values, torch.uint8 if name == "history" else torch.int16)
            for name, values in news.items()
        }


def recall(known: SharedKnowledge, spec: TensorSpec, name: str) -> Table | None:
    """Return what a table over the public set has for each row (n, …), or None if there is no such table."""
    tables = known.memory.get("samples", {})
    if spec.rows is None or name not in tables:
        return None
    found: Table = tables[name].numpy()[spec.rows].astype(np.int64)
    return found


def remember(
    known: SharedKnowledge, spec: TensorSpec, name: str, values: Classes, dtype: torch.dtype
) -> torch.Tensor:
    """Return a copy of a table over the public set with new values (n, …) for these rows."""
    before = known.memory.get("samples", {}).get(name)
    if before is None:
        empty = -1 if dtype.is_signed else 0
        table = torch.full((spec.population, *values.shape[1:]), empty, dtype=dtype)
    else:
        table = before.clone()
    table.numpy()[spec.rows] = values
    return table

"""What both sides remember of each public sample, and where they look it up."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedistill.communication.tensor_specs import Classes, SharedKnowledge, TensorSpec
from fedistill.state import State

Table = NDArray[np.int64]

TRIPLES = 1361
"""Places of triples of classes, which share them with more than 10 classes; prime, so that they do evenly."""


@dataclass(frozen=True)
class LabelHistory:
    """What both sides know of each row's sample; classes (n,), -1 where there is none.

    Attributes:
        last: what this side last gave it.
        previous: what this side gave it before it last changed its mind.
        other_labels: what the other side last gave it.
        other_labels_before: the same, when ``last`` was given.
        history: of the last four messages, in the upper four bits where ``last`` differed from the other
            side's,
            in the lower four where this side changed its mind; the lowest bit is the newest.
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
        """The classes (3, n) that the questions name in turn; -1 where one would be asked in vain."""
        other_labels = np.where(self.other_labels == self.last, -1, self.other_labels)
        again = (self.previous == self.last) | (self.previous == self.other_labels)
        return np.stack([self.last, other_labels, np.where(again, -1, self.previous)])

    def contexts(self, classes: int) -> Classes:
        """Where the three experts count each row's answer (3, n)."""
        pair = (self.last + 1) * (classes + 1) + self.other_labels + 1
        with_told, with_own = (
            (pair * (classes + 1) + third + 1) % TRIPLES
            for third in (self.other_labels_before, self.previous)
        )
        by_history = self.history * 2 + (self.last == self.other_labels)
        return np.stack([with_told, TRIPLES + with_own, 2 * TRIPLES + by_history])

    def after(self, labels: Classes, spec: TensorSpec, known: SharedKnowledge) -> State:
        """The tables over the public set after these labels (n,)."""
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
    """What a table over the public set says of each row (n, …); None where it is not known."""
    tables = known.memory.get("samples", {})
    if spec.rows is None or name not in tables:
        return None
    found: Table = tables[name].numpy()[spec.rows].astype(np.int64)
    return found


def remember(
    known: SharedKnowledge, spec: TensorSpec, name: str, values: Classes, dtype: torch.dtype
) -> torch.Tensor:
    """Return a table over the public set, anew, with other values (n, …) for these rows."""
    before = known.memory.get("samples", {}).get(name)
    if before is None:
        empty = -1 if dtype.is_signed else 0
        table = torch.full((spec.population, *values.shape[1:]), empty, dtype=dtype)
    else:
        table = before.clone()
    table.numpy()[spec.rows] = values
    return table

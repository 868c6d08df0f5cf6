"""What both sides remember of each public sample, and where they look it up."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedistill.communication.tensor_specs import Classes, Known, Spec
from fedistill.state import State

Table = NDArray[np.int64]

TRIPLES = 1361
"""Places of triples of classes, which share them with more than 10 classes; prime, so that they do evenly."""


@dataclass(frozen=True)
class Past:
    """What both sides know of each row's sample; classes (n,), -1 where there is none.

    Attributes:
        last: what this side last gave it.
        previous: what this side gave it before it last changed its mind.
        told: what the other side last gave it.
        told_before: the same, when ``last`` was given.
        history: of the last four messages, in the upper four bits where ``last`` differed from ``told``,
            in the lower four where this side changed its mind; the lowest bit is the newest.
    """

    last: Classes
    previous: Classes
    told: Classes
    told_before: Classes
    history: Classes

    @classmethod
    def of(cls, spec: Spec, known: Known) -> "Past":
        nothing = np.full(spec.shape[0], -1)
        told = nothing if known.told is None else known.told
        last, previous, before, history = (
            recall(known, spec, name) for name in ("last", "previous", "told", "history")
        )
        if last is None or previous is None or before is None or history is None:
            return cls(nothing, nothing, told, nothing, np.zeros_like(nothing))
        return cls(last, previous, told, before, history)

    def candidates(self) -> Classes:
        """The classes (3, n) that the questions name in turn; -1 where one would be asked in vain."""
        told = np.where(self.told == self.last, -1, self.told)
        again = (self.previous == self.last) | (self.previous == self.told)
        return np.stack([self.last, told, np.where(again, -1, self.previous)])

    def contexts(self, classes: int) -> Classes:
        """Where the three experts count each row's answer (3, n)."""
        pair = (self.last + 1) * (classes + 1) + self.told + 1
        with_told, with_own = (
            (pair * (classes + 1) + third + 1) % TRIPLES for third in (self.told_before, self.previous)
        )
        by_history = self.history * 2 + (self.last == self.told)
        return np.stack([with_told, TRIPLES + with_own, 2 * TRIPLES + by_history])

    def after(self, labels: Classes, spec: Spec, known: Known) -> State:
        """The tables over the public set after these labels (n,)."""
        changed = (labels != self.last) & (self.last >= 0)
        differed = (labels != self.told) & (self.told >= 0)
        news = {
            "last": labels,
            "previous": np.where(changed, self.last, self.previous),
            "told": self.told,
            "history": (self.history << 1) & 0xEE | differed << 4 | changed,
        }
        return {
            name: keep(known, spec, name, values, torch.uint8 if name == "history" else torch.int16)
            for name, values in news.items()
        }


def recall(known: Known, spec: Spec, name: str) -> Table | None:
    """What a table over the public set says of each row (n, …); None where it is not known."""
    tables = known.memory.get("samples", {})
    if spec.rows is None or name not in tables:
        return None
    found: Table = tables[name].numpy()[spec.rows].astype(np.int64)
    return found


def keep(known: Known, spec: Spec, name: str, values: Classes, dtype: torch.dtype) -> torch.Tensor:
    """Return a table over the public set, anew, with other values (n, …) for these rows."""
    before = known.memory.get("samples", {}).get(name)
    if before is None:
        empty = -1 if dtype.is_signed else 0
        table = torch.full((spec.population, *values.shape[1:]), empty, dtype=dtype)
    else:
        table = before.clone()
    table.numpy()[spec.rows] = values
    return table

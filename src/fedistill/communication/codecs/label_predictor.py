"""Class labels, coded by what both sides can predict about them.

A label is coded as the answers to at most three questions: is it this side's last label of the sample? the
other side's last label? this side's label before it last changed? The class itself is coded only if all
answers are no. The probability of a yes is mixed from three experts, each of which counts how often the
answer was yes in a context of its own; their predictions are added as log-odds, with weights that are
learned (logistic mixing, as in Mahoney's PAQ coders). Counts and weights are kept from message to message.
Within a message they are updated after each block, so that a block takes a few vector operations. All
arithmetic is on integers, so that both sides compute the same.

`Predictor.code` is the same code for both sides: writing and reading cannot disagree.
"""

import numpy as np
import torch

from fedistill.communication.codecs.label_history import TRIPLES, LabelHistory
from fedistill.communication.entropy_coding.adaptive_model import Question, Table, blocks
from fedistill.communication.entropy_coding.range_coder import Integers
from fedistill.communication.entropy_coding.symbol_io import SymbolIO
from fedistill.communication.tensor_specs import Classes, SharedKnowledge, TensorSpec
from fedistill.state import State

MOST_COUNTED = 64
"""With more classes, unpredicted ones are counted regardless of the sample's earlier labels."""

_PRIORS = (12, 8, 4)  # of 16: the probability of a yes before any answer, for each question
_EXPERTS = ((TRIPLES, 100), (TRIPLES, 8), (512, 100))  # contexts; the most answers counted in each
_RARE, _SHARE = 256, 1 << 13  # weight of an unpredicted class: before it was seen, and each time it was


class Predictor:
    """The model of the labels of one message; starts from a memory and ends with another."""

    def __init__(self, spec: TensorSpec, known: SharedKnowledge) -> None:
        self._spec, self._known = spec, known
        self._past = LabelHistory.of(spec, known)
        learnt = known.memory.get("learnt", {}) if spec.rows is not None else {}
        self._questions = [
            Question(_EXPERTS, prior, learnt.get(f"question-{place}")) for place, prior in enumerate(_PRIORS)
        ]
        self._unforeseen = Unforeseen(spec.shape[1], learnt.get("unforeseen"))

    def code(self, io: SymbolIO, labels: Classes) -> None:
        """Write labels (n,), or read them into this array."""
        named = self._past.candidates()
        contexts = self._past.contexts(self._spec.shape[1])
        rest = np.arange(len(labels))
        for question, candidates in zip(self._questions, named, strict=True):
            open_ = candidates[rest] >= 0
            at = rest[open_]
            yes = question.code(io, labels[at] == candidates[at], contexts[:, at])
            labels[at[yes]] = candidates[at[yes]]
            open_[open_] = yes
            rest = rest[~open_]
        for block in blocks(len(rest)):
            at = rest[block]
            given = np.stack([self._past.last[at], self._past.other_labels[at]])
            labels[at] = self._unforeseen.code(io, labels[at], given, named[:, at])

    def memory(self, labels: Classes) -> State:
        """Return the memory after these labels (n,); empty if rows have no index in the public set."""
        if self._spec.rows is None:
            return {}
        learnt = {f"question-{place}": question.state() for place, question in enumerate(self._questions)}
        return {
            "samples": self._past.after(labels, self._spec, self._known),
            "learnt": {**learnt, "unforeseen": self._unforeseen.state()},
        }


class Unforeseen:
    """Classes that no question asked about, counted for each last label of either side."""

    def __init__(self, classes: int, state: State | None) -> None:
        self._classes = classes
        self._counts = np.zeros((2, classes + 1 if classes <= MOST_COUNTED else 1, classes), np.int64)
        if state is not None:
            self._counts += state["counts"].numpy()

    def code(self, io: SymbolIO, labels: Classes, given: Classes, denied: Classes) -> Integers:
        """Write labels (n,), or read as many, given the last labels (2, n) and the classes denied (3, n)."""
        if self._classes > MOST_COUNTED:
            found = io.code(labels, self._counts[0, 0] * _SHARE + _RARE)
            self._count(self._counts[0], found, np.zeros_like(given[0]))
            return found
        last, other_labels = given + 1
        tables = (2 * self._counts[0, last] + self._counts[1, other_labels]) * _SHARE + _RARE
        for candidates in denied:
            at = np.flatnonzero(candidates >= 0)
            tables[at, candidates[at]] = 1
        found = io.code(labels, tables)
        self._count(self._counts[0], found, last)
        self._count(self._counts[1], found, other_labels)
        return found

    def _count(self, counts: Table, labels: Integers, rows: Classes) -> None:
        counts += np.bincount(rows * self._classes + labels, minlength=counts.size).reshape(counts.shape)
        counts[counts.sum(axis=1) > 16 * self._classes + 1000] >>= 1

    def state(self) -> State:
        return {"counts": torch.from_numpy(self._counts.astype(np.int32))}

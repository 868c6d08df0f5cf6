"""Models of rows of integers whose sum is 2**b - 1, the class probabilities of a sample."""

from functools import lru_cache

import numpy as np
import torch

from fedistill.communication.codecs.label_history import recall, remember
from fedistill.communication.codecs.label_predictor import MOST_COUNTED
from fedistill.communication.entropy_coding.adaptive_model import Counts, Question, Table
from fedistill.communication.entropy_coding.range_coder import Integers
from fedistill.communication.entropy_coding.symbol_io import SymbolIO
from fedistill.communication.tensor_specs import Classes, SharedKnowledge, TensorSpec
from fedistill.errors import FrameError
from fedistill.state import State

_BUCKETS = 16
_SEEN = 4 * 2 * _BUCKETS * (_BUCKETS + 1)
_PAIRS = MOST_COUNTED**2
_EXPERTS = ((_SEEN, 255), (_PAIRS, 60), (8 * _BUCKETS, 20))


class PlainRows:
    """A model of rows (n, C) without a memory: entry by entry, given what is left of the sum."""

    def __init__(self, spec: TensorSpec, levels: int) -> None:
        self._levels, self._classes = levels, spec.shape[1]
        self._counted = min(self._classes, MOST_COUNTED)
        self._entries = Counts(self._counted * _BUCKETS, levels + 1)

    def code(self, io: SymbolIO, rows: Classes, at: Classes) -> None:
        """Write the rows with these indices (m,), or read them into the array.

        Raises:
            FrameError: the sum of a row is too large.
        """
        left = np.full(len(rows), self._levels)
        for place in range(self._classes - 1):
            at = at[left[at] > 0]
            contexts = place % self._counted * _BUCKETS + buckets()[left[at]]
            rows[at, place] = self._entries.code(io, rows[at, place], contexts)
            _take(left, at, rows[at, place])
        rows[at, -1] = left[at]


class Masses:
    """A model of rows (n, C) whose largest entries are known, given the last rows of the same samples.

    The largest entry is coded first, then the others, the likelier first, until the sum is reached: whether
    an entry is 0, and if not, how large it is.
    """

    def __init__(self, spec: TensorSpec, known: SharedKnowledge, levels: int) -> None:
        self._spec, self._known, self._levels = spec, known, levels
        self._classes = spec.shape[1]
        self._counted = self._classes <= MOST_COUNTED
        learnt = known.memory.get("masses", {}) if spec.rows is not None else {}
        self._largest = Counts(2 * (_BUCKETS + 1), levels, learnt.get("largest"))
        self._some = Question(_EXPERTS, 4, learnt.get("some"))
        self._amounts = Counts(_BUCKETS * (_BUCKETS + 1), levels, learnt.get("amounts"))
        self._beside = np.zeros((self._classes if self._counted else 1, self._classes), np.int64)
        if "beside" in learnt:
            self._beside += learnt["beside"].numpy()
        self._before = recall(known, spec, "rows")
        self._sent = np.zeros(0, np.bool_)
        if self._before is not None:
            self._sent = np.count_nonzero(self._before, axis=1) > 0
        self._other_labels = np.full(spec.shape[0], -1) if known.other_labels is None else known.other_labels

    def code(self, io: SymbolIO, rows: Classes, top: Classes) -> None:
        """Write rows (n, C), or read them into the array, given the classes (n,) of their largest entries.

        Raises:
            FrameError: the sum of a row is too large.
        """
        every = np.arange(len(rows))
        contexts = 2 * self._bucket_before(every, top) + (top == self._other_labels)
        rows[every, top] = self._largest.code(io, rows[every, top] - 1, contexts) + 1
        left = self._levels - rows[every, top]
        open_ = np.flatnonzero(left)
        order = self._order(open_, top[open_])
        rest = np.arange(len(open_))
        for step in range(self._classes - 2):
            rest = rest[left[open_[rest]] > 0]
            at, classes = open_[rest], order[rest, step]
            rows[at, classes] = self._entries(io, rows[at, classes], step, left[at], at, classes, top[at])
            _take(left, at, rows[at, classes])
        rows[open_[rest], order[rest, -1]] = left[open_[rest]]
        self._note(rows, top)

    def _entries(
        self,
        io: SymbolIO,
        entries: Classes,
        step: int,
        left: Classes,
        at: Classes,
        classes: Classes,
        top: Classes,
    ) -> Classes:
        """Code one entry of each of the rows with indices ``at`` (m,)."""
        before, rest = self._bucket_before(at, classes), buckets()[left]
        by_before = ((min(step, 3) * 2 + (classes == self._other_labels[at])) * _BUCKETS + rest) * (
            _BUCKETS + 1
        )
        by_pair = (top * self._classes + classes) % _PAIRS
        by_step = min(step, 7) * _BUCKETS + rest
        contexts = np.empty((3, len(at)), np.int64)
        contexts[0], contexts[1], contexts[2] = by_before + before, _SEEN + by_pair, _SEEN + _PAIRS + by_step
        some = self._some.code(io, entries > 0, contexts)
        found = some.astype(np.int64)
        unsure = some & (left > 1)
        contexts = (rest * (_BUCKETS + 1) + before)[unsure]
        found[unsure] = self._amounts.code(io, entries[unsure] - 1, contexts) + 1
        return found

    def _bucket_before(self, at: Classes, classes: Classes) -> Classes:
        """Return the buckets (m,) of the last entries of these classes, or ``_BUCKETS`` if there is none."""
        if self._before is None:
            return np.full(len(at), _BUCKETS)
        return np.where(self._sent[at], buckets()[self._before[at, classes]], _BUCKETS)

    def _order(self, at: Classes, top: Classes) -> Classes:
        """Return the other classes (m, C - 1) of the rows ``at`` (m,), the likelier first."""
        beside = self._beside * 256 // (self._beside.max(axis=1, keepdims=True) + 1)
        score = beside[top if self._counted else np.zeros_like(top)]
        if self._before is not None:
            score += self._before[at] * 256
        named = np.flatnonzero(self._other_labels[at] >= 0)
        score[named, self._other_labels[at[named]]] += 256
        score[np.arange(len(at)), top] = -1
        return np.argsort(-score, axis=1, kind="stable")[:, :-1]

    def _note(self, rows: Classes, top: Classes) -> None:
        """Count which classes occur together."""
        for kind in range(len(self._beside)):
            self._beside[kind] += rows[top == kind].sum(axis=0) if self._counted else rows.sum(axis=0)
        self._beside[self._beside.max(axis=1) > 1 << 20] >>= 1

    def memory(self, rows: Classes) -> tuple[State, State]:
        """Return what was learned, and tables over the public set."""
        samples = {}
        if self._counted:
            samples["rows"] = remember(self._known, self._spec, "rows", rows, torch.uint8)
        learnt = {
            "largest": self._largest.state(),
            "some": self._some.state(),
            "amounts": self._amounts.state(),
            "beside": torch.from_numpy(self._beside.astype(np.int32)),
        }
        return learnt, samples


class Tops:
    """A model of the most likely classes and their probabilities ("masses"), given each row's first class.

    Masses are in descending order; a class is written if its mass is not 0.
    """

    def __init__(self, spec: TensorSpec, known: SharedKnowledge, k: int, levels: int) -> None:
        self._spec, self._known, self._k, self._levels = spec, known, k, levels
        self._classes = spec.shape[1]
        self._counted = self._classes <= MOST_COUNTED
        learnt = known.memory.get("tops", {}) if spec.rows is not None else {}
        kinds = self._classes if self._counted else 1
        self._masses = Counts(8 * (_BUCKETS + 1), levels + 1, learnt.get("masses"))
        self._second = Counts(2, 2, learnt.get("second"))
        self._others = Counts(kinds, self._classes, learnt.get("others"))
        self._before = recall(known, spec, "mass")
        self._last = recall(known, spec, "last")
        self._runner = recall(known, spec, "second")

    def code(self, io: SymbolIO, classes: Classes, masses: Classes) -> None:
        """Write classes and masses (n, k), or read them into these arrays, given the first classes.

        Raises:
            FrameError: the sum of the masses is too large, or a class occurs twice.
        """
        left = np.full(len(classes), self._levels)
        at = np.arange(len(classes))
        for place in range(self._k):
            contexts = self._contexts(at, place, classes, masses, left)
            masses[at, place] = self._masses.code(io, masses[at, place], contexts)
            _take(left, at, masses[at, place])
            at = at[masses[at, place] > 0]
            if place:
                classes[at, place] = self._code_class(io, place, at, classes)
                if (classes[at, :place] == classes[at, place, None]).any():
                    raise FrameError("a class occurs twice in one row")
            at = at[left[at] > 0]

    def _contexts(self, at: Classes, place: int, classes: Classes, masses: Classes, left: Classes) -> Classes:
        if place:
            above, rest = masses[at, place - 1], left[at]
            kind = 2 * min(place, 3) + (rest < above).astype(np.int64)
            contexts: Classes = kind * (_BUCKETS + 1) + buckets()[np.minimum(above, rest)]
            return contexts
        if self._before is None or self._last is None:
            return np.full(len(at), _BUCKETS)
        unknown = (self._before < 0) | (self._last != classes[:, 0])
        found = buckets()[np.maximum(self._before, 0)]
        found[unknown] = _BUCKETS
        return found

    def _code_class(self, io: SymbolIO, place: int, at: Classes, classes: Classes) -> Classes:
        """Code the class at this place of the rows with indices ``at`` (m,).

        For a second class, a flag comes first: is it the same as last time? or, if the first class has
        changed since, is it the class that was first?
        """
        found: Classes = classes[at, place]
        rest = np.arange(len(at))
        if place == 1 and self._last is not None and self._runner is not None:
            changed = self._last[at] != classes[at, 0]
            likely = np.where(changed, self._last[at], self._runner[at])
            asked = np.flatnonzero(likely >= 0)
            answers = (found == likely)[asked].astype(np.int64)
            yes = self._second.code(io, answers, changed[asked].astype(np.int64)) > 0
            found[asked[yes]] = likely[asked[yes]]
            rest = np.setdiff1d(rest, asked[yes])
        kinds = classes[at[rest], 0] if self._counted else np.zeros(len(rest), np.int64)
        found[rest] = self._others.code(io, found[rest], kinds)
        return found

    def memory(self, classes: Classes, masses: Classes) -> tuple[State, State]:
        """Return what was learned, and tables over the public set."""
        second = np.full(len(classes), -1)
        if self._k > 1:
            second = np.where(masses[:, 1] > 0, classes[:, 1], -1)
        samples = {
            "mass": remember(self._known, self._spec, "mass", masses[:, 0], torch.int16),
            "second": remember(self._known, self._spec, "second", second, torch.int16),
        }
        learnt = {
            "masses": self._masses.state(),
            "second": self._second.state(),
            "others": self._others.state(),
        }
        return learnt, samples


@lru_cache(maxsize=1)
def buckets() -> Table:
    """Return the bucket of each integer 0 … 255: 16 buckets of about equal ratios."""
    lengths = [number.bit_length() for number in range(256)]
    halves = [number if number < 4 else 2 * n - 2 + (number >> n - 2 & 1) for number, n in enumerate(lengths)]
    return np.array(halves)


def _take(left: Classes, at: Classes, amounts: Integers) -> None:
    left[at] -= amounts
    if (left[at] < 0).any():
        raise FrameError("the probabilities of a row add up to more than 1")

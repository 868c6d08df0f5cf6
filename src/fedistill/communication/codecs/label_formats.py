"""What a codec keeps of labels: a class, a row of integers, or the most likely classes."""

from typing import Literal, Protocol

import numpy as np
import torch

from fedistill.communication.codecs.label_history import recall, remember
from fedistill.communication.codecs.label_predictor import Predictor
from fedistill.communication.codecs.label_rounding import Random, largest_first, quantize, quantize_top
from fedistill.communication.codecs.label_rows import Masses, PlainRows, Tops
from fedistill.communication.entropy_coding.adaptive_model import Counts
from fedistill.communication.entropy_coding.symbol_io import SymbolIO
from fedistill.communication.tensor_specs import Classes, Floats, SharedKnowledge, TensorSpec
from fedistill.errors import FrameError
from fedistill.state import State

Coder = Literal["predictive", "delta", "order0", "plain"]
_MANY = 100
"""Classes for each unit of a row's sum. With so many, to name the few that have a share takes fewer bytes,
and a tenth of the time; with fewer, up to 60 % more where the same classes go together in rows."""


class LabelFormat(Protocol):
    """What is kept of labels, as an array of integers."""

    def reduce(self, values: Floats, random: Random) -> Classes:
        """Return what is kept of values (n, C); ``random`` breaks ties."""

    def blank(self, spec: TensorSpec) -> Classes:
        """Return an array of the same shape, to read into."""

    def code(self, io: SymbolIO, found: Classes, spec: TensorSpec, known: SharedKnowledge) -> State:
        """Write the array, or read into it; return the codec's memory."""

    def expand(self, found: Classes, spec: TensorSpec) -> Floats:
        """Return values (n, C) from what was kept of them."""


class PackableFormat(LabelFormat, Protocol):
    """A format that can be written at a fixed width."""

    def width(self, spec: TensorSpec) -> int:
        """Return the bits per integer."""

    def check(self, found: Classes, spec: TensorSpec) -> None:
        """Raise `FrameError` if integers of this width are not what `reduce` can return."""


class HardFormat:
    """Classes (n,); of equally likely ones the first, or one at random."""

    def __init__(self, coder: Coder, random_ties: bool = False) -> None:
        self._coder, self._random_ties = coder, random_ties

    def reduce(self, values: Floats, random: Random) -> Classes:
        found: Classes = np.argmax(quantize(values, 1, random) if self._random_ties else values, axis=1)
        return found

    def blank(self, spec: TensorSpec) -> Classes:
        return np.zeros(spec.shape[0], np.int64)

    def code(self, io: SymbolIO, found: Classes, spec: TensorSpec, known: SharedKnowledge) -> State:
        if self._coder == "predictive":
            model = Predictor(spec, known)
            model.code(io, found)
            return model.memory(found)
        if self._coder == "delta":
            return _code_changes(io, found, spec, known)
        found[:] = Counts(1, spec.shape[1]).code(io, found, np.zeros_like(found))
        return {}

    def expand(self, found: Classes, spec: TensorSpec) -> Floats:
        values = np.zeros(spec.shape, np.float32)
        values[np.arange(len(found)), found] = 1
        return values

    def width(self, spec: TensorSpec) -> int:
        return max(1, (spec.shape[1] - 1).bit_length())

    def check(self, found: Classes, spec: TensorSpec) -> None:
        if (found >= spec.shape[1]).any():
            raise FrameError(f"a label is not one of {spec.shape[1]} classes")


def _code_changes(io: SymbolIO, labels: Classes, spec: TensorSpec, known: SharedKnowledge) -> State:
    """Code as CFD does (eq. 13): 0 if a sample has the same label as last time, else the class from 1."""
    last = recall(known, spec, "last")
    if last is None:
        last = np.full(len(labels), -1)
    symbols = np.where(labels == last, 0, labels + 1)
    symbols = Counts(1, spec.shape[1] + 1).code(io, symbols, np.zeros_like(labels))
    labels[:] = np.where(symbols == 0, last, symbols - 1)
    if (labels < 0).any():
        raise FrameError("a label repeats one that was never sent")
    return (
        {} if spec.rows is None else {"samples": {"last": remember(known, spec, "last", labels, torch.int16)}}
    )


class SimplexFormat:
    """Rows (n, C) of integers whose sum is 2**b - 1."""

    def __init__(self, coder: Coder, bits: int) -> None:
        self._coder, self._bits, self._levels = coder, bits, 2**bits - 1

    def reduce(self, values: Floats, random: Random) -> Classes:
        return quantize(values, self._levels, random)

    def blank(self, spec: TensorSpec) -> Classes:
        return np.zeros(spec.shape, np.int64)

    def code(self, io: SymbolIO, found: Classes, spec: TensorSpec, known: SharedKnowledge) -> State:
        if self._coder == "predictive":
            return self._code_expected(io, found, spec, known)
        if self._coder == "delta":
            return self._code_changes(io, found, spec, known)
        PlainRows(spec, self._levels).code(io, found, np.arange(len(found)))
        return {}

    def _code_expected(self, io: SymbolIO, rows: Classes, spec: TensorSpec, known: SharedKnowledge) -> State:
        if self._levels * _MANY <= spec.shape[1]:
            return self._code_few(io, rows, spec, known)
        top = np.argmax(rows, axis=1)
        predictor, masses = Predictor(spec, known), Masses(spec, known, self._levels)
        predictor.code(io, top)
        masses.code(io, rows, top)
        if spec.rows is None:
            return {}
        memory = predictor.memory(top)
        learnt, samples = masses.memory(rows)
        return {**memory, "samples": {**memory["samples"], **samples}, "masses": learnt}

    def _code_few(self, io: SymbolIO, rows: Classes, spec: TensorSpec, known: SharedKnowledge) -> State:
        """Code which of many classes have a probability, in place of asking about each."""
        places = min(self._levels, spec.shape[1])
        found = largest_first(rows, places)
        memory = TopFormat(places, self._levels).code(io, found, spec, known)
        classes, masses = found[:, :places], found[:, places:]
        if (masses.sum(axis=1) != self._levels).any():
            raise FrameError("the probabilities of a row add up to less than 1")
        row, place = np.nonzero(masses)
        rows[row, classes[row, place]] = masses[row, place]
        return memory

    def _code_changes(self, io: SymbolIO, rows: Classes, spec: TensorSpec, known: SharedKnowledge) -> State:
        """Code a flag for each row that was sent before, and write out rows that are new or changed."""
        before = recall(known, spec, "rows")
        at = np.arange(len(rows))
        if before is not None:
            sent = np.flatnonzero(before.any(axis=1))
            same = (rows[sent] == before[sent]).all(axis=1).astype(np.int64)
            same = Counts(1, 2).code(io, same, np.zeros_like(sent)) > 0
            rows[sent[same]] = before[sent[same]]
            at = np.setdiff1d(at, sent[same])
        PlainRows(spec, self._levels).code(io, rows, at)
        if spec.rows is None:
            return {}
        return {"samples": {"rows": remember(known, spec, "rows", rows, torch.uint8)}}

    def expand(self, found: Classes, spec: TensorSpec) -> Floats:
        return found.astype(np.float32) / np.float32(self._levels)

    def width(self, spec: TensorSpec) -> int:
        return self._bits

    def check(self, found: Classes, spec: TensorSpec) -> None:
        if (found.sum(axis=1) != self._levels).any():
            raise FrameError("the probabilities of a row do not add up to 1")


class TopFormat:
    """Classes (n, k), and their probabilities (n, k) as integers from ``levels`` down to 0."""

    def __init__(self, k: int, levels: int) -> None:
        self._k, self._levels = k, levels

    def reduce(self, values: Floats, random: Random) -> Classes:
        return quantize_top(values, self._k, self._levels, random)

    def blank(self, spec: TensorSpec) -> Classes:
        return np.zeros((spec.shape[0], 2 * self._k), np.int64)

    def code(self, io: SymbolIO, found: Classes, spec: TensorSpec, known: SharedKnowledge) -> State:
        predictor = Predictor(spec, known)
        top = found[:, 0].copy()
        predictor.code(io, top)
        found[:, 0] = top
        tops = Tops(spec, known, self._k, self._levels)
        tops.code(io, found[:, : self._k], found[:, self._k :])
        if spec.rows is None:
            return {}
        memory = predictor.memory(top)
        learnt, samples = tops.memory(found[:, : self._k], found[:, self._k :])
        return {**memory, "samples": {**memory["samples"], **samples}, "tops": learnt}

    def expand(self, found: Classes, spec: TensorSpec) -> Floats:
        classes, masses = found[:, : self._k], found[:, self._k :]
        others = spec.shape[1] - np.count_nonzero(masses, axis=1)
        rest = (self._levels - masses.sum(axis=1)).astype(np.float32)
        each = rest / (np.maximum(others, 1) * self._levels).astype(np.float32)
        values = np.repeat(each[:, None], spec.shape[1], axis=1)
        row, place = np.nonzero(masses)
        values[row, classes[row, place]] = masses[row, place].astype(np.float32) / np.float32(self._levels)
        return values

"""Codecs of soft labels: one class of a sample, b bits of each probability, or the likeliest classes."""

from abc import abstractmethod
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field

from fedistill.config import Section
from fedistill.errors import FrameError
from fedistill.state import State
from fedistill.wire.codec import Classes, Codec, Content, Decoded, Encoded, Floats, Known, Sender, Spec
from fedistill.wire.predict import Channel, Predictor, Reader, Writer, keep, recall
from fedistill.wire.simplex import Counts, Masses, PlainRows, Tops, quantize, quantize_top

Coder = Literal["predictive", "delta", "order0", "plain"]
_CODER: Any = Field(
    default="predictive",
    description="predictive: from all that both sides know; delta: as CFD's, what has changed; order0: by how"
    " frequent it is; plain: fixed width",
)
_CHUNK = 1 << 16  # of 8 numbers each, so that chunks begin at whole bytes


class OneHotSettings(Section):
    coder: Coder = _CODER


class SimplexSettings(Section):
    bits: int = Field(default=2, ge=1, le=8, description="b: entries are multiples of 1 / (2**b - 1)")
    coder: Coder = _CODER


class TopClassesSettings(Section):
    k: int = Field(default=2, ge=1, description="classes of a sample that are sent; at most all")
    bits: int = Field(default=4, ge=1, le=8, description="of their masses: multiples of 1 / (2**bits - 1)")


class Form(Protocol):
    """What is left of the labels: an array of integers."""

    def reduce(self, values: Floats) -> Classes:
        """Return what is left of values (n, C)."""

    def blank(self, spec: Spec) -> Classes:
        """Return an array of the same shape to read into."""

    def code(self, channel: Channel, found: Classes, spec: Spec, known: Known) -> State:
        """Write it, or read it into the array; return what both sides remember."""

    def expand(self, found: Classes, spec: Spec) -> Floats:
        """Return what it says of values (n, C)."""


class Packable(Form, Protocol):
    """A form that can be written at a fixed width."""

    def width(self, spec: Spec) -> int:
        """Bits of each integer."""

    def check(self, found: Classes, spec: Spec) -> None:
        """Raise `FrameError` where integers of this width are nothing that `reduce` returns."""


class _LabelCodec(Codec):
    codes = frozenset({Content.PROBS})
    remembers = True

    @abstractmethod
    def form(self, spec: Spec) -> Form:
        """How labels are written."""

    def encode(self, values: Floats, spec: Spec, known: Known, sender: Sender) -> Encoded:
        form = self.form(spec)
        found = form.reduce(values)
        writer = Writer()
        memory = form.code(writer, found, spec, known)
        return Encoded(writer.finish(), memory)

    def decode(self, payload: bytes, spec: Spec, known: Known) -> Decoded:
        form = self.form(spec)
        found = form.blank(spec)
        reader = Reader(payload)
        memory = form.code(reader, found, spec, known)
        reader.finish()
        return Decoded(form.expand(found, spec), memory)


class _Fixed(_LabelCodec):
    """One more coder, ``plain``: a fixed width, without the range coder and without a memory."""

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.remembers = self.coder in ("predictive", "delta")

    @property
    @abstractmethod
    def coder(self) -> Coder:
        """The settings' choice."""

    def encode(self, values: Floats, spec: Spec, known: Known, sender: Sender) -> Encoded:
        if self.coder != "plain":
            return super().encode(values, spec, known, sender)
        form = self.form(spec)
        return Encoded(pack(form.reduce(values).ravel(), form.width(spec)))

    def decode(self, payload: bytes, spec: Spec, known: Known) -> Decoded:
        if self.coder != "plain":
            return super().decode(payload, spec, known)
        form = self.form(spec)
        blank = form.blank(spec)
        found = unpack(payload, blank.size, form.width(spec)).reshape(blank.shape)
        form.check(found, spec)
        return Decoded(form.expand(found, spec))

    @abstractmethod
    def form(self, spec: Spec) -> Packable:
        """How labels are written."""


class OneHot(_Fixed):
    """The likeliest class of each sample; the lower one where two are."""

    name = "onehot"
    loses = "all but the likeliest class of each sample"
    source = "as CFD with one bit: Sattler et al., 2020, arXiv 2012.00632"
    Settings = OneHotSettings
    settings: OneHotSettings

    @property
    def coder(self) -> Coder:
        return self.settings.coder

    def form(self, spec: Spec) -> Packable:
        return Hard(self.coder)


class Simplex(_Fixed):
    """The nearest row of multiples of 1 / (2**b - 1) that adds up to 1.

    Departure from the paper: ties go to the lower class, not by chance, so that a run can be repeated.
    """

    name = "simplex"
    loses = "all but b bits of each probability"
    source = "Sattler et al., 2020, arXiv 2012.00632, eq. 10-13"
    Settings = SimplexSettings
    settings: SimplexSettings

    @property
    def coder(self) -> Coder:
        return self.settings.coder

    def form(self, spec: Spec) -> Packable:
        if self.settings.bits == 1:
            return Hard(self.coder)
        return Soft(self.coder, self.settings.bits)


class TopClasses(_LabelCodec):
    """The k likeliest classes with their masses; what is left is spread evenly over the others.

    Masses are rounded together with what is left, by largest remainder; classes whose mass becomes 0 count
    among the others.
    """

    name = "top-classes"
    loses = "all but the k likeliest classes of each sample and b bits of their probabilities"
    Settings = TopClassesSettings
    settings: TopClassesSettings

    def form(self, spec: Spec) -> Form:
        return Likeliest(min(self.settings.k, spec.shape[1]), 2**self.settings.bits - 1)


class Hard:
    """Classes (n,)."""

    def __init__(self, coder: Coder) -> None:
        self._coder = coder

    def reduce(self, values: Floats) -> Classes:
        found: Classes = np.argmax(values, axis=1)
        return found

    def blank(self, spec: Spec) -> Classes:
        return np.zeros(spec.shape[0], np.int64)

    def code(self, channel: Channel, found: Classes, spec: Spec, known: Known) -> State:
        if self._coder == "predictive":
            model = Predictor(spec, known)
            model.code(channel, found)
            return model.memory(found)
        if self._coder == "delta":
            return _code_changes(channel, found, spec, known)
        found[:] = Counts(1, spec.shape[1]).code(channel, found, np.zeros_like(found))
        return {}

    def expand(self, found: Classes, spec: Spec) -> Floats:
        values = np.zeros(spec.shape, np.float32)
        values[np.arange(len(found)), found] = 1
        return values

    def width(self, spec: Spec) -> int:
        return max(1, (spec.shape[1] - 1).bit_length())

    def check(self, found: Classes, spec: Spec) -> None:
        if (found >= spec.shape[1]).any():
            raise FrameError(f"a label is not one of {spec.shape[1]} classes")


def _code_changes(channel: Channel, labels: Classes, spec: Spec, known: Known) -> State:
    """CFD's eq. 13: 0 where a label is the last one of its sample, else the class (from 1)."""
    last = recall(known, spec, "last")
    if last is None:
        last = np.full(len(labels), -1)
    symbols = np.where(labels == last, 0, labels + 1)
    symbols = Counts(1, spec.shape[1] + 1).code(channel, symbols, np.zeros_like(labels))
    labels[:] = np.where(symbols == 0, last, symbols - 1)
    if (labels < 0).any():
        raise FrameError("a label repeats one that was never sent")
    return {} if spec.rows is None else {"samples": {"last": keep(known, spec, "last", labels, torch.int16)}}


class Soft:
    """Rows (n, C) of integers that add up to 2**b - 1."""

    def __init__(self, coder: Coder, bits: int) -> None:
        self._coder, self._bits, self._levels = coder, bits, 2**bits - 1

    def reduce(self, values: Floats) -> Classes:
        return quantize(values, self._levels)

    def blank(self, spec: Spec) -> Classes:
        return np.zeros(spec.shape, np.int64)

    def code(self, channel: Channel, found: Classes, spec: Spec, known: Known) -> State:
        if self._coder == "predictive":
            return self._code_expected(channel, found, spec, known)
        if self._coder == "delta":
            return self._code_changes(channel, found, spec, known)
        PlainRows(spec, self._levels).code(channel, found, np.arange(len(found)))
        return {}

    def _code_expected(self, channel: Channel, rows: Classes, spec: Spec, known: Known) -> State:
        top = np.argmax(rows, axis=1)
        predictor, masses = Predictor(spec, known), Masses(spec, known, self._levels)
        predictor.code(channel, top)
        masses.code(channel, rows, top)
        if spec.rows is None:
            return {}
        memory = predictor.memory(top)
        learnt, samples = masses.memory(rows)
        return {**memory, "samples": {**memory["samples"], **samples}, "masses": learnt}

    def _code_changes(self, channel: Channel, rows: Classes, spec: Spec, known: Known) -> State:
        """A flag for each row that was sent before; the others are written out."""
        before = recall(known, spec, "rows")
        at = np.arange(len(rows))
        if before is not None:
            sent = np.flatnonzero(before.any(axis=1))
            same = (rows[sent] == before[sent]).all(axis=1).astype(np.int64)
            same = Counts(1, 2).code(channel, same, np.zeros_like(sent)) > 0
            rows[sent[same]] = before[sent[same]]
            at = np.setdiff1d(at, sent[same])
        PlainRows(spec, self._levels).code(channel, rows, at)
        if spec.rows is None:
            return {}
        return {"samples": {"rows": keep(known, spec, "rows", rows, torch.uint8)}}

    def expand(self, found: Classes, spec: Spec) -> Floats:
        return found.astype(np.float32) / np.float32(self._levels)

    def width(self, spec: Spec) -> int:
        return self._bits

    def check(self, found: Classes, spec: Spec) -> None:
        if (found.sum(axis=1) != self._levels).any():
            raise FrameError("the probabilities of a row do not add up to 1")


class Likeliest:
    """Classes (n, k) beside their masses (n, k): integers from ``levels`` down to 0."""

    def __init__(self, k: int, levels: int) -> None:
        self._k, self._levels = k, levels

    def reduce(self, values: Floats) -> Classes:
        return quantize_top(values, self._k, self._levels)

    def blank(self, spec: Spec) -> Classes:
        return np.zeros((spec.shape[0], 2 * self._k), np.int64)

    def code(self, channel: Channel, found: Classes, spec: Spec, known: Known) -> State:
        predictor = Predictor(spec, known)
        top = found[:, 0].copy()
        predictor.code(channel, top)
        found[:, 0] = top
        tops = Tops(spec, known, self._k, self._levels)
        tops.code(channel, found[:, : self._k], found[:, self._k :])
        if spec.rows is None:
            return {}
        memory = predictor.memory(top)
        learnt, samples = tops.memory(found[:, : self._k], found[:, self._k :])
        return {**memory, "samples": {**memory["samples"], **samples}, "tops": learnt}

    def expand(self, found: Classes, spec: Spec) -> Floats:
        classes, masses = found[:, : self._k], found[:, self._k :]
        others = spec.shape[1] - np.count_nonzero(masses, axis=1)
        rest = (self._levels - masses.sum(axis=1)).astype(np.float32)
        each = rest / (np.maximum(others, 1) * self._levels).astype(np.float32)
        values = np.repeat(each[:, None], spec.shape[1], axis=1)
        row, place = np.nonzero(masses)
        values[row, classes[row, place]] = masses[row, place].astype(np.float32) / np.float32(self._levels)
        return values


def pack(values: Classes, width: int) -> bytes:
    """Write integers (n,) below 2**width, each with so many bits, the lowest first."""
    places = np.arange(width)
    chunks = (
        np.packbits(values[start : start + _CHUNK, None] >> places & 1, bitorder="little").tobytes()
        for start in range(0, len(values), _CHUNK)
    )
    return b"".join(chunks)


def unpack(payload: bytes, count: int, width: int) -> Classes:
    """Read ``count`` integers that `pack` wrote.

    Raises:
        FrameError: there are fewer or more, or bits that mean nothing.
    """
    if len(payload) != -(-count * width // 8):
        raise FrameError(f"{len(payload)} bytes where {count} numbers of {width} bits were expected")
    if payload and payload[-1] >> (count * width - 1) % 8 + 1:
        raise FrameError("the last byte has bits that mean nothing")
    data, step = np.frombuffer(payload, np.uint8), _CHUNK * width // 8
    values = np.empty(count, np.int64)
    for place, start in enumerate(range(0, len(data), step)):
        part = values[place * _CHUNK : (place + 1) * _CHUNK]
        bits = np.unpackbits(data[start : start + step], count=len(part) * width, bitorder="little")
        part[:] = bits.reshape(-1, width) @ (1 << np.arange(width))
    return values

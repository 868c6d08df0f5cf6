"""A codec for soft labels whose small probabilities matter: steps of equal ratio, not of equal size."""

import numpy as np
from pydantic import Field

from fedistill.communication.codecs.base import Codec, Decoded, Encoded, Sender
from fedistill.communication.entropy_coding.adaptive_model import Counts
from fedistill.communication.entropy_coding.symbol_io import SymbolIO, SymbolReader, SymbolWriter
from fedistill.communication.tensor_specs import Classes, Content, Floats, SharedKnowledge, TensorSpec
from fedistill.config.section import Section
from fedistill.errors import FrameError

_RANGE = 16.0
"""Nats below the largest of a row that are told apart; e^-16 is about the precision of float32."""
_MODELLED = 4
"""Bits of an integer that have a model by class; those below are about evenly distributed."""
_MOST_PAIRED = 16
"""Of more classes, pairs with the most likely class are too many to be counted."""
_MOST_PLACES = 64
_BEFORE = 16
"""Contexts for the mean of a row's integers so far, the first of them for none."""


class LogProbsSettings(Section):
    bits: int = Field(
        default=8, ge=2, le=12, description="b: 2**b values from the largest of a row down to e^-16 of it"
    )


class LogProbs(Codec):
    """Log-probabilities as multiples of a step below the largest of the row, from 0 to 16 nats.

    A row is written as integers from 0, its most likely class, to 2**b - 1, and read as the softmax of minus
    their steps, 16 / (2**b - 1) nats. Rounding costs a KL divergence of about a 24th of a squared step, or
    less for peaked rows; a probability never becomes 0, and one below e^-16 of the largest becomes that. The
    integers are range-coded by class, given the most likely class and the mean of those before. A row of
    zeros stays one.
    """

    name = "log-probs"
    lossiness = "all but b bits of the logarithm of each probability"
    codes = frozenset({Content.PROBS})
    Settings = LogProbsSettings
    settings: LogProbsSettings

    def encode(self, values: Floats, spec: TensorSpec, known: SharedKnowledge, sender: Sender) -> Encoded:
        rows = self._quantized(values)
        writer = SymbolWriter()
        _code(writer, rows, self.settings.bits)
        return Encoded(writer.finish())

    def decode(self, payload: bytes, spec: TensorSpec, known: SharedKnowledge) -> Decoded:
        rows = np.zeros(spec.shape, np.int64)
        reader = SymbolReader(payload)
        _code(reader, rows, self.settings.bits)
        reader.finish()
        probs = np.exp(-self._step * np.arange(self._most + 1))[rows]
        probs[rows.min(axis=1, initial=self._most) == self._most] = 0
        sums = probs.sum(axis=1, keepdims=True)
        return Decoded(np.divide(probs, sums, where=sums > 0, out=probs).astype(np.float32))

    @property
    def _most(self) -> int:
        return (1 << self.settings.bits) - 1

    @property
    def _step(self) -> float:
        return _RANGE / self._most

    def _quantized(self, values: Floats) -> Classes:
        """Return integers (n, C), 0 for the largest of each row; all are the largest if there is no mass."""
        positive = values.clip(0).astype(np.float64)
        largest = positive.max(axis=1, keepdims=True, initial=0)
        shares = np.divide(positive, largest, where=largest > 0, out=np.zeros_like(positive))
        nats = -np.log(np.maximum(shares, np.exp(-_RANGE)))
        rows: Classes = np.minimum(np.rint(nats / self._step), self._most).astype(np.int64)
        return rows


def _code(io: SymbolIO, rows: Classes, bits: int) -> None:
    """Write integers (n, C), or read them into the array: the first 0 of each row, then the others by class.

    Raises:
        FrameError: a row has a 0 before the one that was named as its first.
    """
    count, classes = rows.shape
    most, low = 2**bits - 1, max(0, bits - _MODELLED)
    last, nowhere = most >> low, classes
    top = np.full(count, nowhere)
    some, place_of = np.nonzero(rows == 0)
    top[some[::-1]] = place_of[::-1]
    top = Counts(1, classes + 1).code(io, top, np.zeros_like(top))
    rows[top == nowhere] = most
    paired = classes <= _MOST_PAIRED
    kinds, places = (classes, classes) if paired else (1, min(classes, _MOST_PLACES))
    highs, lows = Counts(kinds * places * _BEFORE, last + 1), Counts(2 * places, 2**low)
    total, coded = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for place in range(classes):
        at = np.flatnonzero((top != place) & (top != nowhere))
        mean = total[at] // np.maximum(coded[at], 1)
        before = np.where(coded[at] > 0, mean * (_BEFORE - 1) // (last + 1) + 1, 0)
        kind = top[at] if paired else np.zeros_like(at)
        high = highs.code(io, rows[at, place] >> low, (kind * places + place % places) * _BEFORE + before)
        found = high << low
        if low:
            found += lows.code(io, rows[at, place] & 2**low - 1, 2 * (place % places) + (high == last))
        if (found[top[at] > place] == 0).any():
            raise FrameError("a class is as likely as the most likely one, and comes before it")
        rows[at, place] = found
        rows[top == place, place] = 0
        total[at] += high
        coded[at] += 1

"""Arrays of integers in a message, which no codec may change: classes of samples, or which samples are meant.

They are range-coded without loss, whatever the arm's codec is, under a model that both sides can compute: a
subset costs about the logarithm of the number of such subsets, classes cost about their entropy.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from fedistill.communication.entropy_coding.adaptive_model import Counts
from fedistill.communication.entropy_coding.parametric_model import put, put_places, take, take_places
from fedistill.communication.entropy_coding.range_coder import Decoder, Encoder
from fedistill.communication.entropy_coding.symbol_io import SymbolReader, SymbolWriter
from fedistill.communication.tensor_specs import Classes
from fedistill.communication.varint import read_varint, varint
from fedistill.errors import FrameError, TrainingError


class IntegerArray(ABC):
    """What the receiver expects of an array of integers; subclasses are final."""

    @abstractmethod
    def write(self, values: Classes) -> bytes:
        """Return the payload of values (n,), which must be as expected."""

    @abstractmethod
    def read(self, payload: bytes) -> Classes:
        """Return the values of a payload that `write` made.

        Raises:
            FrameError: the payload is not one that `write` writes.
        """

    @abstractmethod
    def example(self) -> Classes:
        """Return typical values, to predict how many bytes such an array takes."""


@dataclass(frozen=True)
class Subset(IntegerArray):
    """``kept`` different integers below ``count``, in ascending order."""

    kept: int
    count: int

    def write(self, values: Classes) -> bytes:
        encoder = Encoder()
        put_places(encoder, values, self.count)
        return encoder.finish()

    def read(self, payload: bytes) -> Classes:
        if self.kept > self.count:
            raise FrameError(f"a subset cannot have {self.kept} of {self.count} elements")
        decoder = Decoder(payload)
        places = take_places(decoder, self.kept, self.count)
        decoder.finish()
        return places

    def example(self) -> Classes:
        return np.linspace(0, self.count - 1, self.kept).astype(np.int64)


@dataclass(frozen=True)
class Symbols(IntegerArray):
    """``count`` integers from 0 to ``below`` - 1."""

    count: int
    below: int

    def write(self, values: Classes) -> bytes:
        if len(values) and not 0 <= values.min() <= values.max() < self.below:
            raise ValueError(
                f"the message declares an array of integers from 0 to {self.below - 1},"
                f" but is to send integers from {values.min()} to {values.max()}"
            )
        writer = SymbolWriter()
        self._model().code(writer, values, np.zeros_like(values))
        return writer.finish()

    def read(self, payload: bytes) -> Classes:
        reader = SymbolReader(payload)
        blank = np.zeros(self.count, np.int64)
        values = self._model().code(reader, blank, blank)
        reader.finish()
        if self.count and values.max() >= self.below:
            raise FrameError(f"a number is not below {self.below}")
        return values

    def _model(self) -> Counts:
        return Counts(1, max(self.below, 2))  # the range coder needs at least two symbols

    def example(self) -> Classes:
        return np.arange(self.count) % self.below


@dataclass(frozen=True)
class Fitted(IntegerArray):
    """``count`` integers from -``high`` to ``high``, most of them near 0 (`parametric_model`).

    Attributes:
        typical: few are further from 0; for an estimate of the bytes.
    """

    count: int
    high: int
    typical: int | None = None

    def write(self, values: Classes) -> bytes:
        if len(values) != self.count or np.abs(values).max(initial=0) > self.high:
            raise ValueError(
                f"the message declares {self.count} integers from -{self.high} to {self.high}, but is to send"
                f" {len(values)} up to {np.abs(values).max(initial=0)}"
            )
        encoder = Encoder()
        put(encoder, values.astype(np.int32), -self.high, self.high)
        return encoder.finish()

    def read(self, payload: bytes) -> Classes:
        decoder = Decoder(payload)
        values = take(decoder, self.count, -self.high, self.high)
        decoder.finish()
        return values.astype(np.int64)

    def example(self) -> Classes:
        generator = np.random.default_rng(0)
        most = self.high if self.typical is None else self.typical
        return generator.integers(-most, most + 1, self.count)


_FARTHEST = 1 << 61


@dataclass(frozen=True)
class StartIntegers:
    """Integers that both sides hold from the start, flat (I,), and the range of each."""

    values: tuple[int, ...] = ()
    lowest: tuple[int, ...] = ()
    highest: tuple[int, ...] = ()


NO_INTEGERS = StartIntegers()


@dataclass(frozen=True)
class Differences(IntegerArray):
    """Integers (I,) near those that both sides start with; none of them stands for those.

    Written as nothing where all are the same, else one varint each: 2d for a difference d >= 0, or -2d - 1.
    """

    start: StartIntegers

    def write(self, values: Classes) -> bytes:
        start = self.start.values
        if len(values) not in (0, len(start)):
            raise TrainingError(
                f"{len(values)} integers of buffers are sent where the model has {len(start)}"
            )
        differences = [value - before for value, before in zip(values.tolist(), start, strict=False)]
        if not any(differences):
            return b""
        if max(map(abs, differences)) > _FARTHEST:
            raise TrainingError(f"an integer in a buffer has moved by more than {_FARTHEST}")
        return b"".join(varint(2 * by if by >= 0 else -2 * by - 1) for by in differences)

    def read(self, payload: bytes) -> Classes:
        if not payload:
            return np.array(self.start.values, np.int64)
        found, at = [], 0
        for before, low, high in zip(self.start.values, self.start.lowest, self.start.highest, strict=True):
            by, at = read_varint(payload, at)
            value = before + (by // 2 if by % 2 == 0 else -(by + 1) // 2)
            if not low <= value <= high:
                raise FrameError(f"an integer of a buffer is {value}, not from {low} to {high}")
            found.append(value)
        if at != len(payload):
            raise FrameError(f"{len(payload) - at} bytes follow the integers")
        return np.array(found, np.int64)

    def example(self) -> Classes:
        ends = zip(self.start.values, self.start.highest, strict=True)
        return np.array([min(value + 1, high) for value, high in ends], np.int64)

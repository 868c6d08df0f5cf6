"""Eight bits for each number."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedistill.communication.codecs.base import Codec, Decoded, Encoded, Sender
from fedistill.communication.codecs.updates import (
    Scales,
    finite,
    parts,
    sides_of,
)
from fedistill.communication.entropy_coding.matrix_coder import put_matrix, take_matrix
from fedistill.communication.entropy_coding.range_coder import Decoder, Encoder, Integers
from fedistill.communication.tensor_specs import Content, Floats, SharedKnowledge, TensorSpec
from fedistill.config.schema import Section
from fedistill.errors import FrameError

_BYTE = 127
_UNSIGNED = 255
_WIDTH = 4


class Int8Settings(Section):
    coded: bool = Field(default=True, description="range-coded under a fitted model, or as plain bytes")


class Int8(Codec):
    """Numbers as multiples, -127 to 127, of a step for each tensor or row.

    Rows of probabilities are written as integers from 0 to 255, the largest as 255, and read as these divided
    by their sum; so no scale is sent, and they add up to 1 up to rounding. A row of zeros stays one.
    """

    name = "int8"
    lossiness = "all but 8 bits of each number"
    Settings = Int8Settings
    settings: Int8Settings

    def encode(self, values: Floats, spec: TensorSpec, known: SharedKnowledge, sender: Sender) -> Encoded:
        tables = [values[place].reshape(shape) for place, shape in _tables(spec)]
        by_row = None if spec.content is Content.WEIGHTS else 1
        if spec.content is Content.PROBS:
            largest = [table.max(axis=by_row, keepdims=True, initial=0) for table in tables]
            return Encoded(self._write(tables, [_steps(row, _UNSIGNED) for row in largest], 0, _UNSIGNED))
        scales = [np.abs(table).max(axis=by_row, keepdims=True, initial=0) for table in tables]
        head = np.concatenate([scale.ravel() for scale in scales]).astype("<f4").tobytes()
        return Encoded(head + self._write(tables, [_steps(scale, _BYTE) for scale in scales], -_BYTE, _BYTE))

    def decode(self, payload: bytes, spec: TensorSpec, known: SharedKnowledge) -> Decoded:
        shapes = [shape for _, shape in _tables(spec)]
        if spec.content is Content.PROBS:
            tables = [_over_sum(symbols) for symbols in self._read(payload, shapes, 0, _UNSIGNED)]
        else:
            counts = [1 if spec.content is Content.WEIGHTS else rows for rows, _ in shapes]
            scales, body = _unpack_scales(payload, counts)
            symbols = self._read(body, shapes, -_BYTE, _BYTE)
            with np.errstate(over="ignore"):
                tables = [
                    finite(table.astype(np.float32) * _steps(scale, _BYTE))
                    for table, scale in zip(symbols, scales, strict=True)
                ]
        return Decoded(np.concatenate([table.ravel() for table in tables]).reshape(spec.shape))

    def _write(self, tables: list[Floats], steps: list[Scales], low: int, high: int) -> bytes:
        """Return numbers as bytes: the nearest multiples of the steps."""
        symbols = [_nearest(table, step, low, high) for table, step in zip(tables, steps, strict=True)]
        if not self.settings.coded:
            return b"".join(table.astype(np.uint8).tobytes() for table in symbols)
        encoder = Encoder()
        for table in symbols:
            put_matrix(encoder, table, low, high)
        return encoder.finish()

    def _read(self, body: bytes, shapes: list[tuple[int, int]], low: int, high: int) -> Sequence[Integers]:
        if self.settings.coded:
            decoder = Decoder(body)
            tables = [take_matrix(decoder, shape, low, high) for shape in shapes]
            decoder.finish()
            return tables
        ends = np.cumsum([rows * columns for rows, columns in shapes])
        symbols = np.frombuffer(body, np.int8 if low else np.uint8)
        if len(symbols) != ends[-1] or (symbols < low).any():
            raise FrameError(f"{len(body)} bytes where {ends[-1]} numbers from {low} to {high} were expected")
        plain = np.split(symbols, ends[:-1])
        return [part.reshape(shape) for part, shape in zip(plain, shapes, strict=True)]


def _tables(spec: TensorSpec) -> list[tuple[slice, tuple[int, int]]]:
    """Return the matrices that the numbers form, with their places."""
    if spec.content is not Content.WEIGHTS:
        return [(slice(None), (spec.shape[0], spec.shape[1]))]
    return [(place, sides_of(shape)) for place, shape in parts(spec)]


def _steps(scales: Scales, levels: int) -> Scales:
    return scales / np.float32(levels)


def _nearest(table: Floats, steps: Scales, low: int, high: int) -> NDArray[np.int32]:
    multiples = np.divide(table, steps, where=steps > 0, out=np.zeros_like(table))
    symbols: NDArray[np.int32] = np.clip(np.rint(multiples), low, high).astype(np.int32)
    return symbols


def _over_sum(symbols: Integers) -> Floats:
    sums = symbols.sum(axis=1, keepdims=True, dtype=np.int64)
    shares: Floats = symbols.astype(np.float32) / np.maximum(sums, 1).astype(np.float32)
    return shares


def _unpack_scales(payload: bytes, counts: list[int]) -> tuple[list[Scales], bytes]:
    """Return as many scales for each table as ``counts`` says, as columns, and the bytes after them."""
    size = _WIDTH * sum(counts)
    if len(payload) < size:
        raise FrameError(f"the message ends within its {sum(counts)} scales")
    scales = np.frombuffer(payload[:size], "<f4").astype(np.float32)
    if not np.isfinite(scales).all() or np.signbit(scales).any():
        raise FrameError("a scale in the message is negative or not finite")
    return np.split(scales[:, None], np.cumsum(counts)[:-1]), payload[size:]

"""Codecs that write every number in a few bits."""

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fedistill.communication.codecs.base import Codec, Decoded, Encoded, Sender
from fedistill.communication.codecs.bounded_rounding import energy, read_nearest, write_nearest
from fedistill.communication.codecs.stochastic_rounding import (
    MOST_LEVELS,
    Norm,
    read_levels,
    write_levels,
)
from fedistill.communication.codecs.updates import (
    FeedbackCodec,
    Scales,
    UpdateCodec,
    finite,
    mean_size,
    pack_scales,
    parts,
    short,
    sides_of,
    unpack_scales,
)
from fedistill.communication.entropy_coding.matrix_coder import put_matrix, take_matrix
from fedistill.communication.entropy_coding.parametric_model import Flags, changes, put, take, unchanged
from fedistill.communication.entropy_coding.range_coder import Decoder, Encoder, Integers
from fedistill.communication.tensor_specs import Content, Floats, SharedKnowledge, TensorSpec
from fedistill.communication.varint import read_varint, varint
from fedistill.config.schema import Section
from fedistill.errors import FrameError
from fedistill.state import State

_BYTE = 127
_UNSIGNED = 255
_WIDTH = 4
_BOUND = (
    "share of an update's squared norm that rounding may lose on the way to a client that may have been away;"
    " where rounding at random loses more (it can lose many times that norm), numbers are rounded to the"
    " nearest multiple of one step"
)
_BITS = "bits per number to round to the nearest in; more are used where the error would exceed ``bound``"
_NEAREST = 0
_NOTHING = np.zeros(0, np.float32)


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


class QsgdSettings(Section):
    levels: int = Field(default=15, ge=1, le=MOST_LEVELS, description="levels of each sign, besides 0")
    bucket: int | None = Field(
        default=None, ge=1, description="numbers that share a scale; default: those of a tensor"
    )
    norm: Norm = Field(default="max", description="what the scale of a bucket is")
    bound: float = Field(default=0.6, gt=0, allow_inf_nan=False, description=_BOUND)
    bits: float = Field(default=0.6, gt=0, le=16, description=_BITS)


class Qsgd(UpdateCodec):
    """Rounds each number of an update up or down at random, without bias.

    A bucket is written as its norm and integers from -s to s. Departures: the range coder replaces Elias
    codes, and the norm is rounded up to two bytes, which adds no bias.

    To clients that may have been away, random rounding to ``levels`` is replaced where it would lose more
    than ``bound`` of the update's squared norm: by rounding to the nearest multiple of one step, in ``bits``
    bits per number, or as many as that bound takes, with the mean errors of rows sent along
    (`bounded_rounding`). Otherwise the loss, which can be many times that norm, would be part of the next
    difference, and grow. Contractions of the difference are analysed as EF21-P (Gruntkowska et al., arXiv
    2209.15218).
    """

    name = "qsgd"
    lossiness = "all but a few levels of each entry of an update, rounded at random without bias"
    source = "Alistarh et al., 2017, arXiv 1610.02132; on updates: FedPAQ, arXiv 1909.13014"
    Settings = QsgdSettings
    settings: QsgdSettings

    def write(self, update: Floats, spec: TensorSpec, sender: Sender) -> tuple[bytes, State]:
        settings = self.settings
        body = write_levels(update, spec, settings.levels, settings.bucket, settings.norm, sender.random)
        return body, sender.own or {}

    def write_behind(self, update: Floats, spec: TensorSpec, sender: Sender) -> bytes:
        return _write_bounded(update, spec, self.settings, self.settings.levels, sender.random)

    def read(self, body: bytes, spec: TensorSpec) -> Floats:
        return read_levels(body, spec, self.settings.levels, self.settings.bucket)

    def read_behind(self, body: bytes, spec: TensorSpec) -> Floats:
        return _read_bounded(body, spec, self.settings.bucket)


class DAdaQuantSettings(Section):
    first: int = Field(default=1, ge=1, le=MOST_LEVELS, description="levels of each sign at first")
    last: int = Field(default=16, ge=1, le=MOST_LEVELS, description="maximum levels of each sign")
    patience: int = Field(
        default=5, ge=2, description="messages over which the running mean must fall, or levels double"
    )
    decay: float = Field(default=0.9, ge=0, lt=1, description="weight of the past in the running mean")
    bucket: int | None = Field(
        default=None, ge=1, description="numbers that share a scale; default: those of a tensor"
    )
    norm: Norm = Field(default="max", description="what the scale of a bucket is")
    client_adaptive: bool = Field(
        default=True, description="more levels for clients with more samples, fewer for the others"
    )
    bound: float = Field(default=0.6, gt=0, allow_inf_nan=False, description=_BOUND)
    bits: float = Field(default=0.6, gt=0, le=16, description=_BITS)

    @model_validator(mode="after")
    def _first_is_not_above_last(self) -> Self:
        if self.first > self.last:
            raise ValueError(f"`first` = {self.first} is above `last` = {self.last}")
        return self


class DAdaQuant(UpdateCodec):
    """QSGD with more levels for clients with more samples, doubled when a running mean stops falling.

    A client with the share w of all samples has ``w^(2/3) sqrt(sum w^(2/3) / sum w^2)`` times the levels: of
    all ways to distribute levels, the one that needs fewest for the same variance of the mean (theorem 1).
    Departures: the sums are over all clients and not over those of the round, which a client does not know;
    the running mean is of the norms of this client's updates and not of all clients' losses, which a codec
    does not see, so that clients double their levels at different times; the scale is the largest number of a
    tensor by default, not the norm of all weights. The paper's ``patience`` is a tenth of the rounds. The
    number of levels is sent first. If nothing is kept (on a downlink, which the paper does not compress), it
    is always ``last``.
    """

    name = "dadaquant"
    lossiness = "all but a few levels of each entry of an update, without bias; more levels are kept later"
    source = "Hönig et al., 2022, arXiv 2111.00465"
    keeps = True
    Settings = DAdaQuantSettings
    settings: DAdaQuantSettings

    def write(self, update: Floats, spec: TensorSpec, sender: Sender) -> tuple[bytes, State]:
        settings = self.settings
        own = {} if sender.own is None else self._next(sender.own, update)
        levels = self._levels(own.get("doubled", self._most))
        if settings.client_adaptive:
            levels = min(max(1, round(levels * _share(sender.weight, sender.weights))), MOST_LEVELS)
        body = write_levels(update, spec, levels, settings.bucket, settings.norm, sender.random)
        return varint(levels) + body, own

    def write_behind(self, update: Floats, spec: TensorSpec, sender: Sender) -> bytes:
        return _write_bounded(update, spec, self.settings, self.settings.last, sender.random)

    def read(self, body: bytes, spec: TensorSpec) -> Floats:
        return _read_stated(body, spec, self.settings.bucket)

    def read_behind(self, body: bytes, spec: TensorSpec) -> Floats:
        return _read_bounded(body, spec, self.settings.bucket)

    @property
    def _most(self) -> int:
        """How often ``first`` can be doubled until it reaches ``last``."""
        return ((self.settings.last - 1) // self.settings.first).bit_length()

    def _levels(self, doubled: int) -> int:
        return min(self.settings.first << doubled, self.settings.last)

    def _next(self, own: State, update: Floats) -> State:
        """Return the means since the last doubling, and the number of doublings, after an update."""
        doubled: int = own.get("doubled", 0)
        means: list[float] = own.get("means", [])
        norm = float(np.sqrt(np.square(update, dtype=np.float64).sum()))
        decay = self.settings.decay
        means = [*means, decay * means[-1] + (1 - decay) * norm if means else norm][-self.settings.patience :]
        if len(means) == self.settings.patience and means[-1] >= means[0] and doubled < self._most:
            doubled, means = doubled + 1, means[-1:]
        return {"doubled": doubled, "means": means}


def _write_bounded(
    update: Floats,
    spec: TensorSpec,
    settings: "QsgdSettings | DAdaQuantSettings",
    levels: int,
    random: np.random.Generator,
) -> bytes:
    """Return an update (P,) after its number of levels; 0 stands for rounding to the nearest."""
    body = write_levels(update, spec, levels, settings.bucket, settings.norm, random)
    lost = energy(read_levels(body, spec, levels, settings.bucket) - update)
    if lost <= settings.bound * energy(update):
        return varint(levels) + body
    return varint(_NEAREST) + write_nearest(update, spec, settings.bound, settings.bits)


def _read_bounded(body: bytes, spec: TensorSpec, bucket: int | None) -> Floats:
    """Return the update (P,) that `_write_bounded` wrote."""
    levels, start = read_varint(body, 0)
    return read_nearest(body[start:], spec) if levels == _NEAREST else _read_stated(body, spec, bucket)


def _read_stated(body: bytes, spec: TensorSpec, bucket: int | None) -> Floats:
    """Return an update (P,) that was written after its number of levels."""
    levels, start = read_varint(body, 0)
    if not 1 <= levels <= MOST_LEVELS:
        raise FrameError(f"the message gives {levels} levels, not 1 to {MOST_LEVELS}")
    return read_levels(body[start:], spec, levels, bucket)


def _share(weight: float, weights: Sequence[float]) -> float:
    """Return the factor on the levels of a client with this weight (Hönig et al., 2022, theorem 1)."""
    others = np.asarray(weights, dtype=np.float64)
    return float(weight ** (2 / 3) * np.sqrt((others ** (2 / 3)).sum() / np.square(others).sum()))


class Sign(FeedbackCodec):
    """The sign of each number, and the mean size of each tensor.

    Signs are written as changes from one to the next, eight per symbol, since neighbours tend to agree.
    """

    name = "sign"
    lossiness = "all but the signs of an update; error feedback sends the rest later"
    source = "Karimireddy et al., 2019, arXiv 1901.09847 (EF-signSGD)"

    def compress(self, update: Floats, spec: TensorSpec) -> tuple[bytes, Floats]:
        negative = update < 0
        encoder = Encoder()
        put(encoder, np.packbits(changes(negative)).astype(np.int32), 0, _UNSIGNED)
        scales = short(np.concatenate([_NOTHING, *(mean_size(update[place]) for place, _ in parts(spec))]))
        return pack_scales(scales) + encoder.finish(), _signed(negative, scales, spec)

    def read(self, body: bytes, spec: TensorSpec) -> Floats:
        scales, coded = unpack_scales(body, len(list(parts(spec))))
        decoder = Decoder(coded)
        packed = take(decoder, -(-spec.count // 8), 0, _UNSIGNED).astype(np.uint8)
        decoder.finish()
        negative = unchanged(np.unpackbits(packed, count=spec.count).astype(bool))
        return _signed(negative, scales, spec)


def _signed(negative: Flags, scales: Scales, spec: TensorSpec) -> Floats:
    """Return plus or minus the scale of its tensor for each number."""
    signs = np.where(negative, np.float32(-1), np.float32(1))
    for (place, _), scale in zip(parts(spec), scales, strict=True):
        signs[place] *= scale
    return signs

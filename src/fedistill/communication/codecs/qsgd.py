"""Updates rounded at random, without bias: QSGD, and DAdaQuant, which chooses how finely."""

from collections.abc import Sequence
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from fedistill.communication.codecs.base import Sender
from fedistill.communication.codecs.bounded_rounding import energy, read_nearest, write_nearest
from fedistill.communication.codecs.stochastic_rounding import (
    MOST_LEVELS,
    Norm,
    read_levels,
    write_levels,
)
from fedistill.communication.codecs.updates import (
    UpdateCodec,
)
from fedistill.communication.tensor_specs import Floats, TensorSpec
from fedistill.communication.varint import read_varint, varint
from fedistill.config.schema import Section
from fedistill.errors import FrameError
from fedistill.state import State

_BOUND = (
    "share of an update's squared norm that rounding may lose on the way to a client that may have been away;"
    " where rounding at random loses more (it can lose many times that norm), numbers are rounded to the"
    " nearest multiple of one step"
)
_BITS = "bits per number to round to the nearest in; more are used where the error would exceed ``bound``"
_NEAREST = 0


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
    settings: QsgdSettings | DAdaQuantSettings,
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

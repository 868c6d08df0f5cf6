"""Codecs that send the largest numbers of an update and keep the rest for the next one."""

from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedistill.communication.codecs.updates import (
    FeedbackCodec,
    mean_size,
    pack_scales,
    parts,
    short,
    unpack_scales,
)
from fedistill.communication.entropy_coding.parametric_model import (
    Places,
    put,
    put_places,
    put_signs,
    take,
    take_places,
    take_signs,
)
from fedistill.communication.entropy_coding.range_coder import Decoder, Encoder
from fedistill.communication.tensor_specs import Floats, TensorSpec
from fedistill.config.schema import Section
from fedistill.errors import FrameError

_NOTHING = np.zeros(0, np.float32)


class TopKSettings(Section):
    share: float = Field(default=0.01, gt=0, le=1, description="share of all weights that are sent")
    values: Literal["fp16", "int8"] = Field(default="fp16", description="how magnitudes are coded")


class TopK(FeedbackCodec):
    """The largest numbers of an update, wherever they are.

    Written as a scale, the gaps between their places, their signs, and their sizes as fractions of the scale.
    """

    name = "top-k"
    lossiness = "all but the largest entries of an update; error feedback sends the rest later"
    source = "Aji and Heafield, 2017, arXiv 1704.05021; residual: Stich et al., 2018, arXiv 1809.07599"
    Settings = TopKSettings
    settings: TopKSettings

    def compress(self, update: Floats, spec: TensorSpec) -> tuple[bytes, Floats]:
        kept = largest(update, kept_of(len(update), self.settings.share))
        sizes = np.abs(update[kept])
        scale = short(np.max(sizes, initial=0, keepdims=True), up=True)
        if not scale:
            return pack_scales(scale), np.zeros_like(update)
        encoder = Encoder()
        put_places(encoder, kept, len(update))
        put_signs(encoder, update[kept] < 0)
        ranks = self._grid.ranks(np.minimum(sizes / scale, np.float32(1)))
        self._grid.put(encoder, ranks)
        sent = np.zeros_like(update)
        sent[kept] = np.copysign(self._grid.shares(ranks) * scale, update[kept])
        return pack_scales(scale) + encoder.finish(), sent

    def read(self, body: bytes, spec: TensorSpec) -> Floats:
        update = np.zeros(spec.count, np.float32)
        scale, coded = unpack_scales(body, 1)
        decoder = Decoder(coded)
        if scale:
            kept = take_places(decoder, kept_of(spec.count, self.settings.share), spec.count)
            negative = take_signs(decoder, len(kept))
            sizes = self._grid.shares(self._grid.take(decoder, len(kept))) * scale
            update[kept] = np.where(negative, -sizes, sizes)
        decoder.finish()
        return update

    @property
    def _grid(self) -> "_Grid":
        return _HALVES if self.settings.values == "fp16" else _BYTES


class StcSettings(Section):
    share: float = Field(default=0.01, gt=0, le=1, description="share of the weights that are sent")
    scope: Literal["part", "all"] = Field(
        default="part", description="select the largest of each tensor, or of all weights together"
    )


class Stc(FeedbackCodec):
    """Sparse ternary compression: the largest numbers, each as plus or minus their mean size.

    A tensor is written as that mean, the gaps between the places, and the signs. Departures: gaps are
    range-coded instead of Golomb-coded, and the mean is rounded to two bytes; the residual makes up for it.
    """

    name = "stc"
    lossiness = "all but the signs of an update's largest entries; error feedback sends the rest later"
    source = "Sattler et al., 2019, arXiv 1903.02891; a tensor at a time as in its authors' code"
    Settings = StcSettings
    settings: StcSettings

    def compress(self, update: Floats, spec: TensorSpec) -> tuple[bytes, Floats]:
        sent = np.zeros_like(update)
        encoder = Encoder()
        scales, signs = [_NOTHING], [np.zeros(0, bool)]
        for place in self._places(spec):
            values = update[place]
            kept = largest(values, kept_of(len(values), self.settings.share))
            scale = short(mean_size(values[kept]))
            if scale:
                put_places(encoder, kept, len(values))
                signs.append(values[kept] < 0)
                sent[place][kept] = np.where(signs[-1], -scale, scale)
            scales.append(scale)
        put_signs(encoder, np.concatenate(signs))
        return pack_scales(np.concatenate(scales)) + encoder.finish(), sent

    def read(self, body: bytes, spec: TensorSpec) -> Floats:
        places = self._places(spec)
        scales, coded = unpack_scales(body, len(places))
        decoder = Decoder(coded)
        found, sizes = [np.zeros(0, np.int64)], [_NOTHING]
        for place, scale in zip(places, scales, strict=True):
            if scale:
                size = place.stop - place.start
                kept = take_places(decoder, kept_of(size, self.settings.share), size)
                found.append(place.start + kept)
                sizes.append(np.full(len(kept), scale))
        negative = take_signs(decoder, sum(map(len, found)))
        decoder.finish()
        update = np.zeros(spec.count, np.float32)
        magnitudes = np.concatenate(sizes)
        update[np.concatenate(found)] = np.where(negative, -magnitudes, magnitudes)
        return update

    def _places(self, spec: TensorSpec) -> list[slice]:
        return [slice(0, spec.count)] if self.settings.scope == "all" else [place for place, _ in parts(spec)]


def largest(values: Floats, kept: int) -> Places:
    """Return the places of the ``kept`` numbers of largest size, ascending; of equal ones, the first."""
    sizes = np.abs(values)
    if kept == len(values):
        return np.arange(kept)
    least = np.partition(sizes, len(sizes) - kept)[len(sizes) - kept]
    chosen = sizes > least
    equal = np.flatnonzero(sizes == least)
    chosen[equal[: kept - np.count_nonzero(chosen)]] = True
    return np.flatnonzero(chosen)


def kept_of(count: int, share: float) -> int:
    """Return how many of ``count`` numbers are sent: at least one."""
    return min(count, ceil(count * share))


@dataclass(frozen=True)
class _Grid:
    """The values from 0 to 1 that a size can have, numbered from 0 to ``top``: their ranks.

    Ranks (k,) are written as the lowest of them and the differences to it; the ``fine`` lowest bits of these
    are written without a model.
    """

    halves: bool
    top: int
    fine: int

    def ranks(self, shares: Floats) -> NDArray[np.int32]:
        if self.halves:  # the bits of floats >= 0, as integers, are in the same order as the floats
            return shares.astype(np.float16).view(np.uint16).astype(np.int32)
        ranks: NDArray[np.int32] = np.rint(shares * np.float32(self.top)).astype(np.int32)
        return ranks

    def shares(self, ranks: NDArray[np.int32]) -> Floats:
        if self.halves:
            return ranks.astype(np.uint16).view(np.float16).astype(np.float32)
        return ranks.astype(np.float32) / np.float32(self.top)

    def put(self, encoder: Encoder, ranks: NDArray[np.int32]) -> None:
        least = np.array([ranks.min()])
        encoder.put(least, np.ones(self.top + 1, np.int64))
        put(encoder, (ranks - least) >> self.fine, 0, self.top >> self.fine)
        if self.fine:
            encoder.put((ranks - least) & ((1 << self.fine) - 1), np.ones(1 << self.fine, np.int64))

    def take(self, decoder: Decoder, count: int) -> NDArray[np.int32]:
        """Read ``count`` ranks.

        Raises:
            FrameError: no `put` writes such bytes.
        """
        ranks = decoder.take(np.ones(self.top + 1, np.int64), 1)
        ranks = ranks + (take(decoder, count, 0, self.top >> self.fine) << self.fine)
        if self.fine:
            ranks = ranks + decoder.take(np.ones(1 << self.fine, np.int64), count)
        if (ranks > self.top).any():
            raise FrameError("a size in the message is above its scale")
        return ranks


_HALVES = _Grid(halves=True, top=0x3C00, fine=6)  # the bits of 1.0 as fp16
_BYTES = _Grid(halves=False, top=127, fine=0)

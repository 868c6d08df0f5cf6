"""Updates as products of thin matrices."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from fedistill.communication.codecs.updates import (
    LARGEST,
    FeedbackCodec,
    Scales,
    pack_scales,
    parts,
    short,
    sides_of,
    unpack_scales,
)
from fedistill.communication.entropy_coding.parametric_model import bits, histogram, put, take
from fedistill.communication.entropy_coding.range_coder import Decoder, Encoder
from fedistill.communication.tensor_specs import Floats, TensorSpec
from fedistill.config.schema import Section

_BYTES = np.ones(256, np.int64)


class LowRankSettings(Section):
    energy: float = Field(default=0.95, gt=0, le=1, description="share of a matrix's squared norm to keep")
    levels: int = Field(default=127, ge=1, le=1023, description="levels of each sign in a factor")


class LowRank(FeedbackCodec):
    """Each matrix of an update as the product of two thin ones, by a truncated singular value decomposition.

    A convolution kernel is a matrix with a row per output. The rank is the smallest that keeps ``energy``;
    vectors, and matrices that would be shorter than their factors, are sent as they are. Each factor takes
    the square root of the singular values and consists of integers times one step, so that their product is a
    sum of integers, which is equal on every machine, and weak directions cost few bits.

    A tensor is written as its rank if it is a matrix, then a step for each factor, then the integers.
    """

    name = "low-rank"
    lossiness = "all but the strongest directions of each matrix; error feedback sends the rest later"
    source = "low-rank updates: Konečný et al., 2016, arXiv 1610.05492; by SVD: ATOMO, arXiv 1806.04090"
    Settings = LowRankSettings
    settings: LowRankSettings

    def compress(self, update: Floats, spec: TensorSpec) -> tuple[bytes, Floats]:
        encoder = Encoder()
        sent = np.empty_like(update)
        for place, shape in parts(spec):
            sides = sides_of(shape)
            factors = self._factors(update[place].reshape(sides))
            if _widest(sides):
                rank = len(factors[0].symbols) if len(factors) > 1 else 0
                encoder.put(np.array([rank]), _ranks(sides))
            for factor in factors:
                factor.put(encoder)
            sent[place] = _product(factors).ravel()
        return encoder.finish(), sent

    def read(self, body: bytes, spec: TensorSpec) -> Floats:
        decoder = Decoder(body)
        update = np.empty(spec.count, np.float32)
        for place, shape in parts(spec):
            rows, columns = sides = sides_of(shape)
            rank = int(decoder.take(_ranks(sides), 1)[0]) if _widest(sides) else 0
            shapes = [(rank, rows), (rank, columns)] if rank else [(1, rows * columns)]
            factors = [_Factor.take(decoder, wanted, self.settings.levels) for wanted in shapes]
            update[place] = _product(factors).ravel()
        decoder.finish()
        return update

    def _factors(self, matrix: Floats) -> list["_Factor"]:
        """Return the matrix as two factors if these take fewer bits, else as one."""
        levels = self.settings.levels
        whole = [_Factor.of(matrix.reshape(1, -1), levels)]
        largest = np.abs(matrix).max(initial=0)
        widest = _widest((matrix.shape[0], matrix.shape[1]))
        if not widest or not largest:
            return whole
        # torch runs on one thread here, so that the result does not depend on the number of cores. NumPy's
        # SVD starts a thread per core, and takes a hundred times as long if the cores are busy.
        found = torch.linalg.svd(torch.from_numpy(matrix / largest), full_matrices=False)
        left, sizes, right = (part.numpy() for part in found)
        kept = np.cumsum(np.square(sizes, dtype=np.float64))
        rank = int(np.searchsorted(kept, self.settings.energy * kept[-1])) + 1
        if rank > widest:
            return whole
        halves = np.sqrt(sizes[:rank, None]) * np.sqrt(largest)
        thin = [_Factor.of(halves * side[:rank], levels) for side in (left.T, right)]
        return thin if _bits(thin) < _bits(whole) else whole


@dataclass(frozen=True)
class _Factor:
    """A matrix of integers from -levels to levels, each row with a model of its own, and a scale (1,)."""

    symbols: NDArray[np.int32]
    scale: Scales
    levels: int

    @classmethod
    def of(cls, matrix: Floats, levels: int) -> "_Factor":
        scale = short(np.array([np.abs(matrix).max(initial=0)], np.float32), up=True)
        step = scale / np.float32(levels)
        multiples = np.divide(matrix, step, where=step > 0, out=np.zeros_like(matrix))
        return cls(np.clip(np.rint(multiples), -levels, levels).astype(np.int32), scale, levels)

    def values(self) -> NDArray[np.float64]:
        return self.symbols.astype(np.float64)

    @property
    def step(self) -> np.float64:
        return np.float64(self.scale[0] / np.float32(self.levels))

    def put(self, encoder: Encoder) -> None:
        encoder.put(np.frombuffer(pack_scales(self.scale), np.uint8), _BYTES)
        if self.scale:
            for row in self.symbols:
                put(encoder, row, -self.levels, self.levels)

    @classmethod
    def take(cls, decoder: Decoder, shape: tuple[int, int], levels: int) -> "_Factor":
        scale, _ = unpack_scales(decoder.take(_BYTES, 2).astype(np.uint8).tobytes(), 1)
        symbols = np.zeros(shape, np.int32)
        if scale:
            for row in symbols:
                row[:] = take(decoder, len(row), -levels, levels)
        return cls(symbols, scale, levels)

    def bits(self) -> float:
        if not self.scale:
            return 0
        limits = -self.levels, self.levels
        return sum(bits(histogram(row, *limits), *limits) for row in self.symbols)


def _bits(factors: list[_Factor]) -> float:
    return sum(factor.bits() for factor in factors)


def _product(factors: list[_Factor]) -> Floats:
    """Return the matrix: sums of products of integers, exact in any order as below 2**53, times the steps."""
    first, *second = factors
    product, step = first.values(), first.step
    if second:
        product, step = product.T @ second[0].values(), step * second[0].step
    return np.clip(product * step, -LARGEST, LARGEST).astype(np.float32)


def _widest(sides: tuple[int, int]) -> int:
    """Return the largest rank whose factors have fewer numbers than the matrix, or 0 if there is none."""
    rows, columns = sides
    return max(rows * columns - 1, 0) // (rows + columns)


def _ranks(sides: tuple[int, int]) -> NDArray[np.int64]:
    """Return the model of a rank, up to the widest; 0 means that the matrix is sent as it is."""
    return np.ones(_widest(sides) + 1, np.int64)

"""Rounding of updates to the nearest multiples of one step, as fine as the bits allow, or a bound demands.

Two corrections make up for what few levels lose. Few of the numbers are large, so that those which are
rounded to q steps are smaller than that on average: the mean difference is sent for each tensor. And the
small numbers of a row, which all become 0, often have one sign: their sum then moves the output of a unit
whose inputs are mostly of one sign, such as pixels or the outputs of ReLU. So the mean error of each row is
sent, and added to the row, as in the bias correction of quantised networks (Nagel et al., 2019, arXiv
1906.04721, section 4.2), with the mean input taken as constant.
"""

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedistill.communication.codecs.stochastic_rounding import MOST_LEVELS
from fedistill.communication.codecs.updates import finite, pack_scales, parts, short, sides_of, unpack_scales
from fedistill.communication.entropy_coding.matrix_coder import put_matrix, take_matrix
from fedistill.communication.entropy_coding.parametric_model import put, take
from fedistill.communication.entropy_coding.range_coder import Decoder, Encoder
from fedistill.communication.tensor_specs import Floats, TensorSpec

_PER_OCTAVE = 8
_OCTAVES = 10  # from the largest number to about a 1,023th of it
_SHIFTS = 64  # units of a step in which the shift of a tensor is sent
_MEANS = 16  # the same for the means of rows
_SHORTEST = 32  # numbers; in a shorter row the mean costs more than it saves
_EACH_HIGHEST = np.ones(MOST_LEVELS + 1, np.int64)
_EACH_SHIFT = np.ones(2 * _SHIFTS + 1, np.int64)

Symbols = NDArray[np.int32]


def write_nearest(update: Floats, spec: TensorSpec, bound: float, bits: float) -> bytes:
    """Code an update (P,) in ``bits`` bits per number, or more if the error would exceed the bound.

    Written as the step, and for each tensor its highest level, its shift, its levels and the means of its
    rows. The step is the smallest that takes no more bits, or the largest whose squared error is at most
    ``bound`` times the squared norm of the update, whichever is smaller; at least about the largest number
    over `MOST_LEVELS`. Neither rounding to the nearest multiple nor a correction makes the error larger than
    the update. Of an update below 1e-30, for which float32 has no steps as fine, all may be lost.
    """
    largest = np.abs(update).max(initial=0, keepdims=True)
    limit, size = bound * energy(update), bits * len(update) / 8

    def is_near(tried: int) -> bool:
        step = _step(largest, tried)
        return (
            energy(_decoded([part.values(step) for part in _rounded(update, spec, step)]) - update) <= limit
        )

    def is_long(tried: int) -> bool:
        return len(_coded(update, spec, _step(largest, tried))) > size

    finest = _PER_OCTAVE * _OCTAVES
    near = bisect_left(range(finest), True, key=is_near)
    long = bisect_left(range(finest + 1), True, lo=near, key=is_long)
    return _coded(update, spec, _step(largest, max(near, long - 1)))


def read_nearest(body: bytes, spec: TensorSpec) -> Floats:
    """Return the update (P,) that `write_nearest` coded.

    Raises:
        FrameError: no `write_nearest` writes such a payload.
    """
    step, coded = unpack_scales(body, 1)
    decoder = Decoder(coded)
    update = np.zeros(spec.count, np.float32)
    if step[0]:
        update = _decoded([_Part.take(decoder, sides_of(shape)).values(step) for _, shape in parts(spec)])
    decoder.finish()
    return update


@dataclass(frozen=True)
class _Part:
    """A tensor in steps: levels (rows, columns), a shift away from 0, and the mean error of each row.

    Rows that are too short have no means (0,).
    """

    levels: Symbols
    shift: int
    means: Symbols

    @classmethod
    def of(cls, matrix: Floats, step: Floats) -> "_Part":
        multiples = np.divide(matrix, step, where=step > 0, out=np.zeros_like(matrix))
        levels = np.clip(np.rint(multiples), -MOST_LEVELS, MOST_LEVELS).astype(np.int32)
        away = levels != 0
        excess = np.abs(multiples[away]) - np.abs(levels[away])
        shift = _units(excess.mean(dtype=np.float64), _SHIFTS) if len(excess) else np.int32(0)
        part = cls(levels, int(shift), np.zeros(0, np.int32))
        if not _has_means(matrix.shape):
            return part
        errors = multiples - part._in_steps()
        return cls(levels, int(shift), _units(errors.mean(axis=1, dtype=np.float64), _MEANS))

    def values(self, step: Floats) -> Floats:
        with np.errstate(over="ignore"):
            return finite(self._in_steps() * step)

    def put(self, encoder: Encoder) -> None:
        highest = int(np.abs(self.levels).max(initial=0))
        encoder.put(np.array([highest]), _EACH_HIGHEST)
        if highest:
            encoder.put(np.array([self.shift + _SHIFTS]), _EACH_SHIFT)
            put_matrix(encoder, self.levels, -highest, highest)
        put(encoder, self.means, -_MEANS, _MEANS)

    @classmethod
    def take(cls, decoder: Decoder, sides: tuple[int, int]) -> "_Part":
        highest = int(decoder.take(_EACH_HIGHEST, 1)[0])
        levels, shift = np.zeros(sides, np.int32), 0
        if highest:
            shift = int(decoder.take(_EACH_SHIFT, 1)[0]) - _SHIFTS
            levels = take_matrix(decoder, sides, -highest, highest)
        means = take(decoder, sides[0] if _has_means(sides) else 0, -_MEANS, _MEANS)
        return cls(levels, shift, means)

    def _in_steps(self) -> Floats:
        """Return what is read, in steps: multiples of 1/64 below 2,048, which float32 holds exactly."""
        shifts = np.sign(self.levels) * np.float32(self.shift / _SHIFTS)
        numbers: Floats = (self.levels + shifts).astype(np.float32)
        if len(self.means):
            numbers += (self.means / np.float32(_MEANS)).astype(np.float32)[:, None]
        return numbers


def _coded(update: Floats, spec: TensorSpec, step: Floats) -> bytes:
    encoder = Encoder()
    if step[0]:
        for part in _rounded(update, spec, step):
            part.put(encoder)
    return pack_scales(step) + encoder.finish()


def _has_means(sides: tuple[int, ...]) -> bool:
    return sides[0] > 1 and sides[1] >= _SHORTEST


def _units(numbers: np.float64 | NDArray[np.float64], units: int) -> Symbols:
    """Return the nearest integers to -1 … 1, in units of 1/``units``."""
    integers: Symbols = np.clip(np.rint(numbers * units), -units, units).astype(np.int32)
    return integers


def _rounded(update: Floats, spec: TensorSpec, step: Floats) -> list[_Part]:
    return [_Part.of(update[place].reshape(sides_of(shape)), step) for place, shape in parts(spec)]


def _decoded(tensors: list[Floats]) -> Floats:
    return np.concatenate([tensor.ravel() for tensor in tensors])


def _step(largest: Floats, tried: int) -> Floats:
    """Return the step (1,) that is ``tried`` eighths of an octave below the largest number."""
    return short(largest * np.float32(2.0 ** (-tried / _PER_OCTAVE)), up=True)


def energy(values: Floats) -> float:
    """Return the squared norm."""
    return float(np.square(values, dtype=np.float64).sum())

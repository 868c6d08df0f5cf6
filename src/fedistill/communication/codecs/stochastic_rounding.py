"""Unbiased stochastic rounding to a few levels, as in QSGD."""

from typing import Literal

import numpy as np

from fedistill.communication.codecs.updates import (
    LARGEST,
    Scales,
    finite,
    pack_scales,
    parts,
    short,
    sides_of,
    unpack_scales,
)
from fedistill.communication.entropy_coding.matrix_coder import put_matrix, take_matrix
from fedistill.communication.entropy_coding.parametric_model import Places
from fedistill.communication.entropy_coding.range_coder import Decoder, Encoder, Integers
from fedistill.communication.tensor_specs import Floats, TensorSpec

Norm = Literal["max", "l2"]
MOST_LEVELS = 1023


def write_levels(
    update: Floats,
    spec: TensorSpec,
    levels: int,
    bucket: int | None,
    norm: Norm,
    random: np.random.Generator,
) -> bytes:
    """Code an update (P,) as a scale for each bucket, and integers from -levels to levels.

    Numbers are rounded up or down at random.
    """
    encoder = Encoder()
    scales = [np.zeros(0, np.float32)]
    for place, shape in parts(spec):
        values = update[place]
        scales.append(short(_norms(values, bucket, norm), up=True))
        steps = _steps(scales[-1], levels, len(values), bucket)
        symbols = _round(values, steps, levels, random)
        put_matrix(encoder, symbols.reshape(sides_of(shape)), -levels, levels)
    return pack_scales(np.concatenate(scales)) + encoder.finish()


def read_levels(body: bytes, spec: TensorSpec, levels: int, bucket: int | None) -> Floats:
    """Return the update (P,) that `write_levels` coded.

    Raises:
        FrameError: no `write_levels` writes such a payload.
    """
    tensors = list(parts(spec))
    counts = [len(_starts(place.stop - place.start, bucket)) for place, _ in tensors]
    scales, coded = unpack_scales(body, sum(counts))
    decoder = Decoder(coded)
    update = np.empty(spec.count, np.float32)
    for (place, shape), count in zip(tensors, counts, strict=True):
        mine, scales = scales[:count], scales[count:]
        symbols = take_matrix(decoder, sides_of(shape), -levels, levels).ravel().astype(np.float32)
        np.multiply(symbols, _steps(mine, levels, len(symbols), bucket), out=update[place])
    decoder.finish()
    return finite(update)


def _starts(count: int, bucket: int | None) -> Places:
    """Return where the buckets of a tensor start."""
    return np.arange(0, count, bucket or max(count, 1))


def _norms(values: Floats, bucket: int | None, norm: Norm) -> Scales:
    starts = _starts(len(values), bucket)
    if not len(starts):
        return np.zeros(0, np.float32)
    if norm == "max":
        return np.maximum.reduceat(np.abs(values), starts)
    norms = np.sqrt(np.add.reduceat(np.square(values, dtype=np.float64), starts))
    return np.minimum(norms, LARGEST).astype(np.float32)


def _steps(scales: Scales, levels: int, count: int, bucket: int | None) -> Scales:
    """Return the distance between levels: one for all numbers, or one for each."""
    steps = scales / np.float32(levels)
    return steps if len(steps) < 2 or bucket is None else np.repeat(steps, bucket)[:count]


def _round(values: Floats, steps: Scales, levels: int, random: np.random.Generator) -> Integers:
    """Return multiples of the steps, up or down at random so that the mean is the number."""
    multiples = np.divide(values, steps, where=steps > 0, out=np.zeros_like(values))
    np.add(multiples, random.random(len(values), dtype=np.float32), out=multiples)
    np.floor(multiples, out=multiples)
    return np.clip(multiples, -levels, levels, out=multiples).astype(np.int32)

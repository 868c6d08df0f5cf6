"""What codecs meet: tensors of many shapes and sizes, what both sides know of them, and damaged bytes.

All is drawn from a `random.Random`, so that a seed names it.
"""

from dataclasses import replace
from random import Random
from typing import cast

import numpy as np

from fedistill.communication.codecs.base import Codec, Decoded, Sender
from fedistill.communication.tensor_specs import Content, Floats, SharedKnowledge, TensorSpec
from fedistill.state import encode_state


def spec_of(random: Random, content: Content) -> TensorSpec:
    """A tensor of up to a few thousand numbers, or of none."""
    if content is Content.WEIGHTS:
        parts = tuple(
            tuple(random.choice((0, 1, 2, 5, 9, 16)) for _ in range(random.randrange(1, 4)))
            for _ in range(random.randrange(4))
        )
        count = sum(int(np.prod(shape)) for shape in parts) if parts else random.choice((0, 1, 7, 500))
        return TensorSpec(content, (count,), parts)
    classes = random.choice((2, 3, 10, 10, 10, 64, 65, 100, 1000))
    count = random.choice((0, 1, 2, 30, 30, 130)) if classes < 100 else random.choice((0, 1, 5))
    if random.random() < 0.4:
        return TensorSpec(content, (count, classes))
    population = count + random.choice((0, 1, 50))
    rows = np.array(sorted(random.sample(range(population), count)), np.int64)
    return TensorSpec(content, (count, classes), rows=rows, population=population)


def elsewhere(random: Random, spec: TensorSpec) -> TensorSpec:
    """Another message of the same kind: as many other rows of the same public set."""
    if spec.rows is None:
        return spec
    rows = np.array(sorted(random.sample(range(spec.population), spec.shape[0])), np.int64)
    return replace(spec, rows=rows)


def values_of(random: Random, spec: TensorSpec) -> Floats:
    """Numbers that a sender might have: of many sizes, peaked or flat, all equal or all zero."""
    numbers = np.random.default_rng(random.getrandbits(64))
    scale = np.float32(random.choice((0, 1e-30, 1e-3, 1, 1, 1, 5)))
    noise = numbers.standard_normal(spec.shape).astype(np.float32)
    if spec.content is not Content.PROBS:
        return noise * scale
    logits = noise * 10 * scale
    whole = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return cast(Floats, (whole / whole.sum(axis=1, keepdims=True)).astype(np.float32))


def known_of(random: Random, codec: Codec, spec: TensorSpec, messages: int) -> SharedKnowledge:
    """What is known after so many messages."""
    known = beside(random, codec, spec)
    for _ in range(messages):
        before = elsewhere(random, spec)
        encoded = codec.encode(values_of(random, before), before, known, sender_of(random))
        known = replace(beside(random, codec, spec), memory=encoded.memory)
    return known


def beside(random: Random, codec: Codec, spec: TensorSpec) -> SharedKnowledge:
    """All but the memory."""
    reference, other_labels = None, None
    if codec.relative and spec.content is Content.WEIGHTS and random.random() < 0.8:
        reference = values_of(random, spec)
    if spec.rows is not None and random.random() < 0.7:
        other_labels = np.array([random.randrange(-1, spec.shape[1]) for _ in range(spec.shape[0])], np.int64)
    return SharedKnowledge(reference=reference, other_labels=other_labels)


def sender_of(random: Random) -> Sender:
    drawn = np.random.default_rng(random.getrandbits(64))
    return Sender(stream=lambda: drawn)


def damaged(random: Random, valid: bytes, others: list[bytes]) -> bytes:
    """Bytes that have something of a valid string, or nothing."""
    size = random.choice((len(valid), random.randrange(2 * len(valid) + 8)))
    other = random.choice(others)
    cut = random.randrange(len(valid) + 1)
    return random.choice(
        (
            lambda: random.randbytes(size),
            lambda: valid[:cut],
            lambda: flipped(random, valid, random.randrange(1, 9)),
            lambda: flipped(random, valid[: random.randrange(1, 5)], 1) + valid[random.randrange(1, 5) :],
            lambda: valid[:cut] + other[cut:],
            lambda: valid[:cut] + other[random.randrange(len(other) + 1) :],
            lambda: valid[:cut] + random.randbytes(len(valid) - cut),
            lambda: valid + random.randbytes(random.randrange(1, 9)),
            lambda: valid[:cut] + random.choice((b"\0", b"\xff")) * (len(valid) - cut),
            lambda: other,
        )
    )()


def flipped(random: Random, data: bytes, bits: int) -> bytes:
    changed = bytearray(data)
    for _ in range(bits if data else 0):
        changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(changed)


def fault_of(found: Decoded, spec: TensorSpec) -> str:
    """What is wrong with numbers that a codec has read, or an empty text."""
    values = found.values
    if values.dtype != np.float32 or values.shape != spec.shape:
        return f"{values.dtype} {values.shape} is not float32 {spec.shape}"
    if not np.isfinite(values).all():
        return "a number is not finite"
    if not values.flags.writeable:
        return "the numbers cannot be changed, which torch warns of"
    encode_state(found.memory)  # refuses what is not plain data
    return ""

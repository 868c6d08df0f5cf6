"""The fuzzer finds nothing; and it would find what is there.

What it finds is named by a seed, and is found again by
``python tests/communication/fuzzing.py --seed SEED --cases 1``.
"""

import re
from collections import Counter
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import fuzzing
import numpy as np
import pytest
from fuzzing import CODEC_CASES, END_CASES, Failure, allowance, check, group

from fedistill.communication.codecs.base import Codec, Decoded, Encoded, Sender
from fedistill.communication.codecs.registry import CODECS, create_codec
from fedistill.communication.messages.base import Message
from fedistill.communication.tensor_specs import Content, Floats, SharedKnowledge, TensorSpec
from fedistill.errors import FrameError
from fedistill.methods.registry import METHODS

SIZE = CODEC_CASES + 4 * END_CASES
SEED = 50_000
EACH = -(-6_000 // (SIZE * len(CODECS)))
"""Groups for each codec; together 6,000 cases; `make fuzz` has a million."""
TARGETS = {"codec", "frame", "coder", "server", "client"}


@pytest.mark.parametrize("name", CODECS)
def test_any_bytes_give_a_value_or_a_frame_error(name: str) -> None:
    counts: Counter[tuple[str, str, str]] = Counter()
    for seed in range(SEED, SEED + EACH):
        assert check(seed, (name,), counts) == SIZE
    assert EACH * len(CODECS) * SIZE >= 6_000
    # What is only ever refused, or only ever read, shows that the bytes were not worth trying.
    of_it = Counter[tuple[str, str]]()
    for (codec, target, outcome), number in counts.items():
        of_it[target, outcome] += number if codec == name else 0
    assert {target for target, _ in of_it} == TARGETS
    assert all(of_it[target, outcome] > 0 for target in TARGETS for outcome in ("read", "refused"))


def test_pairs_of_different_codecs() -> None:
    counts: Counter[tuple[str, str, str]] = Counter()
    for seed in range(50):
        check(seed, counts=counts)
    assert {codec for codec, _, _ in counts} == set(CODECS)


def test_the_message_of_every_method_is_tried() -> None:
    def below(kind: type[Message]) -> set[type[Message]]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    assert METHODS  # whose import has made all of their messages
    ours = {kind for kind in below(Message) - {Message} if kind.__module__.startswith("fedistill.")}
    sent = {kind for method in METHODS.values() for kind in (method.uplink, method.downlink) if kind}
    tried = {kind for pair in fuzzing.PAIRS for kind in pair}
    assert {kind.__name__ for kind in (ours | sent) - tried} == set()


def test_a_seed_gives_the_same_cases() -> None:
    def bytes_of(seed: int) -> list[bytes]:
        return [case.data for case in group(seed)]

    assert bytes_of(1) == bytes_of(1)
    assert bytes_of(1) != bytes_of(2)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("size", [0, 1, 1000, 100_000])
def test_what_is_expected_bounds_what_is_allocated(name: str, size: int) -> None:
    """A message of tens of thousands of numbers, and bytes of any length for it."""
    random, codec = Random(name), create_codec(name)
    for content in codec.codes:
        shape = (20_000,) if content is Content.WEIGHTS else (2_000, 10)
        spec = TensorSpec(
            content, shape, rows=None if len(shape) == 1 else np.arange(2_000), population=2_000
        )
        spec = replace(spec, population=0) if spec.rows is None else spec
        known = fuzzing.known_of(random, codec, spec, messages=1)
        read = partial(codec.decode, spec=spec, known=known)
        for data in (random.randbytes(size), bytes(size), b"\xff" * size, b"\1" + random.randbytes(size)):
            case = fuzzing.Case(name, "codec", data, read, spec.count)
            fuzzing._outcome(case, measured=True, seed=0, number=0)


def found(name: str) -> str:
    """What the first failure says; it names a seed that fails again."""
    said = ""
    for seed in range(20):
        try:
            check(seed, (name,))
        except Failure as failure:
            said = said or str(failure)
    assert said, "nothing was found"
    seed = int(said.split()[1].rstrip(","))
    with pytest.raises(Failure):
        check(seed, (name,))
    return said


class Bad(Codec):
    """A codec that answers bytes it does not know in a way of its own."""

    name = "bad"
    lossiness = "its temper"
    codes = frozenset({Content.SCORES})

    def encode(self, values: Floats, spec: TensorSpec, known: SharedKnowledge, sender: Sender) -> Encoded:
        return Encoded(b"good" + values.tobytes())

    def decode(self, payload: bytes, spec: TensorSpec, known: SharedKnowledge) -> Decoded:
        if payload[:4] == b"good" and len(payload) == 4 + 4 * spec.count:
            values = np.frombuffer(payload[4:], np.float32).copy()
            if np.isfinite(values).all():
                return Decoded(values.reshape(spec.shape))
        return self.otherwise(spec)

    def otherwise(self, spec: TensorSpec) -> Decoded:
        raise FrameError("not good")


def _frozen(self: Bad, spec: TensorSpec) -> Decoded:
    return Decoded(np.broadcast_to(np.float32(1), spec.shape))


def _hang(self: Bad, spec: TensorSpec) -> Decoded:
    while True:
        pass


def _allocate(self: Bad, spec: TensorSpec) -> Decoded:
    np.ones(allowance(spec.count, 0))
    raise FrameError("late")


def _nan(self: Bad, spec: TensorSpec) -> Decoded:
    return Decoded(np.full(spec.shape, np.nan, np.float32))


def _double(self: Bad, spec: TensorSpec) -> Decoded:
    return Decoded(np.zeros(spec.shape))


def _larger(self: Bad, spec: TensorSpec) -> Decoded:
    return Decoded(np.zeros((spec.shape[0] + 1, spec.shape[1]), np.float32))


def _overflow(self: Bad, spec: TensorSpec) -> Decoded:
    np.float32(1e30) * np.float32(1e30)
    raise FrameError("after a warning")


def _poison(self: Bad, spec: TensorSpec) -> Decoded:
    return Decoded(np.zeros(spec.shape, np.float32), {"from": object()})


def _other_error(self: Bad, spec: TensorSpec) -> Decoded:
    raise IndexError("beyond")


@pytest.mark.parametrize(
    ("otherwise", "said"),
    [
        (_other_error, "IndexError: beyond"),
        (_nan, "not finite"),
        (_double, "float64"),
        (_larger, "is not float32"),
        (_frozen, "cannot be changed"),
        (_overflow, "overflow"),
        (_allocate, "bytes allocated for"),
        (_poison, "a state keeps tensors"),
        (_hang, r"no answer in 0\.2 seconds"),
    ],
)
def test_it_finds_a_decoder_that(otherwise: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing, "PATIENCE", 0.2)
    monkeypatch.setitem(CODECS, "bad", Bad)
    for seed in range(10):
        check(seed, ("bad",))
    monkeypatch.setattr(Bad, "otherwise", otherwise)
    assert re.search(said, found("bad"))


def test_it_finds_a_memory_that_the_next_message_stumbles_over(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stumbling(Bad):
        remembers = True

        def encode(self, values: Floats, spec: TensorSpec, known: SharedKnowledge, sender: Sender) -> Encoded:
            if known.memory:
                raise FrameError("poisoned")
            return super().encode(values, spec, known, sender)

        def otherwise(self, spec: TensorSpec) -> Decoded:
            return Decoded(np.zeros(spec.shape, np.float32), {"poison": 1})

    monkeypatch.setitem(CODECS, "bad", Stumbling)
    assert "the message after it: FrameError: poisoned" in found("bad")

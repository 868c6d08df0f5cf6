"""Messages: what is sent arrives, and what was not expected is refused by name."""

import struct
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedistill.errors import ExperimentError, FrameError
from fedistill.wire import codec as codecs
from fedistill.wire import frame as frames
from fedistill.wire.codec import CODECS, Codec
from fedistill.wire.frame import Frame, Kind
from fedistill.wire.message import (
    ClassOutputs,
    Logits,
    Message,
    Sizes,
    SoftLabels,
    TrainedWeights,
    Weights,
    length,
    pack,
    unpack,
)

FP32, FP16 = CODECS["fp32"], CODECS["fp16"]
SIZES = Sizes(classes=3, parameters=7, samples=4)


@dataclass(frozen=True)
class Case:
    """A message type, the tensor's name and shape under `SIZES`, the integer's name, and the kind."""

    type: type[Message]
    tensor: str
    shape: tuple[int, ...]
    integer: str | None
    label: str

    def message(self, values: Tensor, number: int = 5) -> Message:
        fields: dict[str, Any] = {self.tensor: values}
        if self.integer:
            fields[self.integer] = number
        return self.type(**fields)

    def tensor_of(self, message: Message) -> Tensor:
        found = getattr(message, self.tensor)
        assert isinstance(found, Tensor)
        return found

    def sample(self, seed: int = 0) -> Tensor:
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(seed))


CASES = [
    Case(Weights, "values", (7,), None, "weights"),
    Case(TrainedWeights, "values", (7,), "samples", "weights"),
    Case(ClassOutputs, "means", (3, 3), None, "class-outputs"),
    Case(Logits, "scores", (4, 3), "drawn", "logits"),
    Case(SoftLabels, "probs", (4, 3), "drawn", "soft-labels"),
]
each = pytest.mark.parametrize("case", CASES, ids=[case.type.__name__ for case in CASES])
both = pytest.mark.parametrize("codec", [FP32, FP16], ids=["fp32", "fp16"])


def test_every_message_type_is_tested() -> None:
    assert set(Message.__subclasses__()) == {case.type for case in CASES}


def refusal(expected: type[Message], data: bytes, codec: Codec = FP32, sizes: Sizes = SIZES) -> str:
    """What is said about a frame in round 2 at client 1."""
    with pytest.raises(FrameError) as caught:
        unpack(expected, data, codec, sizes, round=2, client=1)
    return str(caught.value)


def numbers(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


@each
@pytest.mark.parametrize("client", [None, 0, 1, 300])
def test_round_trip_fp32_is_exact(case: Case, client: int | None) -> None:
    sent = case.message(case.sample(), number=2**40)
    came = unpack(case.type, pack(sent, FP32, 2, client), FP32, SIZES, round=2, client=client or 0)
    assert type(came) is case.type
    assert torch.equal(case.tensor_of(came), case.tensor_of(sent))
    assert case.tensor_of(came).dtype == torch.float32
    if case.integer:
        assert getattr(came, case.integer) == 2**40


@each
def test_round_trip_fp16_rounds_to_half(case: Case) -> None:
    values = case.sample() * 100
    came = unpack(case.type, pack(case.message(values), FP16, 2, 1), FP16, SIZES, round=2, client=1)
    assert torch.equal(case.tensor_of(came), values.half().float())
    assert not torch.equal(case.tensor_of(came), values)


@each
@both
def test_bytes_are_little_endian_in_c_order(case: Case, codec: Codec) -> None:
    # A transposed and channels-last like view has other strides; what crosses must not show it.
    values = case.sample()
    strided = values.t().contiguous().t() if values.dim() == 2 else values.repeat_interleave(2)[::2]
    data = pack(case.message(strided), codec, 2, None)
    letter = "f" if codec is FP32 else "e"
    expected = struct.pack(f"<{values.numel()}{letter}", *values.flatten().tolist())
    assert frames.decode(data).sections[case.tensor] == expected


def test_a_tensor_with_a_gradient_or_another_type_can_be_sent() -> None:
    values = torch.arange(7.0, requires_grad=True)
    assert pack(Weights(values), FP32, 1, None) == pack(Weights(torch.arange(7.0)), FP32, 1, None)
    assert pack(Weights(torch.arange(7).double()), FP32, 1, None) == pack(
        Weights(torch.arange(7.0)), FP32, 1, None
    )


def test_fp16_clips_to_its_largest_number() -> None:
    values = torch.tensor([1e6, -1e6, 65504.0, 65505.0, 65519.9, -65504.0, 0.0])
    came = unpack(Weights, pack(Weights(values), FP16, 2, None), FP16, SIZES, round=2, client=1)
    assert came.values.tolist() == [65504, -65504, 65504, 65504, 65504, -65504, 0]


@settings(max_examples=200)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=50))
def test_codecs_against_struct(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    assert FP32.decode(FP32.encode(array), len(values)).tolist() == array.tolist()
    halves = [float(np.float16(min(max(value, -65504.0), 65504.0))) for value in values]
    assert FP16.decode(FP16.encode(array), len(values)).tolist() == halves


@each
@both
@pytest.mark.parametrize(("round", "client"), [(1, 0), (127, 126), (128, 5), (20_000, 0)])
def test_length_is_that_of_the_real_frame(case: Case, codec: Codec, round: int, client: int) -> None:
    real = pack(case.message(case.sample(), number=127), codec, round, client)
    assert length(case.type, codec, SIZES, round) == len(real)


@each
@both
def test_length_by_hand(case: Case, codec: Codec) -> None:
    # "fd", version, kind, round, peer, sections and checksum: 11; a section: lengths of name and data,
    # one byte each, and both; an integer below 128: one byte.
    width = 4 if codec is FP32 else 2
    expected = 11 + 2 + len(case.tensor) + width * int(np.prod(case.shape))
    if case.integer:
        expected += 2 + len(case.integer) + 1
    assert length(case.type, codec, SIZES) == expected


@each
def test_another_kind_is_named(case: Case) -> None:
    other = next(one for one in CASES if one.label != case.label)
    said = refusal(case.type, pack(other.message(other.sample()), FP32, 2, 1))
    assert said == f"a frame of {other.label} came where {case.label} belong"


@each
def test_another_round_is_named(case: Case) -> None:
    said = refusal(case.type, pack(case.message(case.sample()), FP32, 3, 1))
    assert said == "a frame of round 3 came in round 2"


@each
def test_another_client_is_named(case: Case) -> None:
    said = refusal(case.type, pack(case.message(case.sample()), FP32, 2, 4))
    assert said == "a frame of client 4 came where client 1's belongs"


@each
@both
@pytest.mark.parametrize("change", [-1, 1])
def test_another_size_is_named(case: Case, codec: Codec, change: int) -> None:
    count = int(np.prod(case.shape))
    width = 4 if codec is FP32 else 2
    said = refusal(case.type, pack(case.message(torch.zeros(count + change)), codec, 2, 1), codec)
    assert said == (
        f"section '{case.tensor}': {width * (count + change)} bytes of {codec.name} where {count} numbers"
        f" were expected ({width * count} bytes)"
    )


@each
def test_the_shape_comes_from_the_receiver(case: Case) -> None:
    """As many numbers in another shape are read in the shape that the receiver expects."""
    data = pack(case.message(case.sample().flatten()), FP32, 2, 1)
    came = unpack(case.type, data, FP32, SIZES, round=2, client=1)
    assert torch.equal(case.tensor_of(came), case.sample())


def test_a_receiver_that_expects_other_sizes_refuses() -> None:
    data = pack(Logits(torch.zeros(4, 3), 1), FP32, 2, 1)
    for sizes in (replace(SIZES, classes=4), replace(SIZES, samples=5), Sizes(3)):
        assert "were expected" in refusal(Logits, data, sizes=sizes)


def test_a_frame_of_the_other_codec_is_refused() -> None:
    assert "bytes of fp16 where 7" in refusal(Weights, pack(Weights(torch.zeros(7)), FP32, 2, 1), FP16)
    assert "bytes of fp32 where 7" in refusal(Weights, pack(Weights(torch.zeros(7)), FP16, 2, 1), FP32)


@each
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(case: Case, bad: float) -> None:
    values = case.sample()
    values.view(-1)[3] = bad
    said = refusal(case.type, pack(case.message(values), FP32, 2, 1))
    assert said == f"section '{case.tensor}': a number in the message is not finite"


@pytest.mark.parametrize("half", [b"\x00\x7c", b"\x00\xfc", b"\x01\x7c", b"\x00\x7e"])
def test_halves_that_are_not_finite_are_refused(half: bytes) -> None:
    data = frames.encode(Frame(Kind.WEIGHTS, 2, 0, {"values": b"\0\0" * 6 + half}))
    assert refusal(Weights, data, FP16) == "section 'values': a number in the message is not finite"


def test_nan_does_not_become_a_number_by_fp16() -> None:
    values = torch.zeros(7)
    values[2] = torch.nan
    assert "not finite" in refusal(Weights, pack(Weights(values), FP16, 2, 1), FP16)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"values": numbers(*range(7))},
        {"samples": b"\x05"},
        {"samples": b"\x05", "values": numbers(*range(7))},
        {"values": numbers(*range(7)), "samples": b"\x05", "more": b""},
        {"values": numbers(*range(7)), "sample": b"\x05"},
    ],
)
def test_other_sections_are_named(sections: dict[str, bytes]) -> None:
    said = refusal(TrainedWeights, frames.encode(Frame(Kind.WEIGHTS, 2, 2, sections)))
    assert said == f"frame has the sections {list(sections)}, not ['values', 'samples']"


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"", "section 'samples': frame ends in the middle of a field"),
        (b"\x80", "section 'samples': frame ends in the middle of a field"),
        (b"\x05\x00\x00", "section 'samples': 2 bytes follow the integer"),
        (b"\xff" * 10, "section 'samples': frame has an integer of more than 63 bits"),
    ],
)
def test_odd_integers_are_refused(payload: bytes, said: str) -> None:
    sections = {"values": numbers(*range(7)), "samples": payload}
    assert refusal(TrainedWeights, frames.encode(Frame(Kind.WEIGHTS, 2, 2, sections))) == said


@settings(max_examples=500)
@given(st.binary(max_size=100), st.binary(max_size=20))
def test_random_sections_are_refused_or_read(values: bytes, number: bytes) -> None:
    data = frames.encode(Frame(Kind.WEIGHTS, 2, 2, {"values": values, "samples": number}))
    try:
        came = unpack(TrainedWeights, data, FP32, SIZES, round=2, client=1)
    except FrameError:
        return
    assert len(values) == 28
    assert came.values.isfinite().all()


def test_unknown_codec_names_the_nearest() -> None:
    with pytest.raises(ExperimentError) as caught:
        codecs.get("pf16")
    assert str(caught.value) == "codec 'pf16' is not one of fp32, fp16. Did you mean 'fp16'?"

"""Buffers among a model's weights: floating-point ones are never rounded, integers are exact and in range."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedistill.communication.codecs.registry import CODECS, create_codec
from fedistill.communication.messages.base import MessageContext
from fedistill.communication.messages.integer_arrays import Differences, StartIntegers
from fedistill.communication.messages.weights import TrainedWeights, Weights
from fedistill.communication.protocol.message_coder import MessageCoder
from fedistill.communication.protocol.shared_state import EMPTY
from fedistill.communication.tensor_specs import Content
from fedistill.errors import FrameError, TrainingError

BYTE = StartIntegers((5, 0, 1), (0, 0, 0), (255, 255, 1))
SIZES = MessageContext(classes=3, parameters=14, parts=((3, 3), (2,)), buffers=3, integers=BYTE)
OF_WEIGHTS = [name for name, codec in CODECS.items() if Content.WEIGHTS in codec.codes]


def values(seed: int) -> Tensor:
    return torch.randn(14, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_float_buffers_arrive_as_they_are(name: str) -> None:
    coder = MessageCoder(create_codec(name), create_codec(name), 0, [Weights, TrainedWeights])
    start = coder.start(values(0))
    down = Weights(values(1), torch.tensor([6, 0, 1]))
    written = coder.write("down", down, SIZES, start, sent=None, own=None, round=1, client=-1)
    came = coder.read("down", Weights, written.sections, SIZES, start, sent=None, round=1)
    assert torch.equal(came.message.values[-3:], down.values[-3:])
    assert came.message.integers.tolist() == [6, 0, 1]
    up = TrainedWeights(values(2), 9, torch.tensor([255, 0, 0]))
    answer = coder.write("up", up, SIZES, came.shared, sent=came.weights, own={}, round=1, client=1)
    read = coder.read("up", TrainedWeights, answer.sections, SIZES, came.shared, sent=came.weights, round=1)
    assert torch.equal(read.message.values[-3:], up.values[-3:])
    assert read.message.integers.tolist() == [255, 0, 0]
    # What the codec codes is what it would code of a model without buffers.
    bare = replace(SIZES, parameters=11, buffers=0)
    short = coder.start(values(0)[:11])
    alone = coder.write("down", Weights(values(1)[:11]), bare, short, sent=None, own=None, round=1, client=-1)
    assert written.sections[0] == alone.sections[0] + values(1)[11:].numpy().astype("<f4").tobytes()


def sections(tail: bytes, integers: bytes = b"") -> tuple[bytes, ...]:
    return (bytes(44) + tail, integers)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (sections(bytes(11)), "section 'values': 43 bytes of fp32 where 11 numbers were expected (44 bytes)"),
        ((bytes(8),), "section 'values': the message ends within its 3 numbers of buffers"),
        (
            sections(bytes(8) + np.float32("nan").tobytes()),
            "section 'values': a number of a buffer is not finite",
        ),
        (sections(bytes(12), b"\0\0"), "section 'integers': frame ends in the middle of a field"),
        (sections(bytes(12), b"\0\0\0\0"), "section 'integers': 1 bytes follow the integers"),
        (
            sections(bytes(12), b"\x0c\0\0"),
            None,
        ),
        (
            sections(bytes(12), b"\x0b\0\0"),
            "section 'integers': an integer of a buffer is -1, not from 0 to 255",
        ),
        (sections(bytes(12), b"\0\0\2"), "section 'integers': an integer of a buffer is 2, not from 0 to 1"),
    ],
)
def test_a_peer_is_not_trusted(sent: tuple[bytes, ...], said: str | None) -> None:
    coder = MessageCoder(create_codec("fp32"), create_codec("fp32"), 0, [Weights])
    if said is None:
        came = coder.read("down", Weights, sent, SIZES, EMPTY, sent=None, round=1)
        assert came.message.integers.tolist() == [11, 0, 1]
        return
    with pytest.raises(FrameError) as caught:
        coder.read("down", Weights, sent, SIZES, EMPTY, sent=None, round=1)
    assert str(caught.value) == said


integers = st.lists(st.tuples(st.integers(-(2**60), 2**60), st.integers(-(2**60), 2**60)), max_size=20)


@given(integers)
def test_integers_arrive_and_cost_nothing_where_nothing_changed(pairs: list[tuple[int, int]]) -> None:
    start = tuple(before for before, _ in pairs)
    limits = (-(2**63),) * len(pairs), (2**63 - 1,) * len(pairs)
    array = Differences(StartIntegers(start, *limits))
    now = np.array([after for _, after in pairs], np.int64)
    payload = array.write(now)
    assert array.read(payload).tolist() == now.tolist()
    assert (payload == b"") == (list(start) == now.tolist())
    assert array.write(np.zeros(0, np.int64)) == b""


def test_integers_of_another_model_are_not_sent() -> None:
    with pytest.raises(TrainingError, match="2 integers of buffers are sent where the model has 3"):
        Differences(BYTE).write(np.zeros(2, np.int64))
    far = StartIntegers((-(2**62),), (-(2**63),), (2**63 - 1,))
    with pytest.raises(TrainingError, match="has moved by more than"):
        Differences(far).write(np.array([2**62], np.int64))


def test_weights_of_another_size_are_not_sent() -> None:
    coder = MessageCoder(create_codec("fp32"), create_codec("fp32"), 0, [Weights])
    with pytest.raises(TrainingError, match=r"'values' of a message has the shape \(13,\)"):
        coder.write("down", Weights(torch.zeros(13)), SIZES, EMPTY, sent=None, own=None, round=1, client=-1)

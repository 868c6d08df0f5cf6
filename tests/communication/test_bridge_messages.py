"""Messages of `bridge` and of masked merges: what each has crosses whole, and nothing else is accepted."""

from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedistill.communication.codecs.registry import pair
from fedistill.communication.messages.base import Message, MessageContext
from fedistill.communication.messages.bridge import (
    LEVELS,
    VOTES,
    WEIGHTS,
    BridgeReply,
    BridgeRequest,
    as_bytes,
    from_bytes,
)
from fedistill.communication.messages.masked import (
    MaskedReply,
    MaskedRequest,
    step_bits,
    step_size,
    steps_as_bytes,
    steps_from_bytes,
)
from fedistill.communication.protocol.message_coder import MessageCoder
from fedistill.communication.protocol.shared_state import EMPTY
from fedistill.errors import FrameError


def flags(merge: int) -> Tensor:
    """One weight of five in the first merge, two in the second, and so on."""
    return torch.arange(5) < merge


SIZES = MessageContext(classes=3, parameters=5, samples=7, parts=((5,),), trained=flags)
NONE = torch.zeros(0, dtype=torch.int64)
VALUES = torch.tensor([0.5, -1.0, 0.0, 2.0, 3.0])
PARTS = {"levels": LEVELS, "votes": VOTES, "changes": WEIGHTS}
CODER = MessageCoder(*pair("fp32"), seed=0, messages=[BridgeReply, BridgeRequest, MaskedReply, MaskedRequest])


def crossed(way: Any, message: Message, round: int = 9) -> Message:
    given: dict[str, Any] = {"sent": None, "round": round}
    written = CODER.write(way, message, SIZES, EMPTY, own={}, client=0, **given)
    return CODER.read(way, type(message), written.sections, SIZES, EMPTY, **given).message


def same(left: Message, right: Message) -> bool:
    tensors = zip(left.tensors().values(), right.tensors().values(), strict=True)
    return left.numbers() == right.numbers() and all(torch.equal(one, other) for one, other in tensors)


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


STEPS = steps_as_bytes(ints(0x3F80, 0x0001))


@pytest.mark.parametrize(
    "message",
    [
        BridgeReply.telling(LEVELS, ints(0, 63, 7), NONE),
        BridgeReply.telling(LEVELS | VOTES, ints(1, 2, 3), ints(0, 1, 2, 3, 3, 3, 0)),
        BridgeReply(WEIGHTS, 2**32 - 1, 3, 0x3F80, NONE, NONE, ints(127, -127, 0)),
        BridgeReply.telling(0, NONE, NONE),
        MaskedReply(2, 0x7F7F, ints(1, -1)),
        MaskedReply(0, 0, NONE),
    ],
)
def test_replies_cross_whole(message: Message) -> None:
    assert same(crossed("up", message), message)


@pytest.mark.parametrize(
    "message",
    [
        BridgeRequest.asking(LEVELS, NONE),
        BridgeRequest.asking(VOTES, ints(1, 40, 9)),
        BridgeRequest(WEIGHTS, 1, 2, 0, 1, 0, NONE, ints(0, 4), ints(0, 1, 2, 3, 0), NONE, NONE, NONE),
        BridgeRequest(WEIGHTS, 0, 0, 1, 4, 3, NONE, NONE, NONE, as_bytes(VALUES), NONE, NONE),
        # The changes of merges 2 and 3, of two weights and of three.
        BridgeRequest(WEIGHTS, 0, 0, 0, 4, 1, NONE, NONE, NONE, NONE, STEPS, ints(1, -2, 3, 4, -5)),
        MaskedRequest(4, 1, STEPS, ints(1, -2, 3, 4, -5)),
        MaskedRequest(1, 0, NONE, NONE),
    ],
)
def test_requests_cross_whole(message: Message) -> None:
    assert same(crossed("down", message), message)


@pytest.mark.parametrize("parts", [set(some) for size in range(4) for some in combinations(PARTS, size)])
def test_each_flag_is_about_its_own_part_alone(parts: set[str]) -> None:
    """In any combination, a reply has the parts that are flagged, and a request what its flags go with."""
    asked = sum(PARTS[part] for part in parts)
    full = {"changes": ints(5, -1), "levels": ints(0, 63, 7), "votes": ints(0, 1, 2, 3, 3, 3, 0)}
    turn = 2 if "changes" in parts else 0
    given_parts = {part: full[part] if part in parts else full[part][:0] for part in full}
    reply = BridgeReply(has=asked, digest=9, turn=turn, step=7, **given_parts)
    assert same(crossed("up", reply), reply)
    request = BridgeRequest.asking(asked, ints(1, 40, 9) if "votes" in parts else NONE)
    assert same(crossed("down", request), request)


def refusal(kind: type[Message], *sections: bytes) -> str:
    way: Any = "up" if kind in (BridgeReply, MaskedReply) else "down"
    with pytest.raises(FrameError) as caught:
        CODER.read(way, kind, sections, SIZES, EMPTY, sent=None, round=9)
    return str(caught.value)


def test_numbers_out_of_range_are_refused() -> None:
    empty = [b""] * 3
    assert "have 8" in refusal(BridgeReply, b"\x08", b"\0", b"\0", b"\0", *empty)
    assert "have 4, for merge 0" in refusal(BridgeReply, b"\x04", b"\0", b"\0", b"\0", *empty)
    assert "have 1, for merge 2" in refusal(BridgeReply, b"\x01", b"\0", b"\x02", b"\0", *empty)
    request = [b"\x08", b"\0", b"\0", b"\0", b"\0", b"\0", *empty, *empty]
    assert "asks for 8" in refusal(BridgeRequest, *request)
    request[:3] = [b"\x04", b"\1", b"\x08"]
    assert "8 votes on 7 samples" in refusal(BridgeRequest, *request)
    assert "merge 2 says that the receiver knows 2" in refusal(MaskedRequest, b"\x02", b"\x02", b"", b"")


def test_no_more_merges_are_told_than_there_have_been_rounds() -> None:
    """A number in a frame cannot make the receiver expect masks of merges without end."""
    assert "round" in refusal(MaskedRequest, b"\x0a", b"\0", b"", b"")


@pytest.mark.parametrize("step", [0x7F80, 0x7FC0, 0xFF80, 0xBF80, 1 << 16])
def test_a_step_that_is_no_finite_number_is_refused(step: int) -> None:
    for reply in (MaskedReply(1, step, ints(1)), BridgeReply(4, 0, 1, step, NONE, NONE, ints(1))):
        with pytest.raises(FrameError, match="is no step of changes"):
            reply.check()


def test_changes_that_nobody_expects_are_refused() -> None:
    assert "bytes that mean nothing" in refusal(MaskedReply, b"\0", b"\0", bytes(range(1, 40)))


@given(st.floats(0, 2.0**127, width=32))
def test_a_step_is_sent_to_eight_bits(size: float) -> None:
    found = step_size(step_bits(size))
    assert found <= 3.39e38
    assert abs(found - size) <= max(size / 256, 1e-40)
    assert step_bits(found) == step_bits(size)


@given(st.lists(st.integers(0, 65535), max_size=9))
def test_steps_come_back_from_their_bytes(steps: list[int]) -> None:
    assert steps_from_bytes(steps_as_bytes(ints(*steps))).tolist() == steps


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_a_given_start_is_fp16_clipped_to_its_range(numbers: list[float]) -> None:
    weights = torch.tensor(numbers, dtype=torch.float32)
    given_start = as_bytes(weights)
    assert len(given_start) == 2 * len(weights)
    assert torch.equal(from_bytes(given_start), weights.clamp(-65504, 65504).half().float())
    assert torch.equal(as_bytes(from_bytes(given_start)), given_start)

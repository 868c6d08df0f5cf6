"""The messages of `bridge`: what each stage has crosses whole, and nothing else is accepted."""

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
from fedistill.communication.protocol.message_coder import MessageCoder
from fedistill.communication.protocol.shared_state import EMPTY
from fedistill.errors import FrameError

SIZES = MessageContext(classes=3, parameters=5, samples=7, parts=((5,),))
NONE, NO_WEIGHTS = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
VALUES = torch.tensor([0.5, -1.0, 0.0, 2.0, 3.0])
PARTS = {"levels": LEVELS, "votes": VOTES, "values": WEIGHTS}
CODER = MessageCoder(*pair("fp32"), seed=0, messages=[BridgeReply, BridgeRequest])


def crossed(way: Any, message: Message) -> Message:
    given: dict[str, Any] = {"sent": None, "round": 1}
    written = CODER.write(way, message, SIZES, EMPTY, own={}, client=0, **given)
    return CODER.read(way, type(message), written.sections, SIZES, EMPTY, **given).message


def same(left: Message, right: Message) -> bool:
    tensors = zip(left.tensors().values(), right.tensors().values(), strict=True)
    return left.numbers() == right.numbers() and all(torch.equal(one, other) for one, other in tensors)


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize(
    "message",
    [
        BridgeReply(NO_WEIGHTS, LEVELS, 0, ints(0, 63, 7), NONE),
        BridgeReply(NO_WEIGHTS, LEVELS | VOTES, 0, ints(1, 2, 3), ints(0, 1, 2, 3, 3, 3, 0)),
        BridgeReply(VALUES, WEIGHTS, 2**32 - 1, NONE, NONE),
        BridgeReply(NO_WEIGHTS, 0, 0, NONE, NONE),
    ],
)
def test_replies_cross_whole(message: BridgeReply) -> None:
    assert same(crossed("up", message), message)


@pytest.mark.parametrize(
    "message",
    [
        BridgeRequest(NO_WEIGHTS, LEVELS, 0, 0, 0, NONE, NONE, NONE, NONE),
        BridgeRequest(NO_WEIGHTS, VOTES, 0, 0, 0, ints(1, 40, 9), NONE, NONE, NONE),
        BridgeRequest(VALUES, WEIGHTS, 1, 2, 0, NONE, ints(0, 4), ints(0, 1, 2, 3, 0), NONE),
        BridgeRequest(VALUES, WEIGHTS, 0, 0, 1, NONE, NONE, NONE, as_bytes(VALUES)),
    ],
)
def test_requests_cross_whole(message: BridgeRequest) -> None:
    assert same(crossed("down", message), message)


@pytest.mark.parametrize("parts", [set(some) for size in range(4) for some in combinations(PARTS, size)])
def test_each_flag_is_about_its_own_part_alone(parts: set[str]) -> None:
    """In any combination, a reply has the parts that are flagged, and a request what its flags go with."""
    flags = sum(PARTS[part] for part in parts)
    full = {"values": VALUES, "levels": ints(0, 63, 7), "votes": ints(0, 1, 2, 3, 3, 3, 0)}
    reply = BridgeReply(
        **{part: full[part] if part in parts else full[part][:0] for part in full}, has=flags, digest=9
    )
    assert same(crossed("up", reply), reply)
    request = BridgeRequest(
        reply.values, flags, 0, 0, 0, ints(1, 40, 9) if "votes" in parts else NONE, NONE, NONE, NONE
    )
    assert same(crossed("down", request), request)


def refusal(kind: type[Message], sections: list[bytes]) -> str:
    way: Any = "up" if kind is BridgeReply else "down"
    with pytest.raises(FrameError) as caught:
        CODER.read(way, kind, tuple(sections), SIZES, EMPTY, sent=None, round=1)
    return str(caught.value)


def test_numbers_out_of_range_are_refused() -> None:
    assert "have 8" in refusal(BridgeReply, [b"", b"\x08", b"\0", b"", b""])
    assert "asks for 8" in refusal(BridgeRequest, [b"", b"\x08", b"\0", b"\0", b"\0", b"", b"", b"", b""])
    votes = refusal(BridgeRequest, [b"", b"\x04", b"\1", b"\x08", b"\0", b"", b"", b"", b""])
    assert "8 votes on 7 samples" in votes


def test_weights_that_nobody_expects_are_refused() -> None:
    reply = CODER.write(
        "up",
        BridgeReply(VALUES, WEIGHTS, 1, NONE, NONE),
        SIZES,
        EMPTY,
        sent=None,
        own={},
        round=1,
        client=0,
    )
    assert "expect no weights" in refusal(BridgeReply, [reply.sections[0], b"\0", b"\0", b"", b""])
    assert refusal(BridgeReply, [b"", b"\x04", b"\0", b"", b""])


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_a_given_start_is_fp16_clipped_to_its_range(numbers: list[float]) -> None:
    weights = torch.tensor(numbers, dtype=torch.float32)
    given_start = as_bytes(weights)
    assert len(given_start) == 2 * len(weights)
    assert torch.equal(from_bytes(given_start), weights.clamp(-65504, 65504).half().float())
    assert torch.equal(as_bytes(from_bytes(given_start)), given_start)

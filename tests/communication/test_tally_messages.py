"""The messages of `tally-like`: what each exchange has crosses whole, and nothing else is accepted."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedistill.communication.codecs.registry import pair
from fedistill.communication.messages.base import Message, MessageContext
from fedistill.communication.messages.integer_arrays import StartIntegers
from fedistill.communication.messages.tally import TallyReply, TallyRequest, classes_given, given_classes
from fedistill.communication.protocol.message_coder import MessageCoder
from fedistill.communication.protocol.shared_state import EMPTY
from fedistill.errors import FrameError

SIZES = MessageContext(
    classes=3, parameters=5, samples=7, parts=((5,),), integers=StartIntegers((4,), (0,), (99,))
)
NONE, NO_WEIGHTS = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
VALUES = torch.tensor([0.5, -1.0, 0.0, 2.0, 3.0])
CODER = MessageCoder(*pair("fp32"), seed=0, messages=[TallyReply, TallyRequest])


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def crossed(way: Any, message: Message) -> tuple[tuple[bytes, ...], Message]:
    given: dict[str, Any] = {"sent": None, "round": 1}
    sections = CODER.write(way, message, SIZES, EMPTY, own={}, client=0, **given).sections
    return sections, CODER.read(way, type(message), sections, SIZES, EMPTY, **given).message


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("up", TallyReply(VALUES, 1, NONE, ints(9))),
        ("up", TallyReply(NO_WEIGHTS, 0, ints(0, 1, 2, 3, 3, 3, 0), ints(4))),
        ("down", TallyRequest(VALUES, 1, 0, 0, NONE, ints(9))),
        ("down", TallyRequest(NO_WEIGHTS, 0, 0, 0, NONE, ints(4))),
        ("down", TallyRequest(NO_WEIGHTS, 0, 1, 6, ints(3, 0, 0, 0, 1, 2, 0), ints(4))),
    ],
)
def test_messages_cross_whole(way: Any, message: Message) -> None:
    _, came = crossed(way, message)
    assert came.numbers() == message.numbers()
    for name, values in message.tensors().items():
        assert torch.equal(came.tensors()[name], values)


def test_an_exchange_of_votes_has_no_bytes_for_weights() -> None:
    sections, _ = crossed("up", TallyReply(NO_WEIGHTS, 0, ints(0, 1, 2, 3, 3, 3, 0)))
    assert [len(section) for section in sections] == [0, 1, len(sections[2])]
    assert len(sections[2]) <= 4  # seven symbols of two bits, and what the coder needs to end


@pytest.mark.parametrize(
    ("kind", "sections", "said"),
    [
        (TallyReply, [b"", b"\x02", b""], "(2,), not 0 or 1"),
        (TallyRequest, [b"", b"\x00", b"\x02", b"\x00", b""], "(0, 2), not 0 or 1"),
        (TallyReply, [np.zeros(5, "<f4").tobytes(), b"\x00", b""], "expect no weights"),
        (TallyReply, [b"", b"\x01", b""], "values"),
    ],
)
def test_what_no_correct_sender_sends_is_refused(
    kind: type[Message], sections: list[bytes], said: str
) -> None:
    way: Any = "up" if kind is TallyReply else "down"
    with pytest.raises(FrameError) as caught:
        CODER.read(way, kind, tuple(sections), SIZES, EMPTY, sent=None, round=1)
    assert said in str(caught.value)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=30))
def test_classes_come_back_given_what_the_receiver_holds(pairs: list[tuple[int, int]]) -> None:
    classes, held = (ints(*(pair[place] for pair in pairs)) for place in (0, 1))
    coded = given_classes(classes, held)
    assert coded.tolist() == [0 if one == other else one + 1 for one, other in pairs]
    assert torch.equal(classes_given(coded, held), classes)
    assert torch.equal(classes_given(given_classes(classes, None), None), classes)


def test_classes_like_others_need_others() -> None:
    with pytest.raises(FrameError, match="no others"):
        classes_given(ints(1, 0), None)

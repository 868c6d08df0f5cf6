"""What crosses in a Flower message: one frame in one array, and a few named values beside it.

Nothing in an envelope is trusted: `open_order` and `open_answer` refuse what is not as it should be.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from fedistill.errors import FrameError

Words = Mapping[str, Any]
"""Named values of a message; whoever reads one checks it."""
_FRAME, _WORDS = "frame", "words"


@dataclass(frozen=True)
class Order:
    """What the server wants of a node.

    Attributes:
        session: names the run, also over restarts; a node keeps its state under it.
        arm, round: of the work; round 0 with the arm's name is its evaluation.
        frame: for the method, or the server's model to evaluate; may be empty.
    """

    session: str
    arm: str = ""
    round: int = 0
    frame: bytes = b""


@dataclass(frozen=True)
class Answer:
    """What a node says to an order.

    Attributes:
        frame: of the method, or the scores of the server's model; may be empty.
        words: named values: ``seconds`` and ``cost`` of the work, ``counts`` and ``scores`` of an evaluation,
            ``error`` where it failed.
    """

    frame: bytes = b""
    words: Words = field(default_factory=dict)


def seal_order(order: Order, node: int, kind: str) -> Message:
    words = ConfigRecord({"session": order.session, "arm": order.arm, "round": order.round})
    return Message(
        _content(order.frame, words), dst_node_id=node, message_type=kind, group_id=str(order.round)
    )


def open_order(message: Message) -> Order:
    """Read an order.

    Raises:
        FrameError: it is none.
    """
    frame, words = _opened(message.content)
    session, arm, round = words.get("session"), words.get("arm"), words.get("round")
    if not isinstance(session, str) or not session.isalnum():
        raise FrameError("an order names no session")
    if not isinstance(arm, str) or not isinstance(round, int) or round < 0:
        raise FrameError("an order names no arm and round")
    return Order(session, arm, round, frame)


def seal_answer(answer: Answer, order: Message) -> Message:
    return Message(_content(answer.frame, ConfigRecord(dict(answer.words))), reply_to=order)


def open_answer(message: Message) -> Answer:
    """Read an answer.

    Raises:
        FrameError: it is none.
    """
    frame, words = _opened(message.content)
    return Answer(frame, words)


def overhead(message: Message, frame: bytes) -> int:
    """Bytes that Flower serialises for a message beyond the frame in it; its own transport comes on top."""
    if message.has_error():
        return 0
    return sum(len(part.deflate()) for part in get_all_nested_objects(message).values()) - len(frame)


def _content(frame: bytes, words: ConfigRecord) -> RecordDict:
    array = Array(dtype="uint8", shape=(len(frame),), stype="bytes", data=frame)
    return RecordDict({_FRAME: ArrayRecord({_FRAME: array}), _WORDS: words})


def _opened(content: RecordDict) -> tuple[bytes, Words]:
    try:
        arrays, words = content[_FRAME], content[_WORDS]
        array = arrays[_FRAME]
    except KeyError as error:
        raise FrameError(f"a message has no part {error}") from None
    if not isinstance(array, Array) or not isinstance(words, ConfigRecord) or len(arrays) != 1:
        raise FrameError("a message does not hold one array and its words")
    return bytes(array.data), dict(words)

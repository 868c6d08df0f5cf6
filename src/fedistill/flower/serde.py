"""What crosses in a Flower message: a frame for each client of a node, and a few named values beside them.

Nothing in an envelope is trusted: `open_order` and `open_reply` refuse what is not as it should be.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from fedistill.errors import FrameError

Words = Mapping[str, Any]
"""Named values of a message; whoever reads one checks it."""
_FRAMES, _WORDS = "frames", "words"


@dataclass(frozen=True)
class Order:
    """What the server wants of a node.

    Attributes:
        session: names the run, also over restarts; a node keeps its state under it.
        arm, round: of the work; round 0 with the arm's name is its evaluation.
        frames: for each of its clients that is asked, by number: for the method, or the server's model to
            evaluate; one may be empty.
        fingerprint: of the server's task, where a node is asked who it is; else empty.
    """

    session: str
    arm: str = ""
    round: int = 0
    frames: Mapping[int, bytes] = field(default_factory=dict)
    fingerprint: str = ""


@dataclass(frozen=True)
class Answer:
    """What one client says to an order.

    Attributes:
        frame: of the method, or the scores of the server's model; may be empty.
        words: named values: ``seconds`` and ``cost`` of the work, ``counts`` and ``scores`` of an evaluation,
            ``error`` where it failed.
    """

    frame: bytes = b""
    words: Words = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """What a node says to an order.

    Attributes:
        answers: of its clients that were asked, by number.
        words: of the node itself: ``clients``, ``own-data`` and ``fingerprint`` where it is asked who it is,
            ``error`` where all of it failed.
    """

    answers: Mapping[int, Answer] = field(default_factory=dict)
    words: Words = field(default_factory=dict)


def seal_order(order: Order, node: int, kind: str) -> Message:
    words = {"session": order.session, "arm": order.arm, "round": order.round}
    return Message(
        _content(order.frames, {**words, "fingerprint": order.fingerprint}),
        dst_node_id=node,
        message_type=kind,
        group_id=str(order.round),
    )


def open_order(message: Message) -> Order:
    """Read an order.

    Raises:
        FrameError: it is none.
    """
    frames, words = _opened(message.content)
    session, arm, round = words.get("session"), words.get("arm"), words.get("round")
    fingerprint = words.get("fingerprint")
    if not isinstance(session, str) or not session.isalnum():
        raise FrameError("an order names no session")
    if not isinstance(arm, str) or not isinstance(round, int) or round < 0:
        raise FrameError("an order names no arm and round")
    if not isinstance(fingerprint, str):
        raise FrameError("an order names no fingerprint of the task")
    return Order(session, arm, round, frames, fingerprint)


def seal_reply(reply: Reply, order: Message) -> Message:
    content = _content({client: answer.frame for client, answer in reply.answers.items()}, reply.words)
    for client, answer in reply.answers.items():
        content[_words_of(client)] = ConfigRecord(dict(answer.words))
    return Message(content, reply_to=order)


def open_reply(message: Message) -> Reply:
    """Read a reply.

    Raises:
        FrameError: it is none.
    """
    frames, words = _opened(message.content)
    answers = {}
    for client, frame in frames.items():
        said = message.content.get(_words_of(client))
        if not isinstance(said, ConfigRecord):
            raise FrameError(f"a reply has a frame of client {client} without its words")
        answers[client] = Answer(frame, dict(said))
    return Reply(answers, words)


def overhead(message: Message, frames: Iterable[bytes]) -> int:
    """Bytes that Flower serialises for a message beyond the frames in it; its own transport comes on top.

    Flower carries equal frames once.
    """
    if message.has_error():
        return 0
    parts = sum(len(part.deflate()) for part in get_all_nested_objects(message).values())
    return parts - sum(len(frame) for frame in set(frames))


def _content(frames: Mapping[int, bytes], words: Words) -> RecordDict:
    arrays = {
        str(client): Array(dtype="uint8", shape=(len(frame),), stype="bytes", data=frame)
        for client, frame in frames.items()
    }
    return RecordDict({_FRAMES: ArrayRecord(arrays), _WORDS: ConfigRecord(dict(words))})


def _words_of(client: int) -> str:
    return f"{_WORDS} of {client}"


def _opened(content: RecordDict) -> tuple[dict[int, bytes], Words]:
    try:
        arrays, words = content[_FRAMES], content[_WORDS]
    except KeyError as error:
        raise FrameError(f"a message has no part {error}") from None
    if not isinstance(arrays, ArrayRecord) or not isinstance(words, ConfigRecord):
        raise FrameError("a message does not hold arrays and its words")
    # Clients of a broadcast hold the same bytes, as in one process: they are decoded once.
    held: dict[bytes, bytes] = {}
    frames: dict[int, bytes] = {}
    for name, array in arrays.items():
        frame = bytes(array.data)
        frames[_client(name)] = held.setdefault(frame, frame)
    return frames, dict(words)


def _client(name: str) -> int:
    if not (name.isascii() and name.isdecimal() and len(name) < 10 and name == str(int(name))):
        raise FrameError("a message names a frame by what is no client's number")
    return int(name)

"""What crosses in a Flower message: a frame for each client of a node, and a few named values beside them.

Flower sends each array and record of a message by a request of its own, so the frames of all clients are one
array, in which equal ones are written once, and the named values of clients are lists.

Nothing in an envelope is trusted: `open_order` and `open_reply` refuse what is not as it should be.
"""

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from fedistill.config.section import Raw
from fedistill.errors import FrameError

Words = Mapping[str, Any]
"""Named values of a message; whoever reads one checks it."""
_FRAMES, _INDEX, _WORDS = "frames", "index", "words"
_LISTS = ("clients", "lengths", "places", "words")
_MOST_WORDS, _LONGEST_NAME = 8, 40


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
        _content(order.frames, {**words, "fingerprint": order.fingerprint}, {}),
        dst_node_id=node,
        message_type=kind,
        group_id=str(order.round),
    )


def open_order(message: Message) -> Order:
    """Read an order.

    Raises:
        FrameError: it is none.
    """
    frames, words, _ = _opened(message.content)
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
    frames = {client: answer.frame for client, answer in reply.answers.items()}
    said = {client: answer.words for client, answer in reply.answers.items()}
    return Message(_content(frames, reply.words, said), reply_to=order)


def open_reply(message: Message, asked: Collection[int], longest: int) -> Reply:
    """Read a reply; nothing of it is expanded before its sizes have been checked.

    Args:
        asked: the clients of the order.
        longest: characters of a text, and numbers of a list, that no named value reaches.

    Raises:
        FrameError: it is none, or it answers for clients that were not asked.
    """
    content = message.content
    if set(content) - {_FRAMES, _INDEX, _WORDS}:
        raise FrameError(f"a reply has {len(content)} parts where 3 are expected")
    index = content.get(_INDEX)
    if isinstance(index, ConfigRecord) and (
        set(index) != {*_LISTS} or any(_length(part) > len(asked) for part in index.values())
    ):
        raise FrameError(f"a reply has an index of other frames than those of {len(asked)} clients")
    frames, words, texts = _opened(content)
    if not frames.keys() <= set(asked):
        raise FrameError("a reply answers for clients that were not asked")
    said = {client: _read_words(text, longest) for client, text in texts.items()}
    return Reply(
        {client: Answer(frame, said[client]) for client, frame in frames.items()}, _checked(words, longest)
    )


def carried(message: Message) -> int:
    """Bytes of the arrays of a message that is none of ours; its records are not serialised to be counted."""
    if message.has_error():
        return 0
    arrays = [array for part in message.content.array_records.values() for array in part.values()]
    return sum(len(array.data) for array in arrays)


def overhead(message: Message, frames: Iterable[bytes]) -> int:
    """Bytes that Flower serialises for a message beyond the frames in it; its own transport comes on top."""
    if message.has_error():
        return 0
    parts = sum(len(part.deflate()) for part in get_all_nested_objects(message).values())
    return parts - sum(len(frame) for frame in set(frames))


def _content(frames: Mapping[int, bytes], words: Words, said: Mapping[int, Words]) -> RecordDict:
    written = {frame: place for place, frame in enumerate(dict.fromkeys(frames.values()))}
    data = b"".join(written)
    array = Array(dtype="uint8", shape=(len(data),), stype="bytes", data=data)
    index: dict[str, list[int] | list[str]] = {
        "clients": list(frames),
        "lengths": [len(frame) for frame in written],
        "places": [written[frame] for frame in frames.values()],
        "words": [json.dumps(dict(said.get(client, {}))) for client in frames],
    }
    return RecordDict(
        {
            _FRAMES: ArrayRecord({_FRAMES: array}),
            _INDEX: ConfigRecord({**index}),
            _WORDS: ConfigRecord(dict(words)),
        }
    )


def _opened(content: RecordDict) -> tuple[dict[int, bytes], Words, dict[int, Raw]]:
    """Return the frames by client, the named values of the message, and the texts of its clients."""
    try:
        arrays, index, words = content[_FRAMES], content[_INDEX], content[_WORDS]
        array = arrays[_FRAMES]
    except KeyError as error:
        raise FrameError(
            f"a message has no part {error}: do both sides have the same version of fedistill?"
        ) from None
    if not (
        isinstance(array, Array)
        and len(arrays) == 1
        and isinstance(index, ConfigRecord)
        and isinstance(words, ConfigRecord)
    ):
        raise FrameError("a message does not hold one array, its index and its words")
    clients, lengths, places = (_numbers(index, name) for name in ("clients", "lengths", "places"))
    said, data = index.get("words"), bytes(array.data)
    if not isinstance(said, list) or not len(clients) == len(places) == len(said):
        raise FrameError("a message has not one frame and one text for each client")
    if (
        len(set(clients)) < len(clients)
        or sum(lengths) != len(data)
        or max(places, default=-1) >= len(lengths)
    ):
        raise FrameError("a message has another index than its frames")
    ends = list(accumulate(lengths))
    # Clients of a broadcast hold the same bytes, as in one process: they are decoded once.
    written = [data[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    frames = {client: written[place] for client, place in zip(clients, places, strict=True)}
    return frames, dict(words), dict(zip(clients, said, strict=True))


def _numbers(index: ConfigRecord, name: str) -> list[int]:
    found = index.get(name)
    numbers = [one for one in found if type(one) is int and one >= 0] if isinstance(found, list) else []
    if numbers != found:
        raise FrameError(f"a message does not say the {name} of its frames")
    return numbers


def _read_words(text: Raw, longest: int) -> Words:
    try:
        words = json.loads(text if _length(text) <= longest else "", parse_int=_integer)
    except (TypeError, ValueError, RecursionError):
        words = None
    if not isinstance(words, dict):
        raise FrameError("the named values of a client are not JSON with names")
    return _checked(words, longest)


def _integer(digits: str) -> int:
    # As many as a record of Flower takes: nothing that is computed from them grows without bound.
    if len(digits) > 18:
        raise ValueError(digits)
    return int(digits)


def _checked(words: Words, longest: int) -> Words:
    """Return named values that are texts, numbers or lists of whole numbers, and of no absurd size."""
    if len(words) > _MOST_WORDS or any(len(name) > _LONGEST_NAME for name in words):
        raise FrameError("named values are too many, or have names that are too long")
    for value in words.values():
        kind = type(value)
        if kind is str:
            fits = len(value) <= longest and not any("\ud800" <= sign <= "\udfff" for sign in value)
        elif kind is list:
            fits = len(value) <= longest and all(type(one) in (int, bool) for one in value)
        else:
            fits = kind in (int, bool) or (kind is float and math.isfinite(value))
        if not fits:
            raise FrameError("a named value is no text, number or list of whole numbers, or too long")
    return words


def _length(value: Raw) -> int:
    return len(value) if isinstance(value, str | bytes | list) else 0

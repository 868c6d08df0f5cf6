"""Lies of a client: whole frames with what no correct client sends, and a round that can receive them."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedistill.communication.messages.base import Message, MessageContext, contents
from fedistill.communication.messages.count_matrix import CountMatrix
from fedistill.communication.messages.integer_arrays import Fitted, IntegerArray, Subset, Symbols
from fedistill.communication.messages.masked import step_bits
from fedistill.communication.protocol import frame as frames
from fedistill.communication.protocol.endpoints import ClientEndpoint, ServerEndpoint
from fedistill.communication.protocol.frame import EVERYONE, Frame
from fedistill.communication.protocol.message_coder import _without_empty_ends
from fedistill.communication.protocol.shared_parts import write_once
from fedistill.communication.tensor_specs import Classes, Content, TensorSpec
from fedistill.communication.varint import varint
from fedistill.errors import FrameError
from fedistill.federation import round as rounds
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client import ClientResult
from fedistill.federation.history import ArmRun
from fedistill.federation.local_executor import SerialExecutor
from fedistill.federation.replies import Replies
from fedistill.federation.round import play_round
from fedistill.federation.setup import start_run
from fedistill.methods.registry import METHODS
from fedistill.testing.methods import MethodCase
from helpers.method_rows import Row

HUGE = 1e38
LIAR = 1
MUST_BE_REFUSED = {
    Content.PROBS: ("nan", "inf", "huge", "x 1000", "negative", "zero rows"),
    Content.WEIGHTS: ("nan", "inf", "huge", "x 1000", "negative", "zero rows"),
    Content.SCORES: ("nan", "inf", "huge"),
}
"""By what the numbers mean. Scores a thousand times as large, or turned around, may be honest."""
ALWAYS_TAKEN = {"negative", "zero rows"}
"""Of what need not be refused: within all bounds, as numbers a thousand times as large may not be."""
UNKNOWN_TO_THE_SERVER = {"digest"}
"""Integers of which any value may be honest."""

Lie = Callable[[Tensor], Tensor]
LIES: dict[str, Lie] = {
    "nan": lambda values: torch.full_like(values, HUGE),
    "inf": lambda values: torch.full_like(values, HUGE),
    "huge": lambda values: torch.full_like(values, HUGE),
    "x 1000": lambda values: values * 1000,
    "negative": lambda values: -values,
    "zero rows": torch.zeros_like,
}
COUNTS = {"samples", "texts", "words"}
"""Arrays of integers of which the server knows the sum, or the most that it can be."""
INTEGERS: dict[str, Callable[[IntegerArray, Tensor], Tensor]] = {
    "all 0": lambda array, values: torch.zeros_like(values),
    "all at most": lambda array, values: torch.full_like(values, _most(array)),
    "others": lambda array, values: torch.from_numpy(array.example()),
    "too large": lambda array, values: values.abs() + _most(array) + 1,
    "too small": lambda array, values: -values.abs() - _most(array) - 1,
}
"""Arrays of integers. What is written of those out of range may be read as others that are in it."""
IN_PLACE_OF_HUGE = {"nan": float("nan"), "inf": float("inf")}
"""What no encoder writes, by the name of the lie."""


@dataclass
class Sent:
    """A client's honest reply, before and after it was coded."""

    message: Message
    context: MessageContext
    frame: bytes


class Scene:
    """A round of a method in which all clients have replied, and which the server can receive many times.

    ``before`` is how many rounds have gone before it: one, unless the method has no more than one.
    """

    def __init__(self, row: Row, monkeypatch: pytest.MonkeyPatch, before: int | None = None) -> None:
        case = MethodCase(row.method, row.models, row.settings)
        _, arm = case.ready()
        self.wanted, self.arm = case.ready(arm={"codec": "fp32"} if _carries_numbers(arm) else {})
        self.sent: dict[int, Sent] = {}
        self.earlier: dict[int, bytes] = {}
        original = ClientEndpoint.reply

        def reply(endpoint: ClientEndpoint, message: Message, context: MessageContext) -> bytes:
            frame = original(endpoint, message, context)
            self.sent[endpoint._client] = Sent(message, context, frame)
            return frame

        monkeypatch.setattr(ClientEndpoint, "reply", reply)
        self.run: ArmRun = start_run(self.arm)
        with SerialExecutor(self.wanted, self.arm.task) as executor:
            if before is None:
                before = 0 if METHODS[row.method].one_shot else 1
            for _ in range(before):
                play_round(self.run, self.arm, executor)
                self.earlier = {client: sent.frame for client, sent in self.sent.items()}
            self.plan = rounds._sample(self.arm, self.run.round + 1, 1)
            _, frames_down = self._open()
            self.results = list(rounds._run_clients(self.run, self.arm, executor, self.plan, frames_down))

    def _open(self) -> tuple[ServerEndpoint, list[bytes]]:
        arm, run = self.arm, self.run
        endpoint = ServerEndpoint(arm.coder, run.shared_states, arm.initial_shared_state, self.plan.number)
        return endpoint, rounds._send(run, arm, endpoint, self.plan)

    def refused(self, lie: bytes) -> dict[int, str]:
        """Who is left out, and why, if the liar sends this."""
        return self.answered({LIAR: lie})[1]

    def answered(self, lies: dict[int, bytes]) -> tuple[list[int], dict[int, str]]:
        """Whose replies the server step gets, in order, and who is left out, and why, if these send that."""
        replies = self._replies(lies)
        came = [reply.client for reply in replies]
        return came, {client: failure.reason for client, failure in replies.failures.items()}

    def learn_from(self, lie: bytes, quorum: float = 0.0) -> dict[int, str]:
        """Let the server take its step, with this in place of the liar's reply.

        Returns:
            Who is left out, and why.

        Raises:
            TrainingError: the step fails, or leaves NaN or infinite numbers, or too few clients are left in.
        """
        replies = self._replies({LIAR: lie}, quorum)
        with SerialExecutor(self.wanted, self.arm.task) as executor:
            rounds._aggregate(self.run, self.arm, self.plan.number, replies, executor)
        return {client: failure.reason for client, failure in replies.failures.items()}

    def _replies(self, lies: dict[int, bytes], quorum: float = 0.0) -> Replies:
        endpoint, down = self._open()
        results = [
            (client, replace(result, frame=lies.get(client, result.frame)))
            for client, result in self.results
            if isinstance(result, ClientResult)
        ]
        check = rounds._reply_check(self.run, self.arm, self.plan.number)
        return Replies(self.arm, quorum, check, endpoint, self.plan, down, iter(results))


def _carries_numbers(arm: ReadyArm) -> bool:
    """Whether a codec carries a part of the replies."""
    context = MessageContext(classes=2)
    for uplink in arm.method.uplinks:
        numbers: dict[str, Any] = {"held": 0, **dict.fromkeys(uplink.number_names(), 0)}
        arrays = {name: torch.zeros(0).long().numpy() for name in uplink.integer_arrays(context, numbers)}
        if uplink.specs(context, {**numbers, **arrays}):
            return True
    return False


def frame_lies(scene: Scene) -> Iterator[tuple[str, bytes]]:
    """Frames that are whole, and not what was asked for."""
    honest = frames.decode(scene.sent[LIAR].frame)

    def write(frame: Frame) -> bytes:
        return frames.encode(frame)

    yield "another client's", scene.sent[0].frame
    yield "to everyone", write(replace(honest, peer=EVERYONE))
    yield "of the next round", write(replace(honest, round=honest.round + 1))
    yield "asks for training", write(replace(honest, local=2))
    yield "without its last section", write(replace(honest, sections=honest.sections[:-1] or (b"x",)))
    if LIAR in scene.earlier:
        yield "replayed", scene.earlier[LIAR]


def number_lies(sent: Sent) -> Iterator[tuple[str, bytes]]:
    """Integers that the server knows to be others."""
    if "step" in sent.message.names() and sent.message.numbers()["turn"]:
        yield "huge steps", _with_number(sent, "step", step_bits(1e30))
    for name in sent.message.number_names():
        if name in UNKNOWN_TO_THE_SERVER:
            continue
        yield f"{name} of 2^40", _with_number(sent, name, 1 << 40)
        number = sent.message.numbers()[name]
        if name in ("samples", "present"):
            yield f"{name} one more", _with_number(sent, name, number + 1)
        elif name in ("turn", "merges", "sampled_round") and number > 1:
            yield f"{name} before", _with_number(sent, name, number - 1)


def _with_number(sent: Sent, name: str, number: int) -> bytes:
    honest = frames.decode(sent.frame)
    sections = list(honest.sections)
    sections[sent.message.names().index(name)] = varint(number)
    return frames.encode(replace(honest, sections=tuple(sections)))


def value_lies(sent: Sent) -> Iterator[tuple[str, bytes]]:
    """Numbers that no correct client sends."""
    for name, spec in _specs(sent).items():
        for lie in MUST_BE_REFUSED[spec.content]:
            yield f"{name} {lie}", _with_lie(sent, name, lie)


def count_lies(sent: Sent) -> Iterator[tuple[str, bytes]]:
    """Counts of one more than there are, in each place where there are some."""
    for name in COUNTS & _arrays(sent).keys():
        values = sent.message.tensors()[name]
        wrong = torch.where(values > 0, values + 1, 0)
        yield f"{name} one more", _frame_of(sent, replace(sent.message, **{name: wrong}))


def doubtful_lies(kind: type[Message]) -> list[str]:
    """Return the names of lies that the server cannot always tell from what a correct client sends."""
    found = {lie for content in contents(kind) for lie in LIES.keys() - MUST_BE_REFUSED[content]}
    numbers = dict.fromkeys(kind.number_names(), 0)
    arrays = kind.integer_arrays(MessageContext(classes=2), numbers).keys() - {"integers"}  # of buffers
    return [*sorted(found), *(INTEGERS if arrays else ())]


def doubtful_frames(sent: Sent, lie: str) -> Iterator[tuple[str, bytes]]:
    """Frames with such a lie, by the tensor or the array that it is about."""
    if lie in INTEGERS:
        for name, array in _arrays(sent).items():
            wrong = INTEGERS[lie](array, sent.message.tensors()[name])
            yield name, _frame_of(sent, replace(sent.message, **{name: wrong}))
        return
    for name, spec in _specs(sent).items():
        if lie not in MUST_BE_REFUSED[spec.content]:
            yield name, _with_lie(sent, name, lie)


def _specs(sent: Sent) -> dict[str, TensorSpec]:
    """What the message has of tensors with other numbers than zero."""
    message = sent.message
    arrays = {
        name: value.numpy() for name, value in message.tensors().items() if not value.is_floating_point()
    }
    found = type(message).specs(sent.context, {"held": 0, **message.numbers(), **arrays})
    return {name: spec for name, spec in found.items() if spec.count and getattr(message, name).any()}


def _arrays(sent: Sent) -> dict[str, IntegerArray]:
    """What the message has of arrays of integers."""
    found = type(sent.message).integer_arrays(sent.context, {"held": 0, **sent.message.numbers()})
    return {name: array for name, array in found.items() if sent.message.tensors()[name].numel()}


def _with_lie(sent: Sent, name: str, lie: str) -> bytes:
    values = sent.message.tensors()[name]
    frame = frames.decode(_frame_of(sent, replace(sent.message, **{name: LIES[lie](values)})))
    if lie in IN_PLACE_OF_HUGE:
        old, new = (struct.pack("<f", value) for value in (HUGE, IN_PLACE_OF_HUGE[lie]))
        sections = tuple(section.replace(old, new) for section in frame.sections)
        assert sections != frame.sections
        frame = replace(frame, sections=sections)
    return frames.encode(frame)


def _frame_of(sent: Sent, message: Message) -> bytes:
    """Return the frame of a message, whatever its numbers are: as fp32, or as whole numbers."""
    payloads = {name: varint(number) for name, number in message.numbers().items()}
    arrays = type(message).integer_arrays(sent.context, {"held": 0, **message.numbers()})
    for name, value in message.tensors().items():
        if value.is_floating_point():
            payload = value.contiguous().numpy().astype("<f4").tobytes()
        else:
            payload = _written(arrays[name], value.numpy())
        payloads[name] = write_once(payload, None) if name in message.once else payload
    sections = _without_empty_ends(type(message), payloads)
    return frames.encode(replace(frames.decode(sent.frame), sections=sections))


def _written(array: IntegerArray, values: Classes) -> bytes:
    """Return the payload of integers; of those that the array may not have, as a wider one writes them."""
    most = int(abs(values).max(initial=0))
    match array:
        case Symbols(below=below):
            return replace(array, below=max(below, most + 1)).write(abs(values))
        case Fitted(high=high):
            return replace(array, high=max(high, most)).write(values)
        case Subset(count=count):
            return replace(array, count=max(count, most + 1)).write(np.unique(abs(values)))
        case CountMatrix(least=least):
            return array.write(np.where(values < least, 0, values))
    return array.write(values)


def _most(array: IntegerArray) -> int:
    """Return the largest integer that the array may have; of counts, the largest sum."""
    match array:
        case Symbols(below=below):
            return below - 1
        case Fitted(high=high):
            return high
        case Subset(count=count):
            return count - 1
    assert isinstance(array, CountMatrix)
    return array.most


NUMBERS = (0, 1, 2, 3, 255, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 40, (1 << 63) - 1)
VALUES = (
    *(float("nan"), float("inf"), -float("inf"), HUGE, -HUGE),
    *(1e6, -1e6, 100.0, 1.0, 0.5, 0.0, -1.0, 1e-30),
)


def random_lie(sent: Sent, random: Random) -> bytes:
    """A whole frame that a random hand has changed: fields of the frame, integers, or values of tensors."""
    found = sent.frame
    while found == sent.frame:
        found = _changed(sent, random)
    return found


def _changed(sent: Sent, random: Random) -> bytes:
    honest = frames.decode(sent.frame)
    wrong: dict[str, Any] = {
        field: random.choice(NUMBERS)
        for field, chance in (("round", 0.03), ("peer", 0.03), ("local", 0.03))
        if random.random() < chance
    }
    message = sent.message if random.random() < 0.9 else _with_other_numbers(sent, random)
    values, integers = _with_random_values(message, random), _with_random_integers(sent, message, random)
    sections = list(frames.decode(_frame_of(sent, replace(message, **values, **integers))).sections)
    for name in sent.message.number_names():
        if random.random() < 0.2:
            sections[sent.message.names().index(name)] = varint(random.choice(NUMBERS))
    if random.random() < 0.05:
        random.shuffle(sections)
    if sections and random.random() < 0.05:
        del sections[random.randrange(len(sections))]
    return frames.encode(replace(honest, **wrong, sections=tuple(sections)))


def _with_other_numbers(sent: Sent, random: Random) -> Message:
    """The message with another integer, and tensors and arrays of the sizes that belong with it."""
    numbers = sent.message.numbers()
    if not numbers:
        return sent.message
    name = random.choice([*numbers])
    numbers[name] = random.randrange(numbers[name] + 2)
    known: dict[str, Any] = {"held": 0, **numbers}
    tensors = sent.message.tensors()
    try:
        arrays = type(sent.message).integer_arrays(sent.context, known)
    except FrameError:
        return sent.message
    for name, array in arrays.items():
        typical = array.example()
        if len(typical) != len(tensors[name]):
            tensors[name] = torch.from_numpy(typical)
        known[name] = tensors[name].numpy()
    for name, spec in type(sent.message).specs(sent.context, known).items():
        if tuple(tensors[name].shape) != spec.shape:
            tensors[name] = torch.full(spec.shape, 1 / spec.shape[-1] if spec.count else 0.0)
    return type(sent.message)(**numbers, **tensors)


def _with_random_integers(sent: Sent, message: Message, random: Random) -> dict[str, Tensor]:
    """Arrays of integers with other values, most of them in range: some, all, or their order."""
    changed = {}
    for name, array in type(message).integer_arrays(sent.context, {"held": 0, **message.numbers()}).items():
        values = message.tensors()[name].clone()
        if not len(values) or random.random() < 0.5:
            continue
        if random.random() < 0.2:  # which leaves sums what they are
            changed[name] = values[random.sample(range(len(values)), len(values))]
            continue
        most = _most(array)
        for place in random.sample(
            range(len(values)), random.choice((1, -(-len(values) // 10), len(values)))
        ):
            others = (0, 1, most, -most, random.randrange(most + 1), int(values[place]) + 1, most + 1)
            values[place] = random.choice(others)
        changed[name] = values
    return changed


def _with_random_values(message: Message, random: Random) -> dict[str, Tensor]:
    """Tensors with other values: one, a row, or all of them, or their order."""
    changed = {}
    for name, values in message.tensors().items():
        if not values.is_floating_point() or not values.numel() or random.random() < 0.3:
            continue
        values = values.clone()
        rows = values.reshape(len(values), -1)
        row = random.randrange(len(rows))
        if random.random() < 0.2:  # which leaves probabilities what they are
            rows[:] = rows[:, random.sample(range(rows.shape[1]), rows.shape[1])]
        else:
            place = random.choice(((row, random.randrange(rows.shape[1])), row, slice(None)))
            value = random.choice(VALUES)
            rows[place] = rows[place] * value if random.random() < 0.3 else value
        changed[name] = values
    return changed

"""Lies of a client: whole frames with what no correct client sends, and a round that can receive them."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from fedistill.communication.messages.base import Message, MessageContext
from fedistill.communication.messages.masked import step_bits
from fedistill.communication.protocol import frame as frames
from fedistill.communication.protocol.endpoints import ClientEndpoint, ServerEndpoint
from fedistill.communication.protocol.frame import EVERYONE, Frame
from fedistill.communication.tensor_specs import Content
from fedistill.communication.varint import varint
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
    Content.WEIGHTS: ("nan", "inf", "huge", "x 1000"),
    Content.SCORES: ("nan", "inf", "huge"),
}
"""By what the numbers mean. Weights of zero, or scores a thousand times as large, may be honest."""
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
IN_PLACE_OF_HUGE = {"nan": float("nan"), "inf": float("inf")}
"""What no encoder writes, by the name of the lie."""


@dataclass
class Sent:
    """A client's honest reply, before and after it was coded."""

    message: Message
    context: MessageContext
    frame: bytes


class Scene:
    """A round of a method in which all clients have replied, and which the server can receive many times."""

    def __init__(self, row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
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
            if not METHODS[row.method].one_shot:
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
        replies = self._replies(lie)
        replies.finish()
        return {client: failure.reason for client, failure in replies.failures.items()}

    def learn_from(self, lie: bytes) -> None:
        """Let the server take its step, with this in place of the liar's reply.

        Raises:
            TrainingError: the step fails, or leaves NaN or infinite numbers.
        """
        replies = self._replies(lie)
        with SerialExecutor(self.wanted, self.arm.task) as executor:
            rounds._aggregate(self.run, self.arm, self.plan.number, replies, executor)

    def _replies(self, lie: bytes) -> Replies:
        endpoint, down = self._open()
        results = [
            (client, replace(result, frame=lie) if client == LIAR else result)
            for client, result in self.results
            if isinstance(result, ClientResult)
        ]
        check = rounds._reply_check(self.run, self.arm, self.plan.number)
        return Replies(self.arm, 0.0, check, endpoint, self.plan, down, iter(results))


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


def _with_number(sent: Sent, name: str, number: int) -> bytes:
    honest = frames.decode(sent.frame)
    sections = list(honest.sections)
    sections[sent.message.names().index(name)] = varint(number)
    return frames.encode(replace(honest, sections=tuple(sections)))


def value_lies(sent: Sent) -> Iterator[tuple[str, bytes]]:
    """Numbers that no correct client sends."""
    message, context = sent.message, sent.context
    arrays = {
        name: value.numpy() for name, value in message.tensors().items() if not value.is_floating_point()
    }
    for name, spec in type(message).specs(context, {"held": 0, **message.numbers(), **arrays}).items():
        values = getattr(message, name)
        if not spec.count or not values.any():
            continue
        for lie in MUST_BE_REFUSED[spec.content]:
            wrong = replace(message, **{name: LIES[lie](values)})
            frame = frames.decode(_as_fp32(sent, wrong))
            if lie in IN_PLACE_OF_HUGE:
                old, new = (struct.pack("<f", value) for value in (HUGE, IN_PLACE_OF_HUGE[lie]))
                sections = tuple(section.replace(old, new) for section in frame.sections)
                assert sections != frame.sections
                frame = replace(frame, sections=sections)
            yield f"{name} {lie}", frames.encode(frame)


def _as_fp32(sent: Sent, message: Message) -> bytes:
    """Return the frame of a message, whatever its numbers are."""
    sections = list(frames.decode(sent.frame).sections)
    for place, name in enumerate(message.names()[: len(sections)]):
        value = getattr(message, name)
        if isinstance(value, Tensor) and value.is_floating_point():
            sections[place] = value.contiguous().numpy().astype("<f4").tobytes()
    return frames.encode(replace(frames.decode(sent.frame), sections=tuple(sections)))


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
    sections = list(frames.decode(_as_fp32(sent, _with_random_values(sent, random))).sections)
    for name in sent.message.number_names():
        if random.random() < 0.2:
            sections[sent.message.names().index(name)] = varint(random.choice(NUMBERS))
    if random.random() < 0.05:
        random.shuffle(sections)
    if sections and random.random() < 0.05:
        del sections[random.randrange(len(sections))]
    return frames.encode(replace(honest, **wrong, sections=tuple(sections)))


def _with_random_values(sent: Sent, random: Random) -> Message:
    """The message with values of its tensors changed: one, a row, or all of them, or their order."""
    changed = {}
    for name, values in sent.message.tensors().items():
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
    return replace(sent.message, **changed)

"""What a lying client may send of every method: it alone is left out, and the reason says what it sent."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedistill.communication.messages.base import Message, MessageContext
from fedistill.communication.messages.classwise import ClassOutputs
from fedistill.communication.messages.masked import step_bits
from fedistill.communication.protocol import frame as frames
from fedistill.communication.protocol.endpoints import ClientEndpoint, ServerEndpoint
from fedistill.communication.protocol.frame import EVERYONE, Frame
from fedistill.communication.protocol.value_checks import check_growth, check_values
from fedistill.communication.tensor_specs import Content, TensorSpec
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
from helpers.method_rows import ROWS, Row

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
        wanted, self.arm = case.ready(arm={"codec": "fp32"} if _carries_numbers(arm) else {})
        self.sent: dict[int, Sent] = {}
        self.earlier: dict[int, bytes] = {}
        original = ClientEndpoint.reply

        def reply(endpoint: ClientEndpoint, message: Message, context: MessageContext) -> bytes:
            frame = original(endpoint, message, context)
            self.sent[endpoint._client] = Sent(message, context, frame)
            return frame

        monkeypatch.setattr(ClientEndpoint, "reply", reply)
        self.run: ArmRun = start_run(self.arm)
        with SerialExecutor(wanted, self.arm.task) as executor:
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
        endpoint, down = self._open()
        results = [
            (client, replace(result, frame=lie) if client == LIAR else result)
            for client, result in self.results
            if isinstance(result, ClientResult)
        ]
        check = rounds._reply_check(self.run, self.arm, self.plan.number)
        replies = Replies(self.arm, 0.0, check, endpoint, self.plan, down, iter(results))
        replies.finish()
        return {client: failure.reason for client, failure in replies.failures.items()}


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


WITH_UPLINK = [row for row in ROWS if METHODS[row.method].uplink is not None]


@pytest.mark.parametrize("row", WITH_UPLINK, ids=lambda row: row.name)
def test_a_liar_is_left_out_and_named(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(row, monkeypatch)
    honest = scene.sent[LIAR]
    assert not scene.refused(honest.frame)
    lies = [*frame_lies(scene), *number_lies(honest), *value_lies(honest)]
    assert len(lies) >= 6
    for name, lie in lies:
        found = scene.refused(lie)
        assert list(found) == [LIAR], f"{name}: {found or 'accepted'}"
        assert found[LIAR].startswith("its reply is refused: "), name


def test_what_is_said_of_numbers() -> None:
    def said(content: Content, *rows: list[float]) -> str:
        values = torch.tensor(rows).numpy()
        with pytest.raises(FrameError) as caught:
            check_values(values, TensorSpec(content, values.shape))
        return str(caught.value)

    assert (
        said(Content.PROBS, [0.5, 0.5], [0.5, 0.6])
        == "it has rows of probabilities that add up to 1.1, not to 1"
    )
    assert said(Content.PROBS, [1.5, -0.5]) == "it has a probability of -0.5"
    assert said(Content.PROBS, [float("nan"), 1.0]) == "it has numbers that are NaN or infinite"
    assert said(Content.SCORES, [2e6, 0.0]) == "it has a number of size 2e+06; 1e+06 is the most"
    check_values(torch.tensor([[0.996, 0.0], [0.3, 0.7]]).numpy(), TensorSpec(Content.PROBS, (2, 2)))
    with pytest.raises(FrameError, match="its weights have a root mean square of 50; 20 is the most here"):
        check_growth(torch.full((4,), 50.0).numpy(), sent=0.2)
    check_growth(torch.full((4,), 9.9).numpy(), sent=0.0)


def test_mean_probabilities_a_thousand_times_too_large_are_refused() -> None:
    (spec,) = ClassOutputs.specs(MessageContext(classes=2), {}).values()
    honest = torch.tensor([[0.9, 0.1], [0.0, 0.0]]).numpy()
    check_values(honest, spec)
    with pytest.raises(FrameError, match="it has a number of size 900; 100 is the most"):
        check_values(honest * 1000, spec)

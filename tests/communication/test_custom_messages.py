"""Messages as another package would write them: a class, and nothing to register."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedistill.communication.codecs.registry import create_codec
from fedistill.communication.kinds import Kind
from fedistill.communication.messages.base import Message, MessageContext, Numbers
from fedistill.communication.messages.labels import FreshLabels, Logits
from fedistill.communication.protocol.endpoints import ClientEndpoint, ServerEndpoint
from fedistill.communication.protocol.message_coder import MessageCoder
from fedistill.communication.protocol.shared_state import EMPTY
from fedistill.communication.tensor_specs import Content, TensorSpec
from fedistill.errors import ExperimentError, FrameError

SIZES = MessageContext(classes=3, width=2)


@dataclass(frozen=True)
class Covariance(Message):
    """Second moments of features (d, d), over ``count`` samples."""

    kind = 64
    moments: Tensor
    count: int

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return {"moments": TensorSpec(Content.SCORES, (context.width, context.width))}


@dataclass(frozen=True)
class Projection(Message):
    """A matrix (d, d) by which features are turned."""

    kind = 64
    matrix: Tensor

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return {"matrix": TensorSpec(Content.SCORES, (context.width, context.width))}


@dataclass(frozen=True)
class Other(Projection):
    kind = 65


def coder_of(*messages: type[Message]) -> MessageCoder:
    return MessageCoder(create_codec("fp32"), create_codec("fp32"), seed=0, messages=messages)


def test_an_exchange_of_two_messages_of_one_number() -> None:
    coder = coder_of(Covariance, Projection)
    server = ServerEndpoint(coder, {}, lambda client: EMPTY, 1)
    client = ClientEndpoint(coder, {}, EMPTY, 1, 0)
    down = server.send(0, "all", Projection(torch.eye(2)), SIZES)
    assert torch.equal(client.receive(Projection, down, SIZES).matrix, torch.eye(2))
    up = client.reply(Covariance(torch.ones(2, 2), 300), SIZES)
    came = server.receive(0, Covariance, up, SIZES)
    assert came is not None
    assert (came.count, came.moments.tolist()) == (300, [[1, 1], [1, 1]])
    # 11 for the frame, 1 for the length of each section, 4 for each number, and 2 for a varint above 127.
    assert (len(down), len(up)) == (11 + 1 + 16, 11 + 1 + 16 + 1 + 2)
    assert down[3] == up[3] == 64


def test_another_number_is_refused_by_name() -> None:
    coder = coder_of(Other, Projection)
    down = ServerEndpoint(coder, {}, lambda client: EMPTY, 1).send(0, "all", Other(torch.eye(2)), SIZES)
    for expected, belong in ((Projection, "custom-64"), (Logits, "logits")):
        with pytest.raises(FrameError, match=f"^a frame of custom-65 came where {belong} belong$"):
            ClientEndpoint(coder, {}, EMPTY, 1, 0).receive(expected, down, SIZES)


@pytest.mark.parametrize("kind", [0, 4, 63, 128, 200, -1, "64", None, True, 64.0, np.int64(64)])
def test_a_kind_that_is_neither_is_refused(kind: Any) -> None:
    odd = type("Odd", (Projection,), {"kind": kind, "__module__": "their.module"})
    with pytest.raises(ExperimentError) as caught:
        coder_of(odd)
    assert str(caught.value) == (
        f"message their.module:Odd: kind is {kind!r}; write a number from 64 to 127, for example `kind = 64`"
        " (only messages in fedistill.communication have a member of Kind)"
    )


def test_a_message_without_a_kind_is_refused() -> None:
    @dataclass(frozen=True)
    class Bare(Message):
        matrix: Tensor

    with pytest.raises(ExperimentError, match="Bare: kind is None; write a number from 64 to 127"):
        coder_of(Bare)


def test_a_subclass_of_ours_may_keep_its_kind() -> None:
    assert coder_of(type("Theirs", (Logits,), {})).remembers is False
    assert Logits.kind is Kind.LOGITS


@pytest.mark.parametrize(
    ("base", "once", "said"),
    [
        (Covariance, {"moment"}, "once names 'moment', which is no tensor of it. Did you mean 'moments'?"),
        (Covariance, {"count"}, "once names 'count', which is no tensor of it."),
        (FreshLabels, {"probs"}, "a message that caches has no field that is sent once"),
    ],
)
def test_fields_that_cannot_be_sent_once_are_refused(base: type[Message], once: set[str], said: str) -> None:
    odd = type("Odd", (base,), {"once": frozenset(once)})
    with pytest.raises(ExperimentError) as caught:
        coder_of(odd)
    assert f":Odd: {said}" in str(caught.value)

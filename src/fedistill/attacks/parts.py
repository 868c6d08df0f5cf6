"""The parts of a client's message that an attack can change, by what their numbers mean."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fedistill.communication.messages.base import Message, MessageContext, contents
from fedistill.communication.messages.bridge import BridgeReply
from fedistill.communication.messages.classwise import ClassOutputs, Prototypes, WeightsAndOutputs
from fedistill.communication.messages.labels import Logits, Votes
from fedistill.communication.messages.masked import MaskedReply
from fedistill.communication.messages.private_samples import PrivateLogits, PrivateOutputs
from fedistill.communication.messages.statistics import MOST_MEAN, FeatureMoments
from fedistill.communication.tensor_specs import Content


class Role(Enum):
    """What the rows or numbers of a part stand for, in words."""

    PROBS = "class probabilities"
    LOGITS = "logits"
    CLASS_OUTPUTS = "outputs of each class"
    PROTOTYPES = "prototypes"
    MEANS = "class means"
    WEIGHTS = "weights"
    CHANGES = "changes of weights"


@dataclass(frozen=True)
class Part:
    """A part of a message.

    Attributes:
        values: rows (n, C) of probabilities, logits or class outputs; rows (m, d) of prototypes or class
            means; flat weights (P,) without buffers, or changes of weights (m,).
        received: the weights (P,) that the client was sent; None for other parts.
        classes: the class (m,) that each row of prototypes or class means is of; None for other parts.
        put: returns the message with other values, of the same shape, in their place.
    """

    role: Role
    values: Tensor
    put: Callable[[Message, Tensor], Message]
    received: Tensor | None = None
    classes: Tensor | None = None


_SCORES: dict[tuple[type[Message], str], Role] = {
    (Logits, "scores"): Role.LOGITS,
    (PrivateLogits, "scores"): Role.LOGITS,
    (PrivateOutputs, "scores"): Role.LOGITS,
    (ClassOutputs, "means"): Role.CLASS_OUTPUTS,
    (WeightsAndOutputs, "means"): Role.CLASS_OUTPUTS,
    (Prototypes, "vectors"): Role.PROTOTYPES,
}
"""Scores that are knowledge; others are counts and shares, which the server checks where it can."""


def roles_of(kind: type[Message]) -> set[Role]:
    """Return what messages of a type have for attacks to change."""
    if kind is BridgeReply:
        return {Role.PROBS, Role.CHANGES}
    if kind is MaskedReply:
        return {Role.CHANGES}
    if kind is FeatureMoments:
        return {Role.MEANS}
    roles = {role for (message, _), role in _SCORES.items() if message is kind}
    by_content = {Content.PROBS: Role.PROBS, Content.WEIGHTS: Role.WEIGHTS}
    return roles | {by_content[content] for content in contents(kind) if content in by_content}


def parts_of(message: Message, received: Message | None, context: MessageContext) -> Iterator[Part]:
    """Yield the parts of a client's message.

    Args:
        received: the message that it answers.
    """
    kind = type(message)
    if isinstance(message, MaskedReply | BridgeReply) and len(message.changes):
        yield Part(Role.CHANGES, message.changes, _putting("changes"))
    if isinstance(message, BridgeReply) and (message.votes < context.classes).any():
        voted = message.votes[message.votes < context.classes]
        yield Part(Role.PROBS, one_hot(voted, context.classes).float(), _put_bridge_votes)
    if isinstance(message, FeatureMoments) and message.present:
        means = message.means.reshape(message.present, -1).clone()
        means[1:] += means[:1].clone()
        yield Part(Role.MEANS, means.float(), _put_means, classes=message.classes)
    for name, value in message.tensors().items():
        role = _SCORES.get((kind, name))
        if role is not None and len(value):
            classes = message.classes if isinstance(message, Prototypes) else None
            yield Part(role, value, _putting(name), classes=classes)
    numbers = {"held": 0, **message.numbers()}
    arrays = {name: value.numpy() for name, value in message.tensors().items() if value.dtype == torch.int64}
    for name, spec in kind.specs(context, {**numbers, **arrays}).items():
        value = getattr(message, name)
        if spec.content is Content.PROBS and len(value):
            yield Part(Role.PROBS, value, _put_votes if kind is Votes else _putting(name))
        elif spec.content is Content.WEIGHTS and len(value):
            before = getattr(received, name, None)
            kept = len(value) - spec.plain
            if isinstance(before, Tensor) and before.shape == value.shape:
                put = _putting(name, value[kept:])
                yield Part(Role.WEIGHTS, value[:kept], put, received=before[:kept])


def _putting(name: str, after: Tensor | None = None) -> Callable[[Message, Tensor], Message]:
    """Return what puts values, with ``after`` behind them, in the place of a field."""

    def put(message: Message, values: Tensor) -> Message:
        whole = values if after is None else torch.cat([values, after])
        return replace(message, **{name: whole})

    return put


def _put_votes(message: Message, values: Tensor) -> Message:
    assert isinstance(message, Votes)
    return replace(message, probs=one_hot(values.argmax(dim=1), values.shape[1]).float())


def _put_bridge_votes(message: Message, values: Tensor) -> Message:
    assert isinstance(message, BridgeReply)
    votes = message.votes.clone()
    votes[votes < values.shape[1]] = values.argmax(dim=1)
    return replace(message, votes=votes)


def _put_means(message: Message, values: Tensor) -> Message:
    assert isinstance(message, FeatureMoments)
    whole = values.round().long().clamp(-MOST_MEAN, MOST_MEAN)
    whole[1:] -= whole[:1].clone()
    return replace(message, means=whole.flatten())

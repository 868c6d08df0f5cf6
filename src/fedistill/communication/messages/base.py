"""Typed messages: what a method sends, as tensors and integers.

A message is a frozen dataclass. Its tensors are coded by the arm's codec, its integers as varints, and its
arrays of integers without loss (`integer_arrays`). The receiver knows beforehand how large each of them is
(`MessageContext`); nothing in a frame can change that.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedistill.communication.kinds import CUSTOM, Kind
from fedistill.communication.messages.integer_arrays import NO_INTEGERS, IntegerArray, StartIntegers
from fedistill.communication.tensor_specs import Classes, Content, TensorSpec
from fedistill.errors import ExperimentError, nearest


@dataclass(frozen=True)
class MessageContext:
    """What both sides know about a message before it is sent.

    Attributes:
        classes: C, the number of classes.
        parameters: P, the number of weights of the model that travels, or 0 if none travels.
        samples: n, the number of public samples that a message describes, or the most that it may describe.
        parts: shapes of the tensors that the travelling weights consist of, buffers not counted.
        buffers: how many of the weights, the last ones, are those of buffers.
        integers: the integers in the travelling model's buffers before round 1.
        population: N, the size of the public set.
        sampled: maps a round to the indices (n,) of its public samples.
        since: maps two turns to the indices of the samples that got a label after the first turn and not
            after the second.
        width: d, the length of a feature vector, or the number of different words.
        length: the most words of a text.
        generator: shapes of the tensors that a generator of features consists of.
        private: the number of samples in the client's private set.
        client: the client at this end of the link.
        weights: the number of private samples of each client, by which the server may weight what they send.
        trained: maps the number of a merge to flags (P,) of the weights that are trained for it.
        settings: integers of the message, by name, that the arm's settings determine.
    """

    classes: int
    parameters: int = 0
    samples: int = 0
    parts: tuple[tuple[int, ...], ...] = ()
    population: int = 0
    sampled: Callable[[int], Classes] | None = None
    since: Callable[[int, int], Classes] | None = None
    trained: Callable[[int], Tensor] | None = None
    width: int = 0
    length: int = 0
    generator: tuple[tuple[int, ...], ...] = ()
    private: int = 0
    client: int = 0
    weights: tuple[int, ...] = ()
    buffers: int = 0
    integers: StartIntegers = NO_INTEGERS
    settings: Mapping[str, int] = field(default_factory=dict)


Numbers = Mapping[str, Any]
"""What is read of a message before its tensors: its integers, and its arrays (n,) of integers."""


@dataclass(frozen=True)
class Message:
    """Base of all messages; subclasses are frozen dataclasses and final."""

    kind: ClassVar[int]
    """A member of `Kind`; for a message outside `fedistill.communication`, a number from 64 to 127."""
    caches: ClassVar[bool] = False
    """The message describes all public samples; only the rows that the receiver does not hold are sent."""
    varies: ClassVar[bool] = False
    """The sender chooses how much the message has; `longest` is the most."""

    once: ClassVar[frozenset[str]] = frozenset()
    """Tensors and integer arrays that are sent only until the receiver is known to have them.

    The message always has the full value, at the sender and at the receiver. What crosses is the value's
    bytes where the receiver does not hold the same ones yet, else a mark of one byte. Such a tensor is coded
    on its own, without regard to earlier messages, so that equal values have equal bytes under every codec.
    """

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        """Return what is sent of each tensor, given the message's integers and arrays of integers.

        If the message caches, ``numbers`` also has ``held``: the turn of the labels in the receiver's cache.
        """
        raise NotImplementedError

    @classmethod
    def integer_arrays(cls, context: MessageContext, numbers: Numbers) -> dict[str, IntegerArray]:
        """Return what is sent of each array of integers, given the message's integers; most have no array.

        Raises:
            FrameError: an integer from the other side makes no sense.
        """
        return {}

    def check(self) -> None:
        """Check the integers of a client's message; all numbers of its tensors are finite.

        Raises:
            FrameError: one of them is not in its range; the client is left out of the round.
        """

    @classmethod
    def longest(cls, context: MessageContext) -> Numbers:
        """Return the integers of a message of full size."""
        return dict.fromkeys(cls.number_names(), 1)

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the fields, in the order in which they are sent."""
        return [*_fields(cls).names]

    @classmethod
    def needed_names(cls) -> list[str]:
        """Return the names of the fields without a default, which come first; others may be left out."""
        return [*_fields(cls).needed]

    @classmethod
    def number_names(cls) -> list[str]:
        """Return the names of the fields that are integers."""
        return [*_fields(cls).numbers]

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors, those of integers among them."""
        alone = self.number_names()
        return {name: getattr(self, name) for name in self.names() if name not in alone}

    def numbers(self) -> dict[str, int]:
        """Return the integers."""
        return {name: getattr(self, name) for name in self.number_names()}


class _Fields(NamedTuple):
    names: tuple[str, ...]
    needed: tuple[str, ...]
    numbers: tuple[str, ...]


_FIELDS: dict[type[Message], _Fields] = {}


def _fields(kind: type[Message]) -> _Fields:
    """Return the names of a class's fields, worked out once for all of its messages."""
    if kind not in _FIELDS:
        found = fields(kind)
        needed = (one for one in found if one.default is MISSING and one.default_factory is MISSING)
        _FIELDS[kind] = _Fields(
            tuple(one.name for one in found),
            tuple(one.name for one in needed),
            tuple(one.name for one in found if one.type in (int, "int")),
        )
    return _FIELDS[kind]


def check_message(message: type[Message]) -> None:
    """Refuse a class of messages that could not be sent.

    Raises:
        ExperimentError: its kind, or a field that it declares to be sent once, is not one that it may have.
    """
    where = f"message {message.__module__}:{message.__qualname__}"
    kind = getattr(message, "kind", None)
    if not isinstance(kind, Kind) and (type(kind) is not int or kind not in CUSTOM):
        raise ExperimentError(
            f"{where}: kind is {kind!r}; write a number from {CUSTOM[0]} to {CUSTOM[-1]}, for example"
            f" `kind = {CUSTOM[0]}` (only messages in fedistill.communication have a member of Kind)"
        )
    numbers = message.number_names()
    may = [name for name in message.names() if name not in numbers]
    for name in sorted(message.once):
        if name not in may:
            raise ExperimentError(
                f"{where}: once names {name!r}, which is no tensor of it.{nearest(name, may)}"
                f" Tensors: {', '.join(may) or 'none'}"
            )
    described = _described(message)
    if described != {*may}:
        wrong = sorted(described ^ {*may})
        raise ExperimentError(
            f"{where}: specs and integer_arrays together must describe each of its tensors, but not so"
            f" {', '.join(map(repr, wrong))}.{nearest(wrong[0], may)} Tensors: {', '.join(may) or 'none'}"
        )
    if message.once and message.caches:
        raise ExperimentError(f"{where}: a message that caches has no field that is sent once")


def contents(kind: type[Message]) -> set[Content]:
    """Return what the tensors mean that a codec has to code."""
    return {spec.content for spec in _smallest(kind)[1].values()}


def _described(kind: type[Message]) -> set[str]:
    """Return the names that a class of messages describes, of arrays and of tensors."""
    arrays, specs = _smallest(kind)
    return {*arrays, *specs}


def _smallest(kind: type[Message]) -> tuple[list[str], dict[str, TensorSpec]]:
    """Return the names of the integer arrays, and the specs of the tensors, of a message about nothing."""
    context, numbers = MessageContext(classes=2), {"held": 0, **dict.fromkeys(kind.number_names(), 0)}
    arrays = [*kind.integer_arrays(context, numbers)]
    none = {name: np.zeros(0, np.int64) for name in arrays}
    return arrays, kind.specs(context, {**numbers, **none})


def example_message(kind: type[Message], context: MessageContext) -> Message:
    """Return a message of full size with random tensors, to predict how many bytes one will take."""
    generator = torch.Generator().manual_seed(0)
    numbers = {"held": 0, **kind.longest(context)}
    integer_arrays = {name: whole.example() for name, whole in kind.integer_arrays(context, numbers).items()}
    values: dict[str, int | Tensor] = {name: numbers[name] for name in kind.number_names()}
    values |= {name: torch.from_numpy(whole) for name, whole in integer_arrays.items()}
    for name, spec in kind.specs(context, {**numbers, **integer_arrays}).items():
        rows = context.population if kind.caches else spec.shape[0]
        noise = torch.randn(rows, *spec.shape[1:], generator=generator)
        values[name] = noise.softmax(dim=1) if spec.content is Content.PROBS else noise
    return kind(**values)

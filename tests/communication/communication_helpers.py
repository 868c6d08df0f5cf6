"""What several test files of this folder share: a small world, toy codecs, and messages for each round."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedistill.communication.codecs.base import Codec, Decoded, Encoded, NoSettings, Sender
from fedistill.communication.codecs.registry import create_codec
from fedistill.communication.kinds import Kind
from fedistill.communication.messages.base import Message, MessageContext, Numbers
from fedistill.communication.messages.integer_arrays import IntegerArray, Symbols
from fedistill.communication.messages.labels import FreshLabels
from fedistill.communication.messages.weights import Weights
from fedistill.communication.protocol.shared_state import SharedState, StatePart
from fedistill.communication.tensor_specs import Content, Floats, SharedKnowledge, TensorSpec
from fedistill.errors import FrameError
from fedistill.state import State

POPULATION = 12


def since(held: int, turn: int) -> Any:
    """A label comes in turns 1, 2, 3, 4, 1, 2, … of the sample's place, once."""
    turns = np.arange(POPULATION) % 4 + 1
    return np.flatnonzero((turns > held) & (turns <= turn))


SIZES = MessageContext(
    classes=3,
    parameters=10,
    samples=5,
    parts=((2, 4), (2,)),
    population=POPULATION,
    drawn=lambda round: (np.arange(5) * 2 + round) % POPULATION,
    since=since,
    width=6,
    generator=((2, 3), (4,)),
    private=4,
)


# Toy messages


@dataclass(frozen=True)
class Described(Message):
    """Logits (n, C) of a client's private samples, and once their features (n, d) and classes (n,)."""

    kind = Kind.PRIVATE_LOGITS
    once = frozenset({"features", "labels"})
    scores: Tensor
    features: Tensor
    labels: Tensor

    @classmethod
    def integer_arrays(cls, context: MessageContext, numbers: Numbers) -> dict[str, IntegerArray]:
        return {"labels": Symbols(context.private, context.classes)}

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return {
            "scores": TensorSpec(Content.SCORES, (context.private, context.classes)),
            "features": TensorSpec(Content.SCORES, (context.private, context.width)),
        }


@dataclass(frozen=True)
class WithBackbone(Message):
    """Weights, flat (P,), and once those of a part that nobody trains."""

    kind = Kind.WEIGHTS
    once = frozenset({"backbone"})
    values: Tensor
    backbone: Tensor

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        count = sum(math.prod(shape) for shape in context.generator)
        return {
            **Weights.specs(context, numbers),
            "backbone": TensorSpec(Content.WEIGHTS, (count,), context.generator),
        }


def once_seed(round: int, client: int) -> int:
    """Names the values that are sent once: they are others in every fourth round."""
    return 500 + 10 * (abs(round) // 4) + client


# Toy codecs


class Toy(Codec):
    """A codec without settings, that counts what it codes."""

    lossiness = "nothing"

    def __init__(self) -> None:
        super().__init__(NoSettings())
        self.coded = 0


class Plain(Toy):
    """fp32 that counts its messages."""

    name = "plain"

    def encode(self, values: Floats, spec: TensorSpec, known: SharedKnowledge, sender: Sender) -> Encoded:
        self.coded += 1
        return create_codec("fp32").encode(values, spec, known, sender)

    def decode(self, payload: bytes, spec: TensorSpec, known: SharedKnowledge) -> Decoded:
        return create_codec("fp32").decode(payload, spec, known)


class Witness(Toy):
    """Writes numbers as they are, behind a digest of all that it knows; refuses another's knowledge."""

    name = "witness"
    remembers = True
    relative = True

    def encode(self, values: Floats, spec: TensorSpec, known: SharedKnowledge, sender: Sender) -> Encoded:
        self.coded += 1
        return Encoded(knowledge(known) + values.tobytes(), self._after(values, known))

    def decode(self, payload: bytes, spec: TensorSpec, known: SharedKnowledge) -> Decoded:
        if payload[:4] != knowledge(known):
            raise FrameError("OUT OF STEP")
        values = np.frombuffer(payload[4:], np.float32).copy().reshape(spec.shape)
        return Decoded(values, self._after(values, known))

    def _after(self, values: Floats, known: SharedKnowledge) -> State:
        if not self.remembers:
            return {}
        return {"messages": known.memory.get("messages", 0) + 1, "last": torch.from_numpy(values.copy())}


class Changes(Toy):
    """Writes how the bits of the numbers differ from those of the last message; counts messages."""

    name = "changes"
    remembers = True

    def encode(self, values: Floats, spec: TensorSpec, known: SharedKnowledge, sender: Sender) -> Encoded:
        self.coded += 1
        bits = values.view(np.int32) ^ self._last(spec, known)
        return Encoded(bits.tobytes(), self._after(values, known))

    def decode(self, payload: bytes, spec: TensorSpec, known: SharedKnowledge) -> Decoded:
        bits = np.frombuffer(payload, np.int32).reshape(spec.shape)
        values = (bits ^ self._last(spec, known)).view(np.float32)
        return Decoded(values, self._after(values, known))

    @staticmethod
    def _last(spec: TensorSpec, known: SharedKnowledge) -> Any:
        if not known.memory or known.memory["last"].shape != spec.shape:
            return np.zeros(spec.shape, np.int32)
        return known.memory["last"].numpy().view(np.int32)

    @staticmethod
    def _after(values: Floats, known: SharedKnowledge) -> State:
        return {"messages": known.memory.get("messages", 0) + 1, "last": torch.from_numpy(values.copy())}


class Halving(Toy):
    """Relative, with feedback: sends half of the way from the reference, and keeps the rest for later.

    What it kept is written down, so that a test can see what it had: ``seen``, by client and round.
    """

    name = "halving"
    lossiness = "half of the way"
    codes = frozenset({Content.WEIGHTS})
    relative = True
    keeps = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[State | None] = []

    def encode(self, values: Floats, spec: TensorSpec, known: SharedKnowledge, sender: Sender) -> Encoded:
        self.seen.append(sender.own)
        own = {"messages": [*(sender.own or {}).get("messages", []), float(values[0])]}
        way = values - (0 if known.reference is None else known.reference)
        return Encoded((way / 2).astype(np.float32).tobytes(), own={} if sender.own is None else own)

    def decode(self, payload: bytes, spec: TensorSpec, known: SharedKnowledge) -> Decoded:
        half = np.frombuffer(payload, np.float32)
        return Decoded(half + (np.float32(0) if known.reference is None else known.reference))


def knowledge(known: SharedKnowledge) -> bytes:
    """4 bytes of all that both sides know."""
    state: State = {"memory": known.memory}
    for name, array in (("reference", known.reference), ("told", known.other_labels)):
        if array is not None:
            state[name] = torch.from_numpy(np.ascontiguousarray(array))
    return StatePart(state).digest[:4]


def digests(memory: SharedState) -> dict[str, bytes]:
    return {name: part.digest for name, part in memory.parts.items()}


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def message(kind: type[Message], round: int, client: int) -> Message:
    """The message of this round, negative for one down, and client; a label does not change once it came."""
    numbers = {name: abs(round) if name in ("drawn", "turn") else 7 for name in kind.number_names()}
    generator = generator_of(0 if kind is FreshLabels else 1000 + 10 * round + client)
    numbers |= {name: 3 for name in ("chosen", "present") if name in numbers}
    numbers |= {name: 1 for name in ("labelled",) if name in numbers}
    integer_arrays = {name: whole.example() for name, whole in kind.integer_arrays(SIZES, numbers).items()}
    fields: dict[str, Any] = {
        **numbers,
        **{name: torch.from_numpy(array) for name, array in integer_arrays.items()},
    }
    for name, spec in kind.specs(SIZES, {**numbers, **integer_arrays, "held": 0}).items():
        shape = (POPULATION, SIZES.classes) if kind.caches else spec.shape
        seeded = generator if name not in kind.once else generator_of(once_seed(round, client))
        noise = torch.randn(shape, generator=seeded)
        fields[name] = noise.softmax(dim=1) if spec.content is Content.PROBS else noise
    return kind(**fields)

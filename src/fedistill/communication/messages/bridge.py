"""Messages of the method `bridge`: votes and pooled labels first, then changes of some weights at a time.

Changes are relative to a start, a model that both sides make from the same labels (`messages.masked`).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedistill.communication.kinds import Kind
from fedistill.communication.messages.base import Message, MessageContext, Numbers
from fedistill.communication.messages.integer_arrays import IntegerArray, Symbols
from fedistill.communication.messages.masked import STEPS, chain_arrays, change_arrays, check_changes
from fedistill.communication.tensor_specs import TensorSpec
from fedistill.errors import FrameError

LEVELS, VOTES, WEIGHTS = 1, 2, 4
"""What a request asks for and a reply contains, as bits of ``asks`` and ``has``."""
MOST_LEVEL = 64
"""Class levels are below this (`fedistill.methods.shared.expertise`)."""


@dataclass(frozen=True)
class BridgeRequest(Message):
    """What the server asks of a client, and what the client needs to answer.

    Attributes:
        asks: bits of `LEVELS`, `VOTES`, `WEIGHTS`.
        labelled: 1 if it has the pooled labels, else 0.
        voted: how many public samples the receiver voted on, as the server knows.
        given: 1 if it has weights, since the start that the receiver made differs; else 0.
        turn: with `WEIGHTS`, the number of the next merge; else 0.
        known: the number of the last merge whose change the receiver has.
        thresholds: (C,) the least level at which a client votes for a class, with `VOTES`; else (0,).
        agreement: (voted,) for the samples that the receiver voted on, 0 if the pooled label is its vote,
            else 1 + the label.
        labels: (n - voted,) labels of the other samples; C for a sample that nobody labelled.
        start: (2P,) bytes of the given weights after merge ``known``, as fp16, or (0,).
        steps, changes: of the merges after ``known``, as in `MaskedRequest`.
    """

    kind = Kind.BRIDGE_REQUEST
    varies = True
    asks: int
    labelled: int
    voted: int
    given: int
    turn: int
    known: int
    thresholds: Tensor
    agreement: Tensor
    labels: Tensor
    start: Tensor
    steps: Tensor
    changes: Tensor

    @classmethod
    def asking(cls, asks: int, thresholds: Tensor) -> "BridgeRequest":
        """Return a request for levels and votes."""
        none = torch.zeros(0, dtype=torch.int64)
        return cls(asks, 0, 0, 0, 0, 0, thresholds, none, none, none, none, none)

    @classmethod
    def integer_arrays(cls, context: MessageContext, numbers: Numbers) -> dict[str, IntegerArray]:
        asks, voted = numbers["asks"], numbers["voted"]
        labelled, given = min(numbers["labelled"], 1), min(numbers["given"], 1)
        if asks > LEVELS | VOTES | WEIGHTS or voted > context.samples:
            raise FrameError(f"a request asks for {asks}, given {voted} votes on {context.samples} samples")
        return {
            "thresholds": Symbols(context.classes if asks & VOTES else 0, MOST_LEVEL),
            "agreement": Symbols(labelled * voted, context.classes + 2),
            "labels": Symbols(labelled * (context.samples - voted), context.classes + 1),
            "start": Symbols(given * 2 * context.parameters, 256),
            **chain_arrays(context, numbers),
        }

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return {}

    @classmethod
    def longest(cls, context: MessageContext) -> Numbers:
        return {"asks": WEIGHTS, "labelled": 1, "voted": 0, "given": 0, "turn": 2, "known": 0}

    def pooled(self, votes: Tensor, classes: int) -> Tensor | None:
        """Return the pooled labels (n,), C where there is none; None if ``votes`` (n,) are others than meant.

        Args:
            votes: what this client voted for; C where it did not.
        """
        named = votes < classes if self.voted else torch.zeros_like(votes, dtype=torch.bool)
        if int(named.sum()) != self.voted:
            return None
        found = torch.empty_like(votes)
        found[named] = torch.where(self.agreement == 0, votes[named], self.agreement - 1)
        found[~named] = self.labels
        return found


@dataclass(frozen=True)
class BridgeReply(Message):
    """A client's answer to a `BridgeRequest`.

    Attributes:
        has: bits of `LEVELS`, `VOTES`, `WEIGHTS`.
        digest: of the start that this client made, 32 bits; 0 without one.
        turn: with `WEIGHTS`, the number of the merge that the changes are for; else 0.
        step: of the changes.
        levels: (C,) about how many private samples of each class the client has, with `LEVELS`; else (0,).
        votes: (n,) the class of each public sample, C where the client abstains, with `VOTES`; else (0,).
        changes: (m,) of the weights that were trained, in steps, with `WEIGHTS`; else (0,).
    """

    kind = Kind.BRIDGE_REPLY
    varies = True
    has: int
    digest: int
    turn: int
    step: int
    levels: Tensor
    votes: Tensor
    changes: Tensor

    @classmethod
    def telling(cls, has: int, levels: Tensor, votes: Tensor) -> "BridgeReply":
        """Return a reply with levels and votes, or with nothing."""
        return cls(has, 0, 0, 0, levels, votes, torch.zeros(0, dtype=torch.int64))

    @classmethod
    def integer_arrays(cls, context: MessageContext, numbers: Numbers) -> dict[str, IntegerArray]:
        has = numbers["has"]
        if has > LEVELS | VOTES | WEIGHTS or bool(has & WEIGHTS) != bool(numbers["turn"]):
            raise FrameError(f"a reply claims to have {has}, for merge {numbers['turn']}")
        return {
            "levels": Symbols(context.classes if has & LEVELS else 0, MOST_LEVEL),
            "votes": Symbols(context.samples if has & VOTES else 0, context.classes + 1),
            **change_arrays(context, numbers),
        }

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return {}

    @classmethod
    def longest(cls, context: MessageContext) -> Numbers:
        return {"has": WEIGHTS, "digest": 1 << 31, "turn": 1, "step": STEPS - 1}

    def check(self) -> None:
        check_changes(self.step, self.changes)


def as_bytes(weights: Tensor) -> Tensor:
    """Return weights (P,) as the bytes of fp16, int64 (2P,), clipped to its range."""
    most = float(np.finfo(np.float16).max)
    halves = weights.clamp(-most, most).numpy().astype("<f2")
    return torch.from_numpy(np.frombuffer(halves.tobytes(), np.uint8).astype(np.int64))


def from_bytes(given: Tensor) -> Tensor:
    """Return the weights, float32 (P,), that `as_bytes` made bytes (2P,) of."""
    return torch.from_numpy(np.frombuffer(given.numpy().astype(np.uint8).tobytes(), "<f2").astype(np.float32))

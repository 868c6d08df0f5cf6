"""What the two sides of `bridge` keep, and the model that they have in common."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedistill.communication.messages.bridge import (
    LEVELS,
    VOTES,
    WEIGHTS,
    BridgeReply,
    BridgeRequest,
    as_bytes,
    from_bytes,
)
from fedistill.methods.base import Reply
from fedistill.methods.participants import Server
from fedistill.methods.shared.expertise import pool_votes, sizes, thresholds
from fedistill.training.model_state import ModelState

NONE = torch.zeros(0, dtype=torch.int64)
"""An array of integers that a message does not have."""


@dataclass(frozen=True)
class BridgeClient:
    """A client's last model, its votes (n,) and its start (P,); the latter are (0,) before it has them."""

    model: ModelState
    votes: Tensor
    start: Tensor


@dataclass(frozen=True)
class BridgeServer:
    """The state of a server that collects levels, then votes, then weights.

    Attributes:
        model: the server's own model.
        levels: (K, C) of each client (`class_levels`), -1 for clients that have not said theirs.
        votes: (K, n), C for an abstention, -1 for clients that have not voted.
        informed: (K,) whether a client has the pooled labels, or a start that it was given.
        given: (K,) whether a client is given the start, since the one that it made differs.
        labels: (n,) pooled labels, C for none.
        starts: the model of each of the clients' architectures that was made from the labels, by name; none
            until enough clients have voted.
        merged: what these have become.
    """

    model: ModelState
    levels: Tensor
    votes: Tensor
    informed: Tensor
    given: Tensor
    labels: Tensor
    starts: dict[str, ModelState] = field(default_factory=dict)
    merged: dict[str, ModelState] = field(default_factory=dict)

    @classmethod
    def before_round_1(cls, model: ModelState, clients: int, samples: int, classes: int) -> "BridgeServer":
        """Return a state in which the server knows nothing of its clients."""
        nobody = torch.zeros(clients, dtype=torch.bool)
        unknown = torch.full((clients, classes), -1), torch.full((clients, samples), -1)
        return cls(model, *unknown, nobody, nobody, NONE)

    def asks(self, client: int) -> int:
        """Return what to ask of a client, as bits: levels first, then votes, then weights; 0 for nothing."""
        if self.starts:
            return WEIGHTS
        unknown = int(self.levels[client, 0]) < 0
        if unknown and not (self.levels >= 0).any():
            return LEVELS
        return (LEVELS if unknown else 0) | (VOTES if int(self.votes[client, 0]) < 0 else 0)

    def start_of(self, client: int, name: str) -> Tensor:
        """Return the start (P,) that a client's weights are relative to."""
        start = self.starts[name].weights
        return from_bytes(as_bytes(start)) if self.given[client] else start

    def request(self, client: int, name: str, coverage: float) -> BridgeRequest | None:
        """Return what to send to a client with this model; None if nothing is asked of it."""
        asks = self.asks(client)
        if not asks:
            return None
        if not asks & WEIGHTS:
            known = self.levels[self.levels[:, 0] >= 0]
            least = thresholds(known, coverage) if asks & VOTES else NONE
            return BridgeRequest(torch.zeros(0), asks, 0, 0, 0, least, NONE, NONE, NONE)
        moved = self.merged[name].weights - self.start_of(client, name)
        if self.informed[client]:
            return BridgeRequest(moved, asks, 0, 0, 0, NONE, NONE, NONE, NONE)
        if self.given[client]:
            start = as_bytes(self.starts[name].weights)
            return BridgeRequest(moved, asks, 0, 0, 1, NONE, NONE, NONE, start)
        agreement, labels = self._labels_given_votes(client)
        return BridgeRequest(moved, asks, 1, len(agreement), 0, NONE, agreement, labels, NONE)

    def voted_share(self, server: Server) -> float:
        """Return the share of all private samples that clients have who have voted, from 0 to 1."""
        samples = torch.tensor(server.federation.samples).double()
        return float(samples[self.votes[:, 0] >= 0].sum() / samples.sum())

    def with_votes(self, replies: Iterable[Reply[BridgeReply]], equal: bool) -> "BridgeServer":
        """Return the state with the levels and votes of these replies, and with new pooled labels.

        Args:
            equal: count each vote once, not as many times as its client has samples of the class.
        """
        levels, votes = self.levels.clone(), self.votes.clone()
        for reply in replies:
            if reply.message.has & LEVELS:
                levels[reply.client] = reply.message.levels
            if reply.message.has & VOTES:
                votes[reply.client] = reply.message.votes
        weight = torch.ones(levels.shape) if equal else sizes(levels)
        return replace(self, levels=levels, votes=votes, labels=pool_votes(votes, weight))

    def with_weights(
        self, server: Server, replies: Iterable[Reply[BridgeReply]]
    ) -> tuple["BridgeServer", dict[str, list[tuple[Tensor, float]]]]:
        """Return the state after these replies, and by model the weights (P,) that came, with their samples.

        A client whose start differs from the server's, or who could not make one, does not count.
        """
        votes, informed, given = self.votes.clone(), self.informed.clone(), self.given.clone()
        came: dict[str, list[tuple[Tensor, float]]] = {}
        for reply in replies:
            client, message, name = reply.client, reply.message, server.clients[reply.client].model
            start = self.start_of(client, name)
            informed[client] = message.has and message.digest == digest(start)
            if not message.has:
                votes[client] = -1
            elif not informed[client]:
                given[client] = True
            else:
                samples = max(server.clients[client].samples, 1)
                came.setdefault(name, []).append((start + message.values, samples))
        return replace(self, votes=votes, informed=informed, given=given), came

    def _labels_given_votes(self, client: int) -> tuple[Tensor, Tensor]:
        """Return the fields ``agreement`` and ``labels`` of a `BridgeRequest` to this client."""
        own, classes = self.votes[client], self.levels.shape[1]
        named = (own >= 0) & (own < classes)
        pooled = self.labels[named]
        return torch.where(pooled == own[named], 0, 1 + pooled), self.labels[~named]


def digest(start: Tensor) -> int:
    """Return 32 bits that tell two starts (P,) apart; 0 for none."""
    if not len(start):
        return 0
    return int.from_bytes(hashlib.blake2b(start.numpy().tobytes(), digest_size=4).digest(), "little") or 1

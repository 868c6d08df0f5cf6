"""What the two sides of `bridge` keep, its settings, and the digest of the model that they have in common."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fedistill.communication.messages.bridge import (
    LEVELS,
    VOTES,
    WEIGHTS,
    BridgeReply,
    BridgeRequest,
    as_bytes,
)
from fedistill.communication.messages.masked import steps_as_bytes
from fedistill.methods.base import Reply
from fedistill.methods.participants import Server
from fedistill.methods.shared.expertise import pool_votes, sizes, thresholds, vote_evidence
from fedistill.methods.shared.masked_merges import Changes, MaskSettings, Trail
from fedistill.methods.shared.public_labels import DistillSettings
from fedistill.methods.shared.start import StartSettings
from fedistill.state import State
from fedistill.training.model_state import ModelState

NONE = torch.zeros(0, dtype=torch.int64)
"""An array of integers that a message does not have."""
ChangesByModel = dict[str, list[tuple[int, Changes, float]]]
"""The changes that came, each with its client's number and samples, by the client's model."""


class BridgeSettings(MaskSettings, DistillSettings, StartSettings):
    distill_epochs: int = Field(default=30, ge=1, description="epochs on the pooled labels")
    samples: int | None = Field(
        default=None, ge=1, description="public samples that are voted on, the first ones; default: all"
    )
    vote_epochs: int = Field(default=20, ge=1, description="epochs on private data before a client votes")
    coverage: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="share of each class that the clients who vote for it hold; 1: all who have any of it",
    )
    levels_first: bool = Field(
        default=True,
        description="whether clients say how many samples of each class they have before they vote, for"
        " `coverage`; else they vote at once, for classes of which they have about the mean number over"
        " clients and classes or more, which suits classes that are about equally frequent and clients that"
        " have about as much data; `doctor` names classes that would have few voters; with `start`, neither"
        " of the two counts, and all vote",
    )
    enough: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="share of all private samples whose clients must have voted, or sent statistics, before"
        " weights are merged",
    )
    weighting: Literal["samples", "equal"] = Field(
        default="samples", description="how much a vote counts: as the client's samples of that class, or 1"
    )
    retain: float = Field(
        default=1.0,
        ge=0,
        description="weight, in the loss of merges, of staying with what the model said of public samples;"
        " without it, 0, merges have the loss of `train`",
    )
    smoothing: float = Field(default=0.1, ge=0, lt=1, description="label smoothing of the pooled labels")
    refine_labels: bool = Field(
        default=False,
        description="whether the server corrects the pooled labels by what public samples look like: a simple"
        " classifier, which learns these labels, is evidence beside the votes; nothing more is sent",
    )

    @model_validator(mode="after")
    def _evidence_is_by_samples(self) -> Self:
        if self.refine_labels and self.weighting == "equal":
            raise ValueError(
                '`refine_labels` weighs votes by samples: leave out `weighting = "equal"`, or it'
            )
        return self


@dataclass(frozen=True)
class BridgeClient:
    """What a client keeps.

    Attributes:
        model: its last model.
        votes: (n,), or (0,) before it has voted.
        weights: (P,) what all clients follow, or (0,) before it has a start.
        merges: the number of the last merge in these.
        digest: of the start, 0 without one.
    """

    model: ModelState
    votes: Tensor = NONE
    weights: Tensor = field(default_factory=lambda: torch.zeros(0))
    merges: int = 0
    digest: int = 0

    def starting(self, weights: Tensor, merges: int = 0) -> "BridgeClient":
        """Return the state of a client that follows from these weights (P,), or from none (0,), on."""
        return replace(self, weights=weights, merges=merges, digest=digest(weights))


@dataclass(frozen=True)
class BridgeServer:
    """The state of a server that collects levels and votes, in turn or at once, and then weights.

    Attributes:
        model: the server's own model.
        least: the level from which all clients vote for a class, without having said theirs before; 0 if
            they say it first.
        levels: (K, C) of each client (`class_levels`), -1 for clients that have not said theirs.
        votes: (K, n), C for an abstention, -1 for clients that have not voted.
        informed: (K,) whether a client has the pooled labels, or weights that it was given.
        given: (K,) whether a client is given weights, since the start that it made differs.
        known: (K,) the number of the last merge that each client has.
        labels: (n,) pooled labels, C for none.
        starts: digests of the starts by architecture; none until enough clients have voted.
        trails: what the starts have become, as all clients follow it.
        merged: the last means of each architecture, before they were rounded.
        statistics: what was collected of those that come first, as plain data; empty without ``start``.
        prior: (n, C) what enough of them say of the public samples, as logits; (0, C) before that.
    """

    model: ModelState
    least: int
    levels: Tensor
    votes: Tensor
    informed: Tensor
    given: Tensor
    known: Tensor
    labels: Tensor
    starts: dict[str, int] = field(default_factory=dict)
    trails: dict[str, Trail] = field(default_factory=dict)
    merged: dict[str, ModelState] = field(default_factory=dict)
    statistics: State = field(default_factory=dict)
    prior: Tensor = field(default_factory=lambda: torch.zeros(0, 0))

    @classmethod
    def before_round_1(
        cls, model: ModelState, clients: int, samples: int, classes: int, least: int
    ) -> "BridgeServer":
        """Return a state in which the server knows nothing of its clients."""
        nobody = torch.zeros(clients, dtype=torch.bool)
        unknown = torch.full((clients, classes), -1), torch.full((clients, samples), -1)
        return cls(model, least, *unknown, nobody, nobody, nobody.long(), NONE)

    def asks(self, client: int) -> int:
        """Return what to ask of a client, as bits: levels and votes, then weights; 0 for nothing."""
        if self.starts:
            return WEIGHTS
        unknown = int(self.levels[client, 0]) < 0
        if unknown and not len(self.prior) and not self.least and not (self.levels >= 0).any():
            return LEVELS
        return (LEVELS if unknown else 0) | (VOTES if int(self.votes[client, 0]) < 0 else 0)

    def starting(self, starts: dict[str, ModelState]) -> "BridgeServer":
        """Return the state once the starts of all architectures have been made."""
        digests = {name: digest(start.weights) for name, start in starts.items()}
        trails = {name: Trail.at(start.weights) for name, start in starts.items()}
        return replace(self, starts=digests, trails=trails, merged=starts)

    def request(self, client: int, name: str, coverage: float) -> BridgeRequest | None:
        """Return what to send to a client with this model; None if nothing is asked of it."""
        asks = self.asks(client)
        if not asks:
            return None
        if not asks & WEIGHTS:
            return BridgeRequest.asking(asks, self._least_levels(coverage) if asks & VOTES else NONE)
        trail, known_merges = self.trails[name], int(self.known[client])
        whole = self.given[client] and not self.informed[client]
        if whole:
            known_merges = trail.merges
        steps, changes = trail.since(known_merges)
        labelled = not (whole or self.informed[client])
        agreement, labels = self._labels_given_votes(client) if labelled else (NONE, NONE)
        return BridgeRequest(
            asks=asks,
            labelled=int(labelled),
            voted=len(agreement),
            given=int(whole),
            turn=trail.merges + 1,
            known=known_merges,
            thresholds=NONE,
            agreement=agreement,
            labels=labels,
            start=as_bytes(trail.weights) if whole else NONE,
            steps=steps_as_bytes(steps),
            changes=changes,
        )

    def voted_share(self, server: Server) -> float:
        """Return the share of all private samples that clients have who have voted, from 0 to 1."""
        samples = torch.tensor(server.federation.samples).double()
        return float(samples[self.votes[:, 0] >= 0].sum() / samples.sum())

    def with_votes(self, replies: Iterable[Reply[BridgeReply]], equal: bool) -> "BridgeServer":
        """Return the state with the levels and votes of these replies, and with new pooled labels.

        With a prior, votes are evidence beside it (`vote_evidence`); without one, they are counted. It is the
        same state if there are no replies.

        Args:
            equal: count each vote once, not as many times as its client has samples of the class.
        """
        levels, votes = self.levels.clone(), self.votes.clone()
        came = False
        for reply in replies:
            came = True
            if reply.message.has & LEVELS:
                levels[reply.client] = reply.message.levels
            if reply.message.has & VOTES:
                votes[reply.client] = reply.message.votes
        if not came:
            return self
        state = replace(self, levels=levels, votes=votes)
        if len(self.prior):
            return replace(state, labels=state.evidence().argmax(dim=1))
        weight = torch.ones(levels.shape) if equal else sizes(levels)
        return replace(state, labels=pool_votes(votes, weight))

    def evidence(self) -> Tensor:
        """Return what votes and the prior, if there is one, say of each sample's class, (n, C), as logs."""
        found = vote_evidence(self.votes, self.levels)
        return found + self.prior.double().log_softmax(dim=1) if len(self.prior) else found

    def with_changes(
        self, server: Server, replies: Iterable[Reply[BridgeReply]]
    ) -> tuple["BridgeServer", ChangesByModel]:
        """Return the state after these replies, and by model the changes that came, with their samples.

        A client whose start differs from the server's, or who could not make one, does not count.
        """
        votes, informed, given = self.votes.clone(), self.informed.clone(), self.given.clone()
        known = self.known.clone()
        came: ChangesByModel = {}
        for reply in replies:
            client, message, name = reply.client, reply.message, server.clients[reply.client].model
            alike = message.has and (given[client] or message.digest == self.starts[name])
            informed[client] = alike
            known[client] = message.turn - 1 if alike else 0
            if not message.has:
                votes[client] = -1
            elif not alike:
                given[client] = True
            else:
                samples = max(server.clients[client].samples, 1)
                changes = Changes(message.step, message.changes)
                came.setdefault(name, []).append((client, changes, samples))
        return replace(self, votes=votes, informed=informed, given=given, known=known), came

    def _least_levels(self, coverage: float) -> Tensor:
        """Return the levels (C,) from which clients vote for a class; with a prior, all that have any do."""
        if len(self.prior) or self.least:
            return torch.full((self.levels.shape[1],), 1 if len(self.prior) else self.least)
        known = self.levels[self.levels[:, 0] >= 0]
        several = (known > 0).sum(dim=1) > 1  # the others abstain (`expert_votes`)
        return thresholds(known[several] if several.any() else known, coverage)

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

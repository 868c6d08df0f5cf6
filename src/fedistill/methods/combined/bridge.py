"""Bridge: experts' votes make a model that all have in common, and sparse merges of weights improve it."""

import hashlib
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedistill.communication.messages.bridge import (
    LEVELS,
    VOTES,
    WEIGHTS,
    BridgeReply,
    BridgeRequest,
    as_bytes,
    from_bytes,
)
from fedistill.config.schema import Section
from fedistill.errors import FrameError, Refusal
from fedistill.methods.base import Method, Needs, Reply
from fedistill.methods.participants import Client, ClientInfo, FederationInfo, Participant, Server
from fedistill.methods.shared.expertise import class_levels, expert_votes, pool_votes, thresholds
from fedistill.methods.shared.own_model import train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.rng import SERVER, scoped, stream
from fedistill.training.loop import fit, predict
from fedistill.training.losses import kl
from fedistill.training.model_state import ModelState
from fedistill.training.optimizers import make_optimizer


class BridgeSettings(Section):
    vote_epochs: int = Field(default=20, ge=1, description="epochs on private data before a client votes")
    coverage: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="share of each class that the clients who vote for it hold; 1: all who have any of it",
    )
    enough: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="share of all private samples whose clients must have voted before weights are merged",
    )
    distill_epochs: int = Field(default=15, ge=1, description="epochs on the pooled labels")
    distill_batch_size: int = Field(default=32, ge=1, description="samples per step of distillation")
    smoothing: float = Field(
        default=0.1, ge=0, lt=1, description="label smoothing of the pooled labels in distillation"
    )


@dataclass(frozen=True)
class BridgeServer:
    """The server's state.

    Attributes:
        model: the server's own model.
        levels: (K, C), -1 for clients that have not said theirs.
        votes: (K, n), -1 for clients that have not voted.
        labels: (n,) pooled labels, C for none; (0,) before the first votes.
        starts: the model of each of the clients' architectures that was made from the labels, by name; none
            until enough clients have voted.
        merged: what these have become.
        informed: (K,) whether a client has the labels.
        given: (K,) whether a client is given its start, since the one that it made differs.
    """

    model: ModelState
    levels: Tensor
    votes: Tensor
    labels: Tensor
    informed: Tensor
    given: Tensor
    starts: dict[str, ModelState] = field(default_factory=dict)
    merged: dict[str, ModelState] = field(default_factory=dict)


@dataclass(frozen=True)
class BridgeClient:
    """A client's last model, its votes (n,), and its start (P,), both (0,) before it has them."""

    model: ModelState
    votes: Tensor
    start: Tensor


class Bridge(Method[BridgeReply, BridgeRequest, BridgeServer, BridgeClient]):
    """Experts vote on the public samples once; clients and server then improve a common model by its weights.

    Round 1: each client says about how many samples of each class it has. Round 2: clients train on
    private data for ``vote_epochs``, then vote for the class of each public sample, but only for classes
    of which they hold many samples (``coverage``). A vote counts as many times as its client has samples
    of that class. The server trains its own model on the pooled labels. From round 3 on: clients get the
    labels, once, and train the same start model as the server does, from the same seed. Then weights are
    averaged as in `fedavg`; what crosses are differences to the start, coded by the arm's codec.
    If the server's model is of another architecture than the clients', it is distilled from the averages.
    Clients of several architectures form a group each, and all groups share the labels.
    Exchanged: votes, labels, differences of weights. Bytes: about ``n H / 8`` up and down once, H bits per
    label, then ``b |θ_client| / 8`` each way and round, b bits per weight.

    A start is a result of training, and may differ in its last bits between machines. So a reply names a
    digest of the start that it is relative to; a client whose start differs is given the server's, as fp16.

    Ours. Votes followed by sparse merges are as in TallyTrain; expert votes weighted by class counts, the
    common start and the coding against it are not from there.
    """

    name = "bridge"
    paper = "ours, after TallyTrain, 2026, arXiv 2607.00173 (abstract)"
    exchanges = "votes and pooled labels once, then differences of weights"
    byte_formula = "up = down = nH/8 once, then b|θ_client|/8"
    uplink = BridgeReply
    downlink = BridgeRequest
    ServerState = BridgeServer
    ClientState = BridgeClient
    needs = Needs(public=("clients", "server"))
    under_skew: tuple[Literal["loss", "aggregation"], ...] = ("loss",)
    codec = "stc"
    Settings = BridgeSettings
    settings: BridgeSettings

    def check(self, federation: FederationInfo) -> None:
        super().check(federation)
        for name in sorted({info.model for info in federation.clients}):
            layout = federation.layouts[name]
            if layout.buffers or layout.integers.values:
                raise Refusal(
                    f"method {self.name} sends differences of weights, but {name} has buffers, such as the"
                    " statistics of batch norm: choose a client model without them (group or layer norm)"
                )

    def samples(self, public: int) -> int:
        return public

    def known_weights(self, server: Server, model: str) -> Tensor:
        return torch.zeros_like(server.initial_weights(model))  # no weight has moved from the start

    def broadcast_group(self, state: BridgeServer, info: ClientInfo) -> Hashable:
        if state.starts and not state.informed[info.id]:
            return info.id
        given = bool(state.given[info.id])
        return info.model, given, self._asks(state, info.id)

    def start_server(self, server: Server) -> BridgeServer:
        clients, no_one = len(server.clients), torch.zeros(len(server.clients), dtype=torch.bool)
        return BridgeServer(
            server.initial_model(),
            torch.full((clients, server.classes), -1),
            torch.full((clients, server.public_size), -1),
            torch.zeros(0, dtype=torch.int64),
            no_one,
            no_one,
        )

    def start_client(self, client: Client) -> BridgeClient:
        return BridgeClient(client.initial_model(), torch.zeros(0, dtype=torch.int64), torch.zeros(0))

    def send(self, state: BridgeServer, server: Server, client: int) -> BridgeRequest | None:
        asks = self._asks(state, client)
        if not asks:
            return None
        nothing = torch.zeros(0, dtype=torch.int64)
        least, agreement, labels, given = nothing, nothing, nothing, nothing
        values, voted, labelled = torch.zeros(0), 0, 0
        if asks & VOTES:
            least = thresholds(state.levels[state.levels[:, 0] >= 0], self.settings.coverage)
        if asks & WEIGHTS:
            name = server.clients[client].model
            start = _start_of(state, client, name)
            values = state.merged[name].weights - start
            if not state.informed[client] and state.given[client]:
                given = as_bytes(state.starts[name].weights)
            elif not state.informed[client]:
                own = state.votes[client]
                named = (own >= 0) & (own < server.classes)
                voted, labelled = int(named.sum()), 1
                pooled = state.labels[named]
                agreement = torch.where(pooled == own[named], 0, 1 + pooled)
                labels = state.labels[~named]
        return BridgeRequest(
            values, asks, labelled, voted, int(len(given) > 0), least, agreement, labels, given
        )

    def client_step(
        self, state: BridgeClient, client: Client, received: BridgeRequest | None
    ) -> tuple[BridgeClient, BridgeReply | None]:
        if received is None:
            return state, None
        levels = votes = torch.zeros(0, dtype=torch.int64)
        own = class_levels(client.data.labels, client.classes)
        if received.asks & LEVELS:
            levels = own
        if received.asks & VOTES:
            model = self._train(client, client.initial_model(), self.settings.vote_epochs)
            predicted = predict(client.load(model), client.public_inputs()).argmax(dim=1)
            votes = expert_votes(predicted, own, received.thresholds)
            state = replace(state, model=model, votes=votes)
        if not received.asks & WEIGHTS:
            return state, BridgeReply(torch.zeros(0), received.asks, 0, levels, votes)
        state = self._with_start(state, client, received)
        if not len(state.start):  # the labels were coded given other votes than this client remembers
            return state, BridgeReply(torch.zeros(0), 0, 0, levels, votes)
        model = self._train(client, ModelState(state.start + received.values), client.train.epochs)
        moved = model.weights - state.start
        reply = BridgeReply(moved, received.asks, _digest(state.start), levels, votes)
        return replace(state, model=model), reply

    def server_step(
        self, state: BridgeServer, server: Server, replies: Iterable[Reply[BridgeReply]]
    ) -> BridgeServer:
        levels, votes = state.levels.clone(), state.votes.clone()
        informed, given = state.informed.clone(), state.given.clone()
        sums: dict[str, tuple[Tensor, int]] = {}
        for reply in replies:
            message, client, name = reply.message, reply.client, server.clients[reply.client].model
            if message.has & LEVELS:
                levels[client] = message.levels
            if message.has & VOTES:
                votes[client] = message.votes
            if not state.starts:
                continue
            start = _start_of(state, client, name)
            informed[client] = bool(message.has) and message.digest == _digest(start)
            if not message.has:
                votes[client] = -1
            elif not informed[client]:
                given[client] = True
            else:
                total, count = sums.get(name, (torch.zeros_like(start, dtype=torch.float64), 0))
                samples = max(server.clients[client].samples, 1)
                sums[name] = total + samples * (start + message.values).double(), count + samples
        state = replace(state, levels=levels, votes=votes, informed=informed, given=given)
        if state.starts:
            means = {name: ModelState((total / count).float()) for name, (total, count) in sums.items()}
            return self._merge(state, server, means)
        return self._label(state, server)

    def check_reply(self, state: BridgeServer, server: Server, reply: Reply[BridgeReply]) -> None:
        asked, has = self._asks(state, reply.client), reply.message.has
        if has not in (asked, asked & ~WEIGHTS if asked == WEIGHTS else asked):
            raise FrameError(f"a reply has {has} where {asked} was asked for")

    def _asks(self, state: BridgeServer, client: int) -> int:
        """Return what the server asks of a client."""
        if state.starts:
            return WEIGHTS
        unknown = int(state.levels[client, 0]) < 0
        if unknown and not (state.levels >= 0).any():
            return LEVELS
        return (LEVELS if unknown else 0) | (VOTES if int(state.votes[client, 0]) < 0 else 0)

    def _train(self, client: Client, model: ModelState, epochs: int) -> ModelState:
        module = client.load(model)
        loss = private_loss(client, module)
        train_private(module, make_optimizer(client.train.optimizer, module), client, loss, epochs)
        return ModelState.of(module)

    def _with_start(self, state: BridgeClient, client: Client, received: BridgeRequest) -> BridgeClient:
        if received.given:
            return replace(state, start=from_bytes(received.start))
        if not received.labelled:
            return state
        votes = state.votes if len(state.votes) else torch.full((client.public_size,), client.classes)
        labels = received.pooled(votes, client.classes)
        if labels is None:
            return replace(state, start=torch.zeros(0))
        return replace(state, start=self._learn(client, client.model, labels).weights)

    def _learn(self, site: Participant, name: str, labels: Tensor) -> ModelState:
        """Return a model trained on pooled labels (n,) from the common seed, the same at all participants."""
        labelled = (labels < site.classes).nonzero().flatten()
        targets, smoothing = labels[labelled], self.settings.smoothing
        with scoped(site.seed, "start", SERVER, 0):
            module = site.load(site.common_model(name), name)
            fit(
                module,
                make_optimizer(site.train.optimizer, module),
                site.public_inputs(name)[labelled],
                lambda logits, at: cross_entropy(logits, targets[at], label_smoothing=smoothing),
                epochs=self.settings.distill_epochs,
                batch_size=self.settings.distill_batch_size,
                generator=stream(site.seed, "start"),
            )
        return ModelState.of(module)

    def _label(self, state: BridgeServer, server: Server) -> BridgeServer:
        """Pool the votes, and make the starts of all architectures if enough clients have voted."""
        voted = state.votes[:, 0] >= 0
        if not voted.any():
            return state
        labels = pool_votes(state.votes[voted], state.levels[voted])
        state = replace(state, labels=labels)
        samples = torch.tensor(server.federation.samples)
        enough = samples[voted].sum() >= self.settings.enough * samples.sum()
        names = sorted({info.model for info in server.clients}) if enough else []
        starts = {name: self._learn(server, name, labels) for name in names}
        own = starts.get(server.model) or self._learn(server, server.model, labels)
        return replace(state, model=own, starts=starts, merged=dict(starts))

    def _merge(self, state: BridgeServer, server: Server, means: dict[str, ModelState]) -> BridgeServer:
        """Take over the averages, and let the server's model learn from them."""
        merged = {**state.merged, **means}
        if server.model in merged:
            return replace(state, merged=merged, model=merged[server.model])
        votes = [predict(server.load(model, name), server.public_inputs(name)) for name, model in merged.items()]
        teacher = torch.stack([logits.softmax(dim=1) for logits in votes]).mean(dim=0)
        module = server.load(state.model)
        fit(
            module,
            make_optimizer(server.train.optimizer, module),
            server.public_inputs(),
            lambda logits, at: kl(logits, teacher[at]),
            epochs=self.settings.distill_epochs,
            batch_size=self.settings.distill_batch_size,
            generator=server.stream("distil"),
        )
        return replace(state, merged=merged, model=ModelState.of(module))


def _start_of(state: BridgeServer, client: int, name: str) -> Tensor:
    """Return the start (P,) that a client's weights are relative to."""
    start = state.starts[name].weights
    return from_bytes(as_bytes(start)) if state.given[client] else start


def _digest(start: Tensor) -> int:
    return int.from_bytes(hashlib.blake2b(start.numpy().tobytes(), digest_size=4).digest(), "little") or 1

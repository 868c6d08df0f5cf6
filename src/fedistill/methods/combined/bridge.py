"""Bridge: experts' votes make a model that all have in common, and merges of weights improve it."""

from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedistill.aggregation.functional import weighted_mean
from fedistill.communication.messages.bridge import (
    LEVELS,
    VOTES,
    WEIGHTS,
    BridgeReply,
    BridgeRequest,
    from_bytes,
)
from fedistill.errors import FrameError, Refusal
from fedistill.methods.base import Method, Needs, Reply
from fedistill.methods.participants import Client, ClientInfo, FederationInfo, Server
from fedistill.methods.shared.bridge_state import NONE, BridgeClient, BridgeServer, digest
from fedistill.methods.shared.expertise import class_levels, expert_votes
from fedistill.methods.shared.label_student import learn_labels
from fedistill.methods.shared.merging import learn_from_merged
from fedistill.methods.shared.own_model import train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.methods.shared.public_labels import DistillSettings
from fedistill.training.loop import predict
from fedistill.training.model_state import ModelState
from fedistill.training.optimizers import make_optimizer

_Replies = Iterable[Reply[BridgeReply]]


class BridgeSettings(DistillSettings):
    distill_epochs: int = Field(default=15, ge=1, description="epochs on the pooled labels")
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
    weighting: Literal["samples", "equal"] = Field(
        default="samples", description="how much a vote counts: as the client's samples of that class, or 1"
    )
    smoothing: float = Field(default=0.1, ge=0, lt=1, description="label smoothing of the pooled labels")


class Bridge(Method[BridgeReply, BridgeRequest, BridgeServer, BridgeClient]):
    """Experts vote once on the public samples; the model learned from their votes is improved by its weights.

    Round 1: each client says about how many samples of each class it has. Round 2: clients train on private
    data for ``vote_epochs``, then vote for the class of each public sample, but only for classes of which
    they hold many samples (``coverage``). A vote counts as many times as its client has samples of that
    class. The server trains its own model on the pooled labels. From round 3 on: clients get the labels,
    once, and train the same start as the server does, from the same seed. Then weights are averaged as in
    `fedavg`; what crosses are differences to the start, coded by the arm's codec. If the server's model is
    of another architecture than the clients', it is distilled from the averages. Clients of several
    architectures form a group each; all groups share the labels.
    Exchanged: votes, labels, differences of weights. Bytes: about ``n H / 8`` up and down once, H bits per
    label, then ``b |θ_client| / 8`` each way and round, b bits per weight.

    Clients that come later vote as long as weights are not merged, which begins when the clients of the share
    ``enough`` of all private samples have voted. Clients with nothing to do in a round are not sent anything.

    A start is a result of training, and may differ in its last bits between machines. So a reply names a
    digest of the start that it is relative to; a client whose start differs is given the server's, as fp16.

    Ours. Votes followed by sparse merges of weights are as in TallyTrain (arXiv 2607.00173); experts, votes
    weighted by the samples of a class, and the common start are not. Balanced softmax is advised as the loss.
    """

    name = "bridge"
    paper = "ours"
    exchanges = "votes and pooled labels once, then differences of weights"
    byte_formula = "up = down = nH/8 once, then b|θ_client|/8"
    uplink = BridgeReply
    downlink = BridgeRequest
    ServerState = BridgeServer
    ClientState = BridgeClient
    needs = Needs(public=("clients", "server"))
    under_skew = ("loss",)
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
        return info.model, bool(state.given[info.id]), state.asks(info.id)

    def start_server(self, server: Server) -> BridgeServer:
        model = server.initial_model()
        return BridgeServer.before_round_1(model, len(server.clients), server.public_size, server.classes)

    def start_client(self, client: Client) -> BridgeClient:
        return BridgeClient(client.initial_model(), NONE, torch.zeros(0))

    def send(self, state: BridgeServer, server: Server, client: int) -> BridgeRequest | None:
        return state.request(client, server.clients[client].model, self.settings.coverage)

    def client_step(
        self, state: BridgeClient, client: Client, received: BridgeRequest | None
    ) -> tuple[BridgeClient, BridgeReply | None]:
        if received is None:
            return state, None
        if received.asks & WEIGHTS:
            return self._improve(state, client, received)
        levels, votes = class_levels(client.data.labels, client.classes), NONE
        if received.asks & VOTES:
            model = self._train(client, client.initial_model(), self.settings.vote_epochs)
            predicted = predict(client.load(model), client.public_inputs()).argmax(dim=1)
            votes = expert_votes(predicted, levels, received.thresholds)
            state = replace(state, model=model, votes=votes)
        said = levels if received.asks & LEVELS else NONE
        return state, BridgeReply(torch.zeros(0), received.asks, 0, said, votes)

    def server_step(self, state: BridgeServer, server: Server, replies: _Replies) -> BridgeServer:
        return self._merge(state, server, replies) if state.starts else self._label(state, server, replies)

    def check_reply(self, state: BridgeServer, server: Server, reply: Reply[BridgeReply]) -> None:
        asked, has = state.asks(reply.client), reply.message.has
        if has != asked and (has or not asked & WEIGHTS):
            raise FrameError(f"a reply has {has} where {asked} was asked for")

    def _train(self, client: Client, model: ModelState, epochs: int) -> ModelState:
        module = client.load(model)
        loss = private_loss(client, module)
        train_private(module, make_optimizer(client.train.optimizer, module), client, loss, epochs)
        return ModelState.of(module)

    def _learn(self, site: Client | Server, name: str, labels: Tensor) -> ModelState:
        own = self.settings
        return learn_labels(site, name, labels, own.distill_epochs, own.distill_batch_size, own.smoothing)

    def _improve(
        self, state: BridgeClient, client: Client, received: BridgeRequest
    ) -> tuple[BridgeClient, BridgeReply]:
        if received.given:
            state = replace(state, start=from_bytes(received.start))
        elif received.labelled:
            votes = state.votes if len(state.votes) else torch.full((client.public_size,), client.classes)
            labels = received.pooled(votes, client.classes)
            made = None if labels is None else self._learn(client, client.model, labels)
            state = replace(state, start=torch.zeros(0) if made is None else made.weights)
        if not len(state.start):  # the labels were coded given votes that this client does not remember
            return state, BridgeReply(torch.zeros(0), 0, 0, NONE, NONE)
        model = self._train(client, ModelState(state.start + received.values), client.train.epochs)
        reply = BridgeReply(model.weights - state.start, WEIGHTS, digest(state.start), NONE, NONE)
        return replace(state, model=model), reply

    def _label(self, state: BridgeServer, server: Server, replies: _Replies) -> BridgeServer:
        """Pool the votes, learn from them, and make all starts if enough clients have voted."""
        state = state.with_votes(replies, equal=self.settings.weighting == "equal")
        if not (state.labels < server.classes).any():
            return state
        enough = state.voted_share(server) >= self.settings.enough
        names = sorted({info.model for info in server.clients}) if enough else []
        starts = {name: self._learn(server, name, state.labels) for name in names}
        own = starts.get(server.model) or self._learn(server, server.model, state.labels)
        return replace(state, model=own, starts=starts, merged=dict(starts))

    def _merge(self, state: BridgeServer, server: Server, replies: _Replies) -> BridgeServer:
        """Average the weights of each architecture, and let the server's model learn from the averages."""
        state, came = state.with_weights(server, replies)
        means = ((name, weighted_mean(models)) for name, models in came.items())
        merged = state.merged | {name: ModelState(mean) for name, mean in means if mean is not None}
        model = learn_from_merged(server, state.model, merged, self.settings)
        return replace(state, merged=merged, model=model)

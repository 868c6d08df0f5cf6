"""Bridge: experts' votes make a model that all have in common, and merges of weights improve it."""

from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import cast

import torch
from torch import nn

from fedistill.communication.messages.base import Message
from fedistill.communication.messages.bridge import WEIGHTS, BridgeReply, BridgeRequest, from_bytes
from fedistill.communication.messages.statistics import StatisticsRequest
from fedistill.communication.messages.weights import Weights
from fedistill.errors import FrameError
from fedistill.methods.base import Needs, Reply
from fedistill.methods.participants import Client, ClientInfo, Server
from fedistill.methods.shared.bridge_start import pool_and_learn, start_of, vote
from fedistill.methods.shared.bridge_state import (
    NONE,
    BridgeClient,
    BridgeServer,
    BridgeSettings,
    ChangesByModel,
)
from fedistill.methods.shared.expertise import mean_level
from fedistill.methods.shared.masked_merges import MergesParts, catch_up, check_turn, merge
from fedistill.methods.shared.merging import learn_from_merged
from fedistill.methods.shared.public_part import retaining_loss
from fedistill.methods.shared.start import FirstStatistics, StartsWithStatistics
from fedistill.methods.shared.weight_averaging import weights_message
from fedistill.training.loop import Loss
from fedistill.training.model_state import ModelState

_Replies = Iterable[Reply[Message]]
_Request = BridgeRequest | StatisticsRequest


class Bridge(
    StartsWithStatistics[Message, _Request, BridgeServer, BridgeClient],
    MergesParts[Message, _Request, BridgeServer, BridgeClient],
):
    """Experts vote once on the public samples; the model learned from their votes is improved by its weights.

    Round 1: each client says about how many samples of each class it has. Round 2: clients train on private
    data for ``vote_epochs``, then vote for the class of each public sample, but only for classes of which
    they hold many samples (``coverage``). A vote counts as many times as its client has samples of that
    class. Without ``levels_first``, they send both in round 1, and vote for classes of which they have about
    the mean number over clients and classes or more. The server trains its own model on the pooled labels.
    Next, clients get the labels, once, and train the same start as the server does, from the same seed. Then
    weights are merged as in `random-mask`: a random part of them at a time, which alone is trained and sent;
    in a merge, clients train by cross-entropy and retain what the common model says of public samples
    (``retain``). If the server's model is of another architecture than the clients', it is distilled from the
    merged models. Clients of several architectures form a group each; all groups share the labels. Exchanged:
    votes, labels, changes of weights. Bytes: about ``n H / 8`` up and down once, H bits per label, then ``s
    |θ_client| H' / 8`` each way and round, s the share, H' about 1.2 bits.

    Clients that come later vote as long as weights are not merged, which begins when the clients of the share
    ``enough`` of all private samples have voted. Clients with nothing to do in a round are not sent anything;
    those that were away are sent the changes of all merges that they have missed.

    With ``start``, clients first send one-shot statistics (see `gaussian`, `ridge` and `naive-bayes`), whose
    model does not depend on how the data are divided, and then levels and votes, of all classes that they
    have. What the statistics say of a public sample is the prior of its class, and votes are evidence: a
    client with few classes cannot name the class of most samples, but tells those apart that it has.

    With ``refine_labels``, what a simple classifier of the public samples says of them, which learns the
    pooled labels, is evidence beside the votes too (after Raykar et al., 2010, JMLR 11, section 2).

    A start is a result of training, and may differ in its last bits between machines. So the first reply
    names a digest of the client's start; a client whose start differs is given the server's weights, as fp16.

    Ours. Votes followed by sparse merges of weights are as in TallyTrain (arXiv 2607.00173), random masks as
    in Konečný et al. (2016, arXiv 1610.05492), and retaining is after Li and Hoiem (arXiv 1606.09282);
    experts, votes weighted by the samples of a class, and the common start are not. Balanced softmax is
    advised as the loss, which votes are trained by. The arm's codec codes nothing here.
    """

    name = "bridge"
    paper = "ours"
    exchanges = "votes and pooled labels once, then changes of a part of the weights"
    byte_formula = "up = down = nH/8 once, then s|θ_client|H'/8"
    beyond_model = (
        "how many samples of each class they have, and votes for the classes that they have many of"
    )
    uplink = BridgeReply
    downlink = BridgeRequest
    ServerState = BridgeServer
    ClientState = BridgeClient
    needs = Needs(public=("clients", "server"))
    under_skew = ("loss",)
    Settings = BridgeSettings
    settings: BridgeSettings

    def samples(self, public: int) -> int:
        return min(self.settings.samples or public, public)

    def broadcast_group(self, state: BridgeServer, info: ClientInfo) -> Hashable:
        first = self._collecting(state)
        if first is not None:
            return first.asks(state.statistics, info.id)
        if state.starts and not state.informed[info.id]:
            return info.id
        return info.model, int(state.known[info.id]), state.asks(info.id)

    def start_server(self, server: Server) -> BridgeServer:
        clients, samples, classes = len(server.clients), self.samples(server.public_size), server.classes
        least = 0 if self.settings.levels_first else mean_level(server.federation.samples, classes)
        state = BridgeServer.before_round_1(server.initial_model(), clients, samples, classes, least)
        return state if self.first is None else replace(state, statistics=self.first.start(server))

    def start_client(self, client: Client) -> BridgeClient:
        return BridgeClient(client.initial_model())

    def travelling_models(self, state: BridgeServer) -> dict[str, ModelState]:
        return state.merged

    def send(self, state: BridgeServer, server: Server, client: int) -> _Request | None:
        first = self._collecting(state)
        if first is not None:
            return first.request(state.statistics, client)
        return state.request(client, server.clients[client].model, self.settings.coverage)

    def compared(self, state: BridgeServer, server: Server, client: int) -> Weights | None:
        trail = state.trails.get(server.clients[client].model)
        return None if trail is None else weights_message(ModelState(trail.weights))

    def client_step(
        self, state: BridgeClient, client: Client, received: _Request | None
    ) -> tuple[BridgeClient, Message | None]:
        if received is None:
            return state, None
        if isinstance(received, StatisticsRequest):
            assert self.first is not None
            return state, self.first.reply(client)
        if received.asks & WEIGHTS:
            return self._improve(state, client, received)
        return vote(state, client, received, self.samples(client.public_size), self.settings)

    def server_step(self, state: BridgeServer, server: Server, replies: _Replies) -> BridgeServer:
        first = self._collecting(state)
        if first is not None:
            statistics, model, logits = first.collect(state.statistics, server, replies)
            prior = state.prior if logits is None else logits[: self.samples(len(logits))]
            return replace(state, statistics=statistics, model=model, prior=prior)
        own = cast(Iterable[Reply[BridgeReply]], replies)
        if not state.starts:
            return pool_and_learn(state, server, own, self.settings)
        state, came = state.with_changes(server, own)
        return self._merge(state, server, came) if came else state

    def check_reply(self, state: BridgeServer, server: Server, reply: Reply[Message]) -> None:
        first = self._collecting(state)
        if first is not None:
            first.check_reply(state.statistics, server, reply)
            return
        if not isinstance(reply.message, BridgeReply):
            raise FrameError("it sends statistics, which it was not asked for")
        asked, has = state.asks(reply.client), reply.message.has
        if has != asked and (has or not asked & WEIGHTS):
            raise FrameError(f"a reply has {has} where {asked} was asked for")
        if has & WEIGHTS:
            check_turn(reply.message.turn, state.trails[server.clients[reply.client].model])

    def _collecting(self, state: BridgeServer) -> FirstStatistics | None:
        """Return the statistics that clients are asked for in this round, if they are."""
        return None if len(state.prior) else self.first

    def merge_loss(self, client: Client, module: nn.Module) -> Loss:
        return retaining_loss(client, module, self.settings.retain)

    def _improve(
        self, state: BridgeClient, client: Client, received: BridgeRequest
    ) -> tuple[BridgeClient, BridgeReply]:
        if received.given:
            state = state.starting(from_bytes(received.start), received.known)
        elif received.labelled:
            samples = self.samples(client.public_size)
            state = state.starting(start_of(state, client, received, samples, self.settings))
        mask = self.masks(client.federation, client.model)
        followed = catch_up(state.weights, state.merges, received, mask) if len(state.weights) else None
        if followed is None:  # it forgot the votes that the labels were coded given, or it lost a merge
            return replace(state, weights=torch.zeros(0)), BridgeReply.telling(0, NONE, NONE)
        turn = received.turn
        model, changes = self.train_merge(client, followed, turn)
        reply = BridgeReply(WEIGHTS, state.digest, turn, changes.step, NONE, NONE, changes.multiples)
        return replace(state, model=model, weights=followed, merges=turn - 1), reply

    def _merge(self, state: BridgeServer, server: Server, came: ChangesByModel) -> BridgeServer:
        """Average the changes of each architecture, and let the server's model learn from the results."""
        trails, merged = dict(state.trails), dict(state.merged)
        for name, changes in came.items():
            trained = self.masks(server.federation, name)(trails[name].merges + 1)
            after = merge(trails[name], changes, trained, self.settings)
            if after is not None:
                trails[name], merged[name] = after.trail, ModelState(after.weights)
                server.note_reliability(after.reliability)
        model = learn_from_merged(server, state.model, merged, self.settings)
        return replace(state, trails=trails, merged=merged, model=model)

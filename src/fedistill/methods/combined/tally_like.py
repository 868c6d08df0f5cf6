"""Tally-like: hard labels by majority in most exchanges, a merge of weights in every few."""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from fedistill.aggregation.registry import AnyAggregation
from fedistill.aggregation.votes import Majority
from fedistill.communication.messages.tally import TallyReply, TallyRequest, given_classes
from fedistill.communication.messages.weights import Weights, no_integers
from fedistill.errors import FrameError
from fedistill.methods.base import Method, Needs, Reply
from fedistill.methods.participants import Client, ClientInfo, Server
from fedistill.methods.shared.merging import learn_from_merged
from fedistill.methods.shared.own_model import train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.methods.shared.public_labels import DistillSettings, distil
from fedistill.methods.shared.tally_state import (
    TallyClient,
    TallyServer,
    received_labels,
    received_votes,
)
from fedistill.methods.shared.weight_averaging import initial_by_model, mean_model, weights_message
from fedistill.training.loop import predict
from fedistill.training.model_state import ModelState
from fedistill.training.optimizers import make_optimizer

CODEC = {"name": "qsgd", "levels": 7}
_NONE = no_integers()
_Replies = Iterable[Reply[TallyReply]]


class TallyLikeSettings(DistillSettings):
    merge_every: int = Field(default=4, ge=1, description="one in so many exchanges is of weights")
    aggregation: AnyAggregation = Majority()


class TallyLike(Method[TallyReply, TallyRequest, TallyServer, TallyClient]):
    """Clients vote for a class of each public sample; in every few exchanges their weights are averaged.

    An exchange of votes: a client learns the last majority labels (cross entropy), trains on private data and
    votes on all public samples. The server learns the new majority labels, with its own model and with one of
    each architecture among the clients. Every ``merge_every``-th exchange is of weights: a client is sent the
    server's model of its architecture, continues from it, trains on private data and sends it back; the
    server averages by number of samples. A merge follows what the votes have taught the server since the
    last one, so clients get no labels directly after it.
    Exchanged: one class per public sample each way, or differences of weights each way, coded by the arm's
    codec. Bytes: ``n H / 8`` each way for votes, H at most about ``log2 C`` bits given what the receiver
    holds: majority labels given the receiver's last votes, votes given these labels; ``b |θ_client| / 8``
    each way for weights, b bits per weight.

    If the server's model has another architecture than the clients', it learns the majority labels too, and
    after a merge the mean prediction of the merged models. Clients of several architectures share the votes;
    each architecture has a merge of its own.

    The paper was available to us only as an abstract. It says that each peer sends the class with the highest
    score for each probe, that the majority decides, and that a variant composes this consensus with sparse
    merges of parameters. All else is our choice: that there is a server, with a model of its own; that probes
    are all public samples, in each exchange of votes; the order of steps; ties, which keep the old class or
    are drawn; one epoch of distillation; fresh optimizers; that all clients of an architecture start from
    the same weights; "sparse" read as rare (``merge_every``), with quantised weights; that an exchange is of
    votes or of weights, never both; and that votes and labels are coded given each other, which makes them
    cheaper than the paper's ``ceil(log2 C)`` bits. A codec that sends few weights, such as `stc`, is the
    other reading of "sparse". Here it drops most of what the votes have taught the server between merges.
    """

    name = "tally-like"
    paper = "TallyTrain, 2026, arXiv 2607.00173 (abstract)"
    exchanges = "votes on public samples; weights in every few exchanges"
    byte_formula = "up = down = nH/8, H at most about log2(C), or b|θ_client|/8"
    beyond_model = None
    uplink = TallyReply
    downlink = TallyRequest
    ServerState = TallyServer
    ClientState = TallyClient
    needs = Needs(public=("clients", "server"))
    under_skew = ("loss", "aggregation")
    codec = CODEC
    clients_build_common = True
    Settings = TallyLikeSettings
    settings: TallyLikeSettings

    def samples(self, public: int) -> int:
        return public

    def known_weights(self, server: Server, model: str) -> Tensor:
        return server.initial_weights(model)

    def broadcast_group(self, state: TallyServer, info: ClientInfo) -> Hashable:
        if self._merges(state):
            return info.model
        return info.id if len(state.labels) and state.voted[info.id] else "everyone"

    def start_server(self, server: Server) -> TallyServer:
        votes = torch.zeros(len(server.clients), server.public_size, dtype=torch.int64)
        voted = torch.zeros(len(server.clients), dtype=torch.int64)
        return TallyServer(server.initial_model(), initial_by_model(server), votes, voted)

    def start_client(self, client: Client) -> TallyClient:
        return TallyClient(client.common_model())

    def travelling_models(self, state: TallyServer) -> dict[str, ModelState]:
        return state.merged

    def send(self, state: TallyServer, server: Server, client: int) -> TallyRequest:
        if self._merges(state):
            model = state.merged[server.clients[client].model]
            return TallyRequest(model.weights, 1, 0, 0, _NONE, model.integers)
        if not len(state.labels):
            return TallyRequest(torch.zeros(0), 0, 0, 0, _NONE)
        base = int(state.voted[client])
        coded = given_classes(state.labels, state.votes[client] if base else None)
        return TallyRequest(torch.zeros(0), 0, 1, base, coded)

    def compared(self, state: TallyServer, server: Server, client: int) -> Weights:
        return weights_message(state.merged[server.clients[client].model])

    def client_step(
        self, state: TallyClient, client: Client, received: TallyRequest | None
    ) -> tuple[TallyClient, TallyReply]:
        assert received is not None
        if received.merges:
            trained = self._train(client, ModelState.received(received), None)
            return replace(state, model=trained), TallyReply(trained.weights, 1, _NONE, trained.integers)
        labels = received_labels(state, received)
        trained = self._train(client, state.model, labels)
        votes = predict(client.load(trained), client.public_inputs()).argmax(dim=1)
        reply = TallyReply(torch.zeros(0), 0, given_classes(votes, labels))
        return TallyClient(trained, votes, client.round), reply

    def server_step(self, state: TallyServer, server: Server, replies: _Replies) -> TallyServer:
        return (self._merge if self._merges(state) else self._count)(state, server, replies)

    def check_reply(self, state: TallyServer, server: Server, reply: Reply[TallyReply]) -> None:
        if reply.message.merges != self._merges(state):
            kinds = "votes", "weights"
            raise FrameError(
                f"{kinds[reply.message.merges]} came in an exchange of {kinds[self._merges(state)]}"
            )
        if not reply.message.merges:
            received_votes(state, reply)

    def _merges(self, state: TallyServer) -> bool:
        """Whether the next exchange is of weights."""
        return (state.exchanges + 1) % self.settings.merge_every == 0

    def _train(self, client: Client, model: ModelState, labels: Tensor | None) -> ModelState:
        """Return a client's model after it has learned labels (n,), if there are any, and private data."""
        module = client.load(model)
        optimizer = make_optimizer(client.train.optimizer, module)
        if labels is not None:
            probs = one_hot(labels, client.classes).float()
            distil(client, module, optimizer, client.public_inputs(), probs, self.settings)
        train_private(module, optimizer, client, private_loss(client, module))
        return ModelState.of(module)

    def _merge(self, state: TallyServer, server: Server, replies: _Replies) -> TallyServer:
        """Average the weights of each architecture that came."""
        came: dict[str, list[tuple[TallyReply, float]]] = {}
        for reply in replies:
            info = server.clients[reply.client]
            came.setdefault(info.model, []).append((reply.message, max(info.samples, 1)))
        means = {name: mean_model(models) for name, models in came.items()}
        merged = state.merged | {name: mean for name, mean in means.items() if mean is not None}
        if not came:
            return state
        model = learn_from_merged(server, state.model, merged, self.settings)
        return replace(state, model=model, merged=merged, labels=_NONE, exchanges=state.exchanges + 1)

    def _count(self, state: TallyServer, server: Server, replies: _Replies) -> TallyServer:
        """Count the votes, and learn the labels with all models at the server."""
        votes, voted = state.votes.clone(), state.voted.clone()

        def rows() -> Iterator[tuple[int, Tensor]]:
            for reply in replies:
                votes[reply.client], voted[reply.client] = received_votes(state, reply), server.round
                yield reply.client, one_hot(votes[reply.client], server.classes).float()

        before = one_hot(state.labels, server.classes).float() if len(state.labels) else None
        found = self.settings.aggregation.aggregate(rows(), server.stream("ties"), before, state.aggregation)
        if found is None:
            return state
        server.note_reliability(found.reliability)
        labels = found.labels.argmax(dim=1)
        merged = {name: self._learn(server, held, labels, name) for name, held in state.merged.items()}
        model = merged.get(server.model) or self._learn(server, state.model, labels, server.model)
        return TallyServer(model, merged, votes, voted, labels, state.exchanges + 1, found.state)

    def _learn(self, server: Server, model: ModelState, labels: Tensor, name: str) -> ModelState:
        module = server.load(model, name)
        probs = one_hot(labels, server.classes).float()
        optimizer = make_optimizer(server.train.optimizer, module)
        with server.computing():
            distil(server, module, optimizer, server.public_inputs(name), probs, self.settings)
        return ModelState.of(module)

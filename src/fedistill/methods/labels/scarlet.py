"""SCARLET: DS-FL with a cache of labels, which are not sent again."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from pydantic import Field
from torch import Tensor

from fedistill.aggregation.labels import EnhancedEra
from fedistill.aggregation.registry import AnyAggregation
from fedistill.communication.messages.base import MessageContext
from fedistill.communication.messages.labels import DueLabels, FreshLabels
from fedistill.errors import FrameError
from fedistill.methods.base import Method, Needs, Reply
from fedistill.methods.participants import Client, FederationInfo, Server, sample_public
from fedistill.methods.shared.own_model import Learner, train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.methods.shared.public_labels import DistillSettings, distil, distil_server
from fedistill.state import State
from fedistill.training.loop import predict


class ScarletSettings(DistillSettings):
    samples: int | None = Field(
        default=None, ge=1, description="public samples per turn, drawn at random; default: a tenth of all"
    )
    duration: int = Field(default=50, ge=1, description="D, age in turns at which a cached label is renewed")
    aggregation: AnyAggregation = EnhancedEra()


@dataclass(frozen=True)
class ScarletServer(Learner):
    """The cached labels (N, C), with zeros for samples not labelled yet, and the last turn."""

    cache: Tensor = field(default_factory=lambda: torch.zeros(0))
    turn: int = 0
    aggregation: State = field(default_factory=dict)


class Scarlet(Method[DueLabels, FreshLabels, ScarletServer, Learner]):
    """Clients send soft labels only of public samples whose global label is missing or D turns old.

    A turn is a round with at least one reply. In each turn, n public samples are drawn from a shared seed;
    those without a global label, and those whose label is at least D turns old, are due. Clients send
    probabilities of these, the server aggregates them by Enhanced ERA and caches the result, and all distil
    the labels of all n samples, cached or fresh. The rest is as in `dsfl`. Seed and turn determine which
    samples are due, so no index is sent. Exchanged: (m, C) probabilities, m <= n. Bytes: ``b m C / 8`` each
    way, b bits per number; once the cache is full, m/n is about ``1 / (1 + (D - 1) n/N)`` for N samples.

    Server and clients identify the cache by version and hash (`communication.protocol`): a client that missed
    turns receives the labels it lacks, and one that lost its cache receives all.

    Another ``aggregation`` only sees the samples that are due, few once the cache is full. Aggregations that
    estimate properties of clients from their rows (prior-corrected, dawid-skene) then have little data, and
    from a single row they learn nothing.

    Departs from the published code, which removes an expired label after one more use, so that it is
    sent twice: here it is refreshed.
    """

    name = "scarlet"
    paper = "Azuma et al., 2025, arXiv 2504.19602, and its published code"
    exchanges = "soft labels on public samples that are not cached"
    byte_formula = "up = down = bmC/8, m ≤ n"
    beyond_model = None
    uplink = DueLabels
    downlink = FreshLabels
    ServerState = ScarletServer
    ClientState = Learner
    needs = Needs(public=("clients", "server"))
    under_skew = ("loss",)
    Settings = ScarletSettings
    settings: ScarletSettings

    def message_context(self, federation: FederationInfo, client: int) -> MessageContext:
        def since(held: int, turn: int) -> Tensor:
            came = self._turns(federation.seed, federation.public, turn)
            return (came > held).nonzero().flatten()

        return replace(
            super().message_context(federation, client), since=lambda held, turn: since(held, turn).numpy()
        )

    def start_server(self, server: Server) -> ScarletServer:
        return ScarletServer(server.initial_model(), cache=torch.zeros(server.public_size, server.classes))

    def start_client(self, client: Client) -> Learner:
        return Learner(client.initial_model())

    def send(self, state: ScarletServer, server: Server, client: int) -> FreshLabels | None:
        return FreshLabels(state.cache, state.turn) if state.turn else None

    def client_step(
        self, state: Learner, client: Client, received: FreshLabels | None
    ) -> tuple[Learner, DueLabels]:
        model, optimizer = state.restore(client)
        size = client.public_size
        turn = 0 if received is None else received.turn
        if received is not None:
            sampled = self._sampled(client.seed, size, turn)
            inputs = client.public_inputs()[sampled]
            distil(client, model, optimizer, inputs, received.probs[sampled], self.settings)
        train_private(model, optimizer, client, private_loss(client, model))
        scheduled = self._turns(client.seed, size, turn + 1) == turn + 1
        probs = torch.zeros(0, client.classes)
        if scheduled.any():
            probs = predict(model, client.public_inputs()[scheduled]).softmax(dim=1)
        return state.after(model, optimizer), DueLabels(probs, turn + 1)

    def check_reply(self, state: ScarletServer, server: Server, reply: Reply[DueLabels]) -> None:
        if reply.message.turn != state.turn + 1:
            raise FrameError(f"labels of turn {reply.message.turn} came in turn {state.turn + 1}")

    def server_step(
        self, state: ScarletServer, server: Server, replies: Iterable[Reply[DueLabels]]
    ) -> ScarletServer:
        turn = state.turn + 1
        rows = ((reply.client, reply.message.probs) for reply in replies)
        ties = server.stream("ties")
        found = self.settings.aggregation.aggregate(rows, ties, state=state.aggregation)
        if found is None:
            return state
        server.note_reliability(found.reliability)
        cache = state.cache.clone()
        cache[self._turns(server.seed, len(cache), turn) == turn] = found.labels
        sampled = self._sampled(server.seed, len(cache), turn)
        inputs = server.public_inputs()[sampled]
        learned = distil_server(state, server, inputs, cache[sampled], self.settings)
        return replace(learned, cache=cache, turn=turn, aggregation=found.state)

    def _sampled(self, seed: int, population: int, turn: int) -> Tensor:
        return sample_public(seed, population, self._samples(population), turn)

    def _turns(self, seed: int, population: int, turn: int) -> Tensor:
        """The last turn, up to ``turn``, in which each public sample was labelled, or 0 if never."""
        return _turns(seed, population, self._samples(population), self.settings.duration, turn)

    def _samples(self, population: int) -> int:
        return self.settings.samples or max(1, population // 10)


@lru_cache(maxsize=64)
def _turns(seed: int, population: int, samples: int, duration: int, turn: int) -> Tensor:
    turns = torch.zeros(population, dtype=torch.int64)
    for now in range(1, turn + 1):
        sampled = sample_public(seed, population, samples, now)
        scheduled = (turns[sampled] == 0) | (now - turns[sampled] >= duration)
        turns[sampled[scheduled]] = now
    return turns

"""FedMD: logits on public samples up, their mean down."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from pydantic import Field
from torch import Tensor

from fedistill.aggregation.functional import mean
from fedistill.aggregation.logits import median_logits, reliable_logits
from fedistill.communication.messages.labels import Logits
from fedistill.errors import FrameError
from fedistill.methods.base import Needs, Reply
from fedistill.methods.participants import Client, Server
from fedistill.methods.shared.own_model import Learner, train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.methods.shared.public_labels import SampledPublic, SampledSettings
from fedistill.state import State
from fedistill.training.loop import fit, predict
from fedistill.training.losses import logit_mae

_MOST = 745.0
"""Logits that differ by more have a softmax of 0 in all 64 bits. It bounds their mean size, which lossy
codecs keep, and which is about ten for a model that is sure."""


class FedMdSettings(SampledSettings):
    digest_epochs: int = Field(default=1, ge=1, description="epochs on the consensus")
    digest_batch_size: int = Field(default=256, ge=1, description="samples per step on the consensus")
    pretrain_epochs: int = Field(
        default=5, ge=1, description="least private epochs of a client before its first exchange"
    )
    pooling: Literal["mean", "median", "reliability"] = Field(
        default="mean",
        description="how the server pools logits; the median, entry by entry, and `reliability`, which weighs"
        " clients by how far the others confirm them, bound what liars can do",
    )


@dataclass(frozen=True)
class FedMdServer:
    """The last consensus (n, C), the round of its samples, and what the server knows of who is reliable."""

    consensus: Tensor | None = None
    sampled_round: int = 0
    judged: State = field(default_factory=dict)


@dataclass(frozen=True)
class FedMdClient(Learner):
    """The client's state; ``pretrained`` tells whether it has trained for its first exchange yet."""

    pretrained: bool = False


class FedMd(SampledPublic[Logits, Logits, FedMdServer, FedMdClient]):
    """Clients of any architecture send logits on public samples and digest their mean.

    A round: digest the consensus (mean absolute error on logits), revisit the private data, then predict
    the next public samples. Exchanged: (n, C) logits each way; the samples are drawn from a shared
    seed. Bytes: ``b n C / 8`` each way, b bits per number. There is no server model.

    Departs from the paper: the public set has no labels, so a client first trains only on private data, for
    a fixed number of epochs; in the paper it first trains on labelled public data. A client that was absent
    digests only the newest consensus, not those it missed. In its first round, a client trains only on its
    private data.
    """

    name = "fedmd"
    paper = "Li and Wang, 2019, arXiv 1910.03581, algorithm 1"
    exchanges = "logits on public samples"
    byte_formula = "up = down = bnC/8"
    beyond_model = (
        "logits of a model that trains for more epochs before its first exchange than the budget counts"
    )
    uplink = Logits
    downlink = Logits
    ServerState = FedMdServer
    ClientState = FedMdClient
    needs = Needs(public=("clients",))
    Settings = FedMdSettings
    settings: FedMdSettings

    def start_server(self, server: Server) -> FedMdServer:
        return FedMdServer()

    def start_client(self, client: Client) -> FedMdClient:
        return FedMdClient(client.initial_model())

    def send(self, state: FedMdServer, server: Server, client: int) -> Logits | None:
        return None if state.consensus is None else Logits(state.consensus, state.sampled_round)

    def client_step(
        self, state: FedMdClient, client: Client, received: Logits | None
    ) -> tuple[FedMdClient, Logits]:
        model, optimizer = state.restore(client)
        if received is not None and state.pretrained:
            scores = received.scores
            fit(
                model,
                optimizer,
                client.sampled_public(self.settings.samples, received.sampled_round),
                lambda logits, at: logit_mae(logits, scores[at]),
                epochs=self.settings.digest_epochs,
                batch_size=self.settings.digest_batch_size,
                generator=client.stream("digest"),
            )
        pretraining = max(self.settings.pretrain_epochs, client.train.epochs)
        epochs = None if state.pretrained else pretraining
        train_private(model, optimizer, client, private_loss(client, model), epochs)
        scores = predict(model, client.sampled_public(self.settings.samples, client.round))
        return replace(state.after(model, optimizer), pretrained=True), Logits(scores, client.round)

    def check_reply(self, state: FedMdServer, server: Server, reply: Reply[Logits]) -> None:
        super().check_reply(state, server, reply)
        mean_size = float(reply.message.scores.double().abs().mean())
        if not mean_size:
            raise FrameError("its logits are all 0")
        if mean_size > _MOST:
            raise FrameError(
                f"its logits have a mean size of {mean_size:.3g}; {_MOST:g} is the most (if the client is"
                " honest, its training diverges: lower train.optimizer.lr)"
            )

    def server_step(
        self, state: FedMdServer, server: Server, replies: Iterable[Reply[Logits]]
    ) -> FedMdServer:
        if self.settings.pooling == "mean":
            consensus = mean(reply.message.scores for reply in replies)
            return state if consensus is None else FedMdServer(consensus, server.round)
        scores = {reply.client: reply.message.scores for reply in replies}
        if not scores:
            return state
        median = self.settings.pooling == "median"
        pooled = median_logits(scores) if median else reliable_logits(scores, state.judged)
        server.note_reliability(pooled.reliability)
        return FedMdServer(pooled.scores, server.round, pooled.state)

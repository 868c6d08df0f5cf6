"""FedMD: class scores on public samples, their mean back."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from pydantic import Field
from torch import Tensor

from fedistill.aggregation.functional import mean
from fedistill.communication.messages.labels import Logits
from fedistill.methods.base import Needs, Reply
from fedistill.methods.participants import Client, Server
from fedistill.methods.shared.own_model import Learner, train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.methods.shared.public_labels import SampledPublic, SampledSettings
from fedistill.training.loop import fit, predict
from fedistill.training.losses import logit_mae


class FedMdSettings(SampledSettings):
    digest_epochs: int = Field(default=1, ge=1, description="epochs on the consensus")
    digest_batch_size: int = Field(default=256, ge=1, description="samples in each step of it")
    pretrain_epochs: int = Field(
        default=5, ge=1, description="private epochs of a client before its first exchange, at least"
    )


@dataclass(frozen=True)
class FedMdServer:
    """The last consensus (n, C) and the round of its samples."""

    consensus: Tensor | None = None
    sampled_round: int = 0


@dataclass(frozen=True)
class FedMdClient(Learner):
    """A client that has trained on its private data before its first exchange, or has yet to."""

    pretrained: bool = False


class FedMd(SampledPublic[Logits, Logits, FedMdServer, FedMdClient]):
    """Clients of any architecture send logits on public samples and digest their mean.

    A round: digest the consensus (mean absolute error on logits), revisit the private data, then score
    the next public samples. Exchanged: (n, C) logits each way; the samples are drawn from a shared
    seed. Bytes: ``b n C / 8`` each way, b bits a number. No server model.

    Departs from the paper: the public set has no labels, so the first step is training on private data
    alone (the paper first trains on labelled public data), for a set number of epochs. A client that
    was absent digests the newest consensus and not those that it missed; in the first round in which it takes
    part it trains on its private data alone.
    """

    name = "fedmd"
    paper = "Li and Wang, 2019, arXiv 1910.03581, algorithm 1"
    exchanges = "logits on public samples"
    byte_formula = "up = down = bnC/8"
    uplink = Logits
    downlink = Logits
    ServerState = FedMdServer
    ClientState = FedMdClient
    needs = Needs(public=("clients",), sums_alone=True)
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

    def server_step(
        self, state: FedMdServer, server: Server, replies: Iterable[Reply[Logits]]
    ) -> FedMdServer:
        consensus = mean(reply.message.scores for reply in replies)
        return state if consensus is None else FedMdServer(consensus, server.round)

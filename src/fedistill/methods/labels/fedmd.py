"""FedMD: class scores on public samples, their mean back."""

from collections.abc import Iterable

from pydantic import Field

from fedistill.aggregation.functional import mean
from fedistill.communication.messages.labels import Logits
from fedistill.config.schema import Section
from fedistill.methods.base import Client, Method, Reply, Server
from fedistill.methods.shared.own_model import initial_state, restore, state_of, train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.state import State
from fedistill.training.loop import fit, predict
from fedistill.training.losses import logit_mae


class FedMdSettings(Section):
    samples: int | None = Field(
        default=None, ge=1, description="public samples a round, drawn anew; default: all"
    )
    digest_epochs: int = Field(default=1, ge=1, description="epochs on the consensus")
    digest_batch_size: int = Field(default=256, ge=1, description="samples in each step of it")
    pretrain_epochs: int = Field(
        default=5, ge=1, description="private epochs of a client before its first exchange, at least"
    )


class FedMd(Method[Logits, Logits]):
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
    clients_need_public = True
    has_server_model = False
    has_client_models = True
    Settings = FedMdSettings
    settings: FedMdSettings

    def samples(self, public: int) -> int:
        return min(public, self.settings.samples or public)

    def start_server(self, server: Server) -> State:
        return {}

    def start_client(self, client: Client) -> State:
        return {**initial_state(client), "pretrained": False}

    def send(self, state: State, server: Server, client: int) -> Logits | None:
        return Logits(state["consensus"], state["drawn"]) if "consensus" in state else None

    def client_step(self, state: State, client: Client, received: Logits | None) -> tuple[State, Logits]:
        model, optimizer = restore(state, client)
        if received is not None and state["pretrained"]:
            scores = received.scores
            fit(
                model,
                optimizer,
                client.drawn(self.settings.samples, received.drawn),
                lambda logits, at: logit_mae(logits, scores[at]),
                epochs=self.settings.digest_epochs,
                batch_size=self.settings.digest_batch_size,
                generator=client.stream("digest"),
            )
        pretraining = max(self.settings.pretrain_epochs, client.train.epochs)
        epochs = None if state["pretrained"] else pretraining
        train_private(model, optimizer, client, private_loss(client, model), epochs)
        scores = predict(model, client.drawn(self.settings.samples, client.round))
        return {**state_of(model, optimizer), "pretrained": True}, Logits(scores, client.round)

    def server_step(self, state: State, server: Server, replies: Iterable[Reply[Logits]]) -> State:
        consensus = mean(reply.message.scores for reply in replies)
        return state if consensus is None else {"consensus": consensus, "drawn": server.round}

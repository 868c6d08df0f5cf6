"""CFD: quantised, delta-coded soft labels on a fixed public set, distilled at both ends."""

from collections.abc import Iterable

from pydantic import Field

from fedistill.aggregation.labels import Mean
from fedistill.aggregation.registry import AnyAggregation
from fedistill.communication.messages.labels import SoftLabels
from fedistill.methods.base import Client, Method, Reply, Server
from fedistill.methods.shared.own_model import train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.methods.shared.public_labels import DistillSettings, distil, distil_server
from fedistill.state import State
from fedistill.training.loop import predict
from fedistill.training.model_state import flatten
from fedistill.training.optimizers import make_optimizer

PUBLISHED = {"name": "simplex", "bits": 1, "coder": "delta"}


class CfdSettings(DistillSettings):
    aggregation: AnyAggregation = Mean()
    distill_epochs: int = Field(
        default=5, ge=1, description="epochs on the global labels; with few, 1-bit labels collapse"
    )
    afresh: bool = Field(
        default=True,
        description="clients start each round from the common initial weights, else from their own",
    )


class Cfd(Method[SoftLabels, SoftLabels]):
    """Clients send quantised predictions on all public samples; the server sends its own model's back.

    A round (dual distillation, equations 14-17): a client starts from initial weights that are common
    to all of its architecture, distils the server's labels, trains on private data and predicts. The
    server averages what came (or pools it by another ``aggregation``), distils its own model from it, of
    any size, and sends that model's predictions. Exchanged: (n, C) probabilities each way on a fixed public
    set, by default at one bit with delta coding (CFD_delta-1-1); ``codec`` sets bits and coder of each
    direction. Bytes: ``n (H + eta) / 8`` each way, H bits a sample under the codec's model.

    Departs from the paper: rounding ties go to the lower class; the optimiser is the arm's. Starting afresh
    is needed where clients are absent; ``afresh = false`` lets them go on from their own models.

    A server that has learned little sends one class for nearly everything; at one bit nothing else is left
    of its labels, and clients follow it. So both sides distil for several epochs. Where that is not enough,
    as with few texts, send more bits down, which the paper has too: ``down = "fp32"`` in ``codec``.
    """

    name = "cfd"
    paper = "Sattler et al., 2021, arXiv 2012.00632, equations 10-17"
    exchanges = "quantised soft labels on public samples"
    byte_formula = "up = down = n(H + η)/8"
    uplink = SoftLabels
    downlink = SoftLabels
    clients_need_public = True
    server_needs_public = True
    has_client_models = True
    under_skew = ("loss", "aggregation")
    codec = PUBLISHED
    Settings = CfdSettings
    settings: CfdSettings

    def samples(self, public: int) -> int:
        return public

    def start_server(self, server: Server) -> State:
        return {"model": server.initial_weights(), "optimizer": {}}

    def start_client(self, client: Client) -> State:
        return {"model": client.common_weights()}

    def send(self, state: State, server: Server, client: int) -> SoftLabels | None:
        return SoftLabels(state["labels"], state["drawn"]) if "labels" in state else None

    def client_step(
        self, state: State, client: Client, received: SoftLabels | None
    ) -> tuple[State, SoftLabels]:
        assert client.public is not None
        model = client.load(client.common_weights() if self.settings.afresh else state["model"])
        optimizer = make_optimizer(client.train.optimizer, model)
        if received is not None:
            distil(client, model, optimizer, client.public, received.probs, self.settings)
        train_private(model, optimizer, client, private_loss(client, model))
        probs = predict(model, client.public).softmax(dim=1)
        return {"model": flatten(model)}, SoftLabels(probs, client.round)

    def server_step(self, state: State, server: Server, replies: Iterable[Reply[SoftLabels]]) -> State:
        assert server.public is not None
        probs = (reply.message.probs for reply in replies)
        pooled = self.settings.aggregation.aggregate(probs, server.stream("ties"))
        if pooled is None:
            return state
        learned = distil_server(state, server, server.public, pooled, self.settings)
        labels = predict(server.load(learned["model"]), server.public).softmax(dim=1)
        return {**learned, "labels": labels, "drawn": server.round}

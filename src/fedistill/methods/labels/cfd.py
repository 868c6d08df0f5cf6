"""CFD: quantised, delta-coded soft labels on a fixed public set, distilled by clients and server."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from pydantic import Field

from fedistill.aggregation.labels import Mean
from fedistill.aggregation.registry import AnyAggregation
from fedistill.communication.messages.labels import SoftLabels
from fedistill.methods.base import Method, Needs, Reply
from fedistill.methods.participants import Client, Server
from fedistill.methods.shared.own_model import train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.methods.shared.public_labels import DistillSettings, LabelServer, distil, distil_server
from fedistill.training.loop import predict
from fedistill.training.model_state import ModelState
from fedistill.training.optimizers import make_optimizer

PUBLISHED = {"name": "simplex", "bits": 1, "coder": "delta"}


class CfdSettings(DistillSettings):
    aggregation: AnyAggregation = Mean()
    distill_epochs: int = Field(
        default=5, ge=1, description="epochs on the global labels; with too few, 1-bit labels collapse"
    )
    afresh: bool = Field(
        default=True,
        description="start clients from common initial weights each round, not from their own model",
    )


@dataclass(frozen=True)
class CfdClient:
    """The client's model after its last round."""

    model: ModelState


class Cfd(Method[SoftLabels, SoftLabels, LabelServer, CfdClient]):
    """Clients send quantised predictions on all public samples; the server sends its own model's back.

    A round (dual distillation, equations 14-17): a client starts from initial weights that all clients with
    its architecture share, distils the server's labels, trains on private data and predicts. The server
    averages the predictions (or pools them by another ``aggregation``), distils its own model, of any size,
    from the result, and sends that model's predictions. Exchanged: (n, C) probabilities each way on a fixed
    public set, by default at one bit with delta coding (CFD_delta-1-1); ``codec`` sets bits and coder of each
    direction. Bytes: ``n (H + eta) / 8`` each way, H bits per sample under the codec's model.

    Departs from the paper: the optimizer is that of the arm. Restarting from the initial weights is needed if
    clients are absent; with ``afresh = false`` they continue from their own models.

    A server that has learned little predicts one class for nearly all samples. At one bit its labels carry
    nothing else, and clients follow them. Therefore both sides distil for several epochs. If that is not
    enough, as with few texts, send more bits down, as the paper also does: ``down = "fp32"`` in ``codec``.
    """

    name = "cfd"
    paper = "Sattler et al., 2021, arXiv 2012.00632, equations 10-17"
    exchanges = "quantised soft labels on public samples"
    byte_formula = "up = down = n(H + η)/8"
    beyond_model = None
    uplink = SoftLabels
    downlink = SoftLabels
    ServerState = LabelServer
    ClientState = CfdClient
    needs = Needs(public=("clients", "server"))
    under_skew = ("loss", "aggregation")
    codec = PUBLISHED
    clients_build_common = True
    Settings = CfdSettings
    settings: CfdSettings

    def samples(self, public: int) -> int:
        return public

    def start_server(self, server: Server) -> LabelServer:
        return LabelServer(server.initial_model())

    def start_client(self, client: Client) -> CfdClient:
        return CfdClient(client.common_model())

    def send(self, state: LabelServer, server: Server, client: int) -> SoftLabels | None:
        return None if state.labels is None else SoftLabels(state.labels, state.sampled_round)

    def client_step(
        self, state: CfdClient, client: Client, received: SoftLabels | None
    ) -> tuple[CfdClient, SoftLabels]:
        model = client.load(client.common_model() if self.settings.afresh else state.model)
        optimizer = make_optimizer(client.train.optimizer, model)
        if received is not None:
            distil(client, model, optimizer, client.public_inputs(), received.probs, self.settings)
        train_private(model, optimizer, client, private_loss(client, model))
        probs = predict(model, client.public_inputs()).softmax(dim=1)
        return CfdClient(ModelState.of(model)), SoftLabels(probs, client.round)

    def server_step(
        self, state: LabelServer, server: Server, replies: Iterable[Reply[SoftLabels]]
    ) -> LabelServer:
        rows = ((reply.client, reply.message.probs) for reply in replies)
        ties = server.stream("ties")
        found = self.settings.aggregation.aggregate(rows, ties, state=state.aggregation)
        if found is None:
            return state
        server.note_reliability(found.reliability)
        learned = distil_server(state, server, server.public_inputs(), found.labels, self.settings)
        labels = predict(server.load(learned.model), server.public_inputs()).softmax(dim=1)
        return replace(learned, labels=labels, sampled_round=server.round, aggregation=found.state)

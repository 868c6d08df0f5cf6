"""DS-FL: soft labels on public samples, their sharpened mean back."""

from collections.abc import Iterable

from fedistill.methods.base import Client, Method, Reply, Server
from fedistill.methods.own_model import begin, keep, resume, train_private
from fedistill.methods.private_loss import private_loss
from fedistill.methods.public_labels import DrawnSettings, distil, distil_server
from fedistill.pooling import AnyAggregation, Era
from fedistill.state import State
from fedistill.train import predict
from fedistill.wire.message import SoftLabels


class DsFlSettings(DrawnSettings):
    aggregation: AnyAggregation = Era()


class DsFl(Method[SoftLabels, SoftLabels]):
    """Clients of any architecture send probabilities on public samples; all learn their sharpened mean.

    A round: distil the last global labels (KL), train on private data, predict the next public samples.
    The server averages the *probabilities*, reduces their entropy (softmax of mean over T) and distils
    its own model, of any size, from the result; ``aggregation`` names other ways to pool. Exchanged: (n, C)
    probabilities each way; the samples are drawn from a shared seed. Bytes: ``b n C / 8`` each way, b bits a
    number.

    A client that was absent learns from the newest global labels and not from those that it missed.
    """

    name = "dsfl"
    paper = "Itahara et al., 2020, arXiv 2008.06180; order of steps as in its authors' SCARLET code"
    exchanges = "soft labels on public samples"
    byte_formula = "up = down = bnC/8"
    uplink = SoftLabels
    downlink = SoftLabels
    clients_need_public = True
    server_needs_public = True
    has_client_models = True
    Settings = DsFlSettings
    settings: DsFlSettings

    def samples(self, public: int) -> int:
        return min(public, self.settings.samples or public)

    def start_server(self, server: Server) -> State:
        return {"model": server.initial_weights(), "optimizer": {}}

    def start_client(self, client: Client) -> State:
        return begin(client)

    def send(self, state: State, server: Server, client: int) -> SoftLabels | None:
        return SoftLabels(state["labels"], state["drawn"]) if "labels" in state else None

    def client_step(
        self, state: State, client: Client, received: SoftLabels | None
    ) -> tuple[State, SoftLabels]:
        model, optimizer = resume(state, client)
        if received is not None:
            inputs = client.drawn(self.settings.samples, received.drawn)
            distil(client, model, optimizer, inputs, received.probs, self.settings)
        train_private(model, optimizer, client, private_loss(client, model))
        probs = predict(model, client.drawn(self.settings.samples, client.round)).softmax(dim=1)
        return keep(model, optimizer), SoftLabels(probs, client.round)

    def server_step(self, state: State, server: Server, replies: Iterable[Reply[SoftLabels]]) -> State:
        probs = (reply.message.probs for reply in replies)
        labels = self.settings.aggregation.pool(probs, server.stream("ties"))
        if labels is None:
            return state
        inputs = server.drawn(self.settings.samples, server.round)
        learned = distil_server(state, server, inputs, labels, self.settings)
        return {**learned, "labels": labels, "drawn": server.round}

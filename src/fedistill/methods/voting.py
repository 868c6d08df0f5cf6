"""Voting: one class for each public sample up, the majority down."""

from collections.abc import Iterable

from torch import Tensor
from torch.nn.functional import one_hot

from fedistill.methods.base import Client, Method, Reply, Server
from fedistill.methods.own_model import begin, keep, resume, train_private
from fedistill.methods.private_loss import private_loss
from fedistill.methods.public_labels import DrawnSettings, distil, distil_server
from fedistill.pooling import AnyAggregation, Majority
from fedistill.state import State
from fedistill.train import predict
from fedistill.wire.message import Votes


class VotingSettings(DrawnSettings):
    aggregation: AnyAggregation = Majority()


class Voting(Method[Votes, Votes]):
    """Clients of any architecture name a class for each public sample; all learn what most of them named.

    A round: learn the last majority labels (cross entropy), train on private data, vote on the next
    public samples. The server counts votes and trains its own model, of any size, on the majority.
    Exchanged: one class a sample each way; the samples are drawn from a shared seed. Bytes: at most
    ``n log2(C) / 8`` each way, less by what the codec can foretell.

    Departs from the paper, which has no server and no server model: here the server counts, and has a
    model of its own. The order of steps is that of `dsfl`. A tie goes to the class that had the majority
    before if it is among the tied, else it is drawn. By another ``aggregation`` the likeliest class is sent.
    """

    name = "voting"
    paper = "TallyTrain, 2026, arXiv 2607.00173 (abstract)"
    exchanges = "the most probable class of public samples"
    byte_formula = "up, down <= n log2(C)/8"
    uplink = Votes
    downlink = Votes
    clients_need_public = True
    server_needs_public = True
    has_client_models = True
    codec = "onehot"
    Settings = VotingSettings
    settings: VotingSettings

    def samples(self, public: int) -> int:
        return min(public, self.settings.samples or public)

    def start_server(self, server: Server) -> State:
        return {"model": server.initial_weights(), "optimizer": {}}

    def start_client(self, client: Client) -> State:
        return begin(client)

    def send(self, state: State, server: Server, client: int) -> Votes | None:
        return Votes(state["labels"], state["drawn"]) if "labels" in state else None

    def client_step(self, state: State, client: Client, received: Votes | None) -> tuple[State, Votes]:
        model, optimizer = resume(state, client)
        if received is not None:
            inputs = client.drawn(self.settings.samples, received.drawn)
            distil(client, model, optimizer, inputs, received.probs, self.settings)
        train_private(model, optimizer, client, private_loss(client, model))
        logits = predict(model, client.drawn(self.settings.samples, client.round))
        votes = one_hot(logits.argmax(dim=1), client.signature.classes).float()
        return keep(model, optimizer), Votes(votes, client.round)

    def server_step(self, state: State, server: Server, replies: Iterable[Reply[Votes]]) -> State:
        probs = (reply.message.probs for reply in replies)
        before = self._before(state, server)
        pooled = self.settings.aggregation.pool(probs, server.stream("ties"), before)
        if pooled is None:
            return state
        labels = one_hot(pooled.argmax(dim=1), pooled.shape[1]).float()
        inputs = server.drawn(self.settings.samples, server.round)
        learned = distil_server(state, server, inputs, labels, self.settings)
        return {**learned, "labels": labels, "drawn": server.round}

    def _before(self, state: State, server: Server) -> Tensor | None:
        """The last majority, where it speaks of the same samples."""
        same = self.settings.samples is None and "labels" in state
        return state["labels"] if same else None

"""COMET: clients whose answers are alike learn from one another."""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import Tensor, nn

from fedistill.aggregation.labels import Mean
from fedistill.aggregation.registry import AnyAggregation
from fedistill.communication.messages.labels import SoftLabels
from fedistill.methods.base import Needs, Reply
from fedistill.methods.participants import Client, ClientInfo, Server
from fedistill.methods.shared.density import kmeans
from fedistill.methods.shared.own_model import Learner, train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.methods.shared.public_labels import SampledPublic, SampledSettings
from fedistill.training.loop import Loss, batch, predict
from fedistill.training.losses import kl


class CometSettings(SampledSettings):
    aggregation: AnyAggregation = Mean()
    clusters: int = Field(default=2, ge=1, description="k, at most so many groups of clients")
    weight: float = Field(default=1.0, ge=0, description="lambda, of the divergence from what came")
    public_batch_size: int = Field(default=32, ge=1, description="public samples in each step of training")


@dataclass(frozen=True)
class ClusterLabels:
    """What a cluster says (n, C), and the round of the samples."""

    probs: Tensor
    sampled_round: int


@dataclass(frozen=True)
class CometServer:
    """The cluster of each client (clients,), -1 before its first reply, and the labels of each by number."""

    clusters: Tensor
    labels: dict[int, ClusterLabels] = field(default_factory=dict)


class Comet(SampledPublic[SoftLabels, SoftLabels, CometServer, Learner]):
    """Clients train towards the mean labels of those whose answers on public samples are like their own.

    A round: each step of private training has a second term, ``weight`` times the KL divergence from what the
    server said of a batch of public samples; then the client predicts the next public samples. The server
    puts the clients that replied into ``clusters`` by k-means, each client a point of n C probabilities, and
    sends a client the mean of its own cluster, or what ``aggregation`` makes of it; one that it has not heard
    gets that of all. Exchanged: (n, C) probabilities each way. Bytes: ``b n C / 8`` each way, b bits a
    number. No server model.

    Clients get better at the classes of their own group and learn little of those of others: look at
    ``client@own``, and take one cluster where every client should know every class. k-means gives as many
    clusters as it is asked for, where there are no groups too. A client that was absent is sent what the
    cluster said that it was in last, on the samples of then.

    Departs from what we could read: of the paper its abstract alone. SCARLET's code has another form: it
    divides the answers to each sample anew, sends the means of all clusters, and a client distils, before
    it trains, that which is nearest to its own answer. One cluster for each client, as here, is what the
    abstract says, and costs a k-th. From that code are k = 2, a weight of 1 and the KL divergence.
    """

    name = "comet"
    paper = "Cho et al., 2021, arXiv 2109.08119 (abstract)"
    exchanges = "soft labels on public samples up, the mean of alike clients down"
    byte_formula = "up = down = bnC/8"
    uplink = SoftLabels
    downlink = SoftLabels
    ServerState = CometServer
    ClientState = Learner
    needs = Needs(public=("clients",))
    under_skew = ("loss", "aggregation")
    Settings = CometSettings
    settings: CometSettings

    def broadcast_group(self, state: CometServer, info: ClientInfo) -> Hashable:
        return info.id

    def start_server(self, server: Server) -> CometServer:
        return CometServer(torch.full((len(server.clients),), -1))

    def start_client(self, client: Client) -> Learner:
        return Learner(client.initial_model())

    def send(self, state: CometServer, server: Server, client: int) -> SoftLabels | None:
        found = state.labels.get(int(state.clusters[client]))
        return None if found is None else SoftLabels(found.probs, found.sampled_round)

    def client_step(
        self, state: Learner, client: Client, received: SoftLabels | None
    ) -> tuple[Learner, SoftLabels]:
        model, optimizer = state.restore(client)
        private = private_loss(client, model)
        loss = private if received is None else self._pulled(private, model, client, received)
        train_private(model, optimizer, client, loss)
        probs = predict(model, client.sampled_public(self.settings.samples, client.round)).softmax(dim=1)
        return state.after(model, optimizer), SoftLabels(probs, client.round)

    def server_step(
        self, state: CometServer, server: Server, replies: Iterable[Reply[SoftLabels]]
    ) -> CometServer:
        rows = {reply.client: reply.message.probs for reply in replies}
        if not rows:
            return state
        points = torch.stack([*rows.values()]).flatten(start_dim=1)
        _, found = kmeans(points, self.settings.clusters, server.stream("clusters"))
        clusters = state.clusters.clone()
        # No number is used twice: an absent client's still names what was said to its cluster.
        clusters[[*rows]] = found + server.round * self.settings.clusters
        groups: dict[int, list[int]] = {-1: [*rows]}
        for number in sorted({int(clusters[client]) for client in rows}):
            groups[number] = [client for client in rows if int(clusters[client]) == number]
        ties = server.stream("ties")
        labels = {number: label for number, label in state.labels.items() if number in clusters.tolist()}
        for number, members in groups.items():
            group = self.settings.aggregation.aggregate(((one, rows[one]) for one in members), ties)
            assert group is not None
            labels[number] = ClusterLabels(group.labels, server.round)
        return CometServer(clusters, labels)

    def _pulled(self, private: Loss, model: nn.Module, client: Client, received: SoftLabels) -> Loss:
        """The private loss, and the divergence from what came on as many public samples at each step."""
        inputs = client.sampled_public(self.settings.samples, received.sampled_round)
        turns = _batches(len(inputs), self.settings.public_batch_size, client.stream("public batches"))

        def loss(logits: Tensor, at: Tensor) -> Tensor:
            now = next(turns)
            apart = kl(model(batch(inputs, now)), received.probs[now])
            return private(logits, at) + self.settings.weight * apart

        return loss


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Places of samples, batch after batch, without end: each time round in a new order."""
    while True:
        yield from torch.split(torch.randperm(count, generator=generator), size)

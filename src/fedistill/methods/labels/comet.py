"""COMET: clients with similar predictions learn from one another."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import Tensor

from fedistill.aggregation.labels import Mean
from fedistill.aggregation.registry import AnyAggregation
from fedistill.communication.messages.labels import SoftLabels
from fedistill.methods.base import Needs, Reply
from fedistill.methods.participants import Client, ClientInfo, Server
from fedistill.methods.shared.density import kmeans
from fedistill.methods.shared.own_model import Learner, train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.methods.shared.public_labels import SampledPublic, SampledSettings
from fedistill.methods.shared.public_part import with_public_part
from fedistill.state import State
from fedistill.training.loop import predict


class CometSettings(SampledSettings):
    aggregation: AnyAggregation = Mean()
    clusters: int = Field(default=2, ge=1, description="k, the largest number of client clusters")
    weight: float = Field(
        default=1.0, ge=0, description="lambda, weight of the divergence from the received labels"
    )
    public_batch_size: int = Field(default=32, ge=1, description="public samples per training step")


@dataclass(frozen=True)
class ClusterLabels:
    """Labels (n, C) of a cluster, and the round of their samples."""

    probs: Tensor
    sampled_round: int


@dataclass(frozen=True)
class CometServer:
    """The cluster of each client (clients,), -1 before its first reply, and the labels by cluster number.

    ``aggregation`` is what the aggregation of all clients keeps; that of clusters keeps nothing.
    """

    clusters: Tensor
    labels: dict[int, ClusterLabels] = field(default_factory=dict)
    aggregation: State = field(default_factory=dict)


class Comet(SampledPublic[SoftLabels, SoftLabels, CometServer, Learner]):
    """Clients learn from the mean labels of the clients whose predictions on public samples are like theirs.

    A round: each step of private training has a second loss term, ``weight`` times the KL divergence from
    the server's labels on a batch of public samples; then the client predicts the next public samples. The
    server groups the clients that replied into ``clusters`` by k-means, each client being a point of n C
    probabilities, and sends each client the mean of its cluster, or the result of another ``aggregation``. A
    client that has not replied yet receives the mean over all clients. Exchanged: (n, C) probabilities each
    way. Bytes: ``b n C / 8`` each way, b bits per number. There is no server model.

    Clients improve on the classes of their own cluster and learn little about other classes: look at
    ``client@own``, and set one cluster if every client should know every class. k-means returns the requested
    number of clusters even if there are no real groups. A client that was absent receives the labels that its
    cluster had when the client last replied, on the public samples of that round.

    Departs from SCARLET's code; of the paper we could read only the abstract. That code clusters the
    predictions for each sample separately and sends the means of all clusters; before training, a client
    distils the one nearest to its own prediction. One cluster per client, as here, follows the abstract and
    takes 1/k of the bytes. k = 2, a weight of 1 and the KL divergence are taken from that code.
    """

    name = "comet"
    paper = "Cho et al., 2021, arXiv 2109.08119 (abstract)"
    exchanges = "soft labels on public samples up, the mean of the client's cluster down"
    byte_formula = "up = down = bnC/8"
    beyond_model = "labels of a model whose loss on private samples has a part on public ones"
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
        loss = private
        if received is not None:
            loss = with_public_part(
                private,
                model,
                client.sampled_public(self.settings.samples, received.sampled_round),
                received.probs,
                weight=self.settings.weight,
                batch_size=self.settings.public_batch_size,
                draws=client.stream("public batches"),
            )
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
        # Cluster numbers are never reused: an absent client's number must keep identifying its old cluster.
        clusters[[*rows]] = found + server.round * self.settings.clusters
        groups: dict[int, list[int]] = {-1: [*rows]}
        for number in sorted({int(clusters[client]) for client in rows}):
            groups[number] = [client for client in rows if int(clusters[client]) == number]
        ties = server.stream("ties")
        labels = {number: label for number, label in state.labels.items() if number in clusters.tolist()}
        kept = state.aggregation
        for number, members in groups.items():
            everyone = number == -1
            own = ((one, rows[one]) for one in members)
            group = self.settings.aggregation.aggregate(own, ties, state=kept if everyone else None)
            assert group is not None
            if everyone:  # liars who agree are a cluster of their own, in which they are believed
                server.note_reliability(group.reliability)
                kept = group.state
            labels[number] = ClusterLabels(group.labels, server.round)
        return CometServer(clusters, labels, kept)

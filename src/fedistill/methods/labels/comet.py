"""COMET: clients whose answers are alike learn from one another."""

from collections.abc import Hashable, Iterable, Iterator

import torch
from pydantic import Field
from torch import Tensor, nn

from fedistill.aggregation.labels import Mean
from fedistill.aggregation.registry import AnyAggregation
from fedistill.communication.messages.labels import SoftLabels
from fedistill.config.schema import Section
from fedistill.methods.base import Client, ClientInfo, Method, Reply, Server
from fedistill.methods.shared.density import kmeans
from fedistill.methods.shared.own_model import initial_state, restore, state_of, train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.state import State
from fedistill.training.loop import Loss, batch, predict
from fedistill.training.losses import kl


class CometSettings(Section):
    samples: int | None = Field(
        default=None, ge=1, description="public samples a round, drawn anew; default: all"
    )
    aggregation: AnyAggregation = Mean()
    clusters: int = Field(default=2, ge=1, description="k, at most so many groups of clients")
    weight: float = Field(default=1.0, ge=0, description="lambda, of the divergence from what came")
    public_batch_size: int = Field(default=32, ge=1, description="public samples in each step of training")


class Comet(Method[SoftLabels, SoftLabels]):
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
    clients_need_public = True
    has_server_model = False
    has_client_models = True
    under_skew = ("loss", "aggregation")
    Settings = CometSettings
    settings: CometSettings

    def samples(self, public: int) -> int:
        return min(public, self.settings.samples or public)

    def broadcast_group(self, info: ClientInfo) -> Hashable:
        return info.id

    def start_server(self, server: Server) -> State:
        return {"clusters": torch.full((len(server.clients),), -1), "said": {}}

    def start_client(self, client: Client) -> State:
        return initial_state(client)

    def send(self, state: State, server: Server, client: int) -> SoftLabels | None:
        said = state["said"].get(str(int(state["clusters"][client])))
        return None if said is None else SoftLabels(said["probs"], said["drawn"])

    def client_step(
        self, state: State, client: Client, received: SoftLabels | None
    ) -> tuple[State, SoftLabels]:
        model, optimizer = restore(state, client)
        private = private_loss(client, model)
        loss = private if received is None else self._pulled(private, model, client, received)
        train_private(model, optimizer, client, loss)
        probs = predict(model, client.drawn(self.settings.samples, client.round)).softmax(dim=1)
        return state_of(model, optimizer), SoftLabels(probs, client.round)

    def server_step(self, state: State, server: Server, replies: Iterable[Reply[SoftLabels]]) -> State:
        came = [(reply.client, reply.message.probs) for reply in replies]
        if not came:
            return state
        who, rows = [client for client, _ in came], torch.stack([probs for _, probs in came])
        _, found = kmeans(rows.flatten(start_dim=1), self.settings.clusters, server.stream("clusters"))
        clusters = state["clusters"].clone()
        # No number is used twice: an absent client's still names what was said to its cluster.
        clusters[who] = found + server.round * self.settings.clusters
        groups = {number: rows[clusters[who] == number] for number in clusters[who].unique().tolist()}
        ties = server.stream("ties")
        said = {
            str(number): {"probs": self.settings.aggregation.aggregate(group, ties), "drawn": server.round}
            for number, group in [(-1, rows), *groups.items()]
        }
        held = {number: state["said"][number] for number in map(str, clusters.tolist()) if number not in said}
        return {"clusters": clusters, "said": {**held, **said}}

    def _pulled(self, private: Loss, model: nn.Module, client: Client, received: SoftLabels) -> Loss:
        """The private loss, and the divergence from what came on as many public samples at each step."""
        inputs = client.drawn(self.settings.samples, received.drawn)
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

"""UWA-like: labels are averaged by how likely each sample is among a client's own."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from pydantic import Field
from torch import Tensor

from fedistill.aggregation.functional import mean_by_sample
from fedistill.communication.messages.labels import SoftLabels
from fedistill.communication.messages.scored import ScoredLabels
from fedistill.communication.messages.weights import no_integers
from fedistill.methods.base import Needs, Reply
from fedistill.methods.participants import Client, Server, sample_public
from fedistill.methods.shared.familiarity import densities, density_scores
from fedistill.methods.shared.own_model import Learner, train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.methods.shared.public_labels import (
    DistillSettings,
    LabelServer,
    SampledPublic,
    SampledSettings,
    distil,
    distil_server,
)
from fedistill.training.loop import predict


class UwaLikeSettings(DistillSettings, SampledSettings):
    temperature: float = Field(
        default=1.0,
        ge=0.25,
        allow_inf_nan=False,
        description="1 weights by density; more is nearer to a plain mean, less to the best client",
    )


@dataclass(frozen=True)
class ScoredClient(Learner):
    """A client's model and optimizer, and its scores (N,) of all public samples."""

    scores: Tensor = field(default_factory=no_integers)


class UwaLike(SampledPublic[ScoredLabels, SoftLabels, LabelServer, ScoredClient]):
    """Clients send probabilities on public samples, and once how likely each of these is among their own.

    Before its first round a client estimates the density of its private samples at each public sample, by
    Gaussian kernels. A round: distil the last global labels (KL), train on private data, predict the next
    public samples. The server averages the probabilities of each sample over the clients, weighted by their
    densities at it to the power of 1 / ``temperature``, and distils its own model, of any size, from the
    mean. Exchanged: (n, C) probabilities each way; once, a density of each public sample, in quarters of a
    nat. Bytes: ``b n C / 8`` each way, b bits per number; once about ``N H / 8`` up, H at most 6 bits per
    public sample, N of them.

    With the codec `onehot`, clients vote, and votes are weighted.

    The paper was available to us only as an abstract. It says that predictions are weighted by uncertainty
    estimates that rest on densities, and that this helps most where labels are skewed. Our choices are the
    estimate, by kernels on pixels or word counts, with one width for all clients; that clients send it, and
    only once, since their data does not change; the weights; and the mean of probabilities. The abstract does
    not say how its two methods, UWA and sUWA, differ; here ``temperature`` leads from the client
    of the highest density alone to the plain mean.
    """

    name = "uwa-like"
    paper = "Kovalchuk et al., 2025, arXiv 2509.15147 (abstract)"
    exchanges = "soft labels on public samples, densities of these once"
    byte_formula = "up = bnC/8 (once + NH/8, H at most 6), down = bnC/8"
    beyond_model = "how likely each public sample is among their own"
    uplink = ScoredLabels
    downlink = SoftLabels
    ServerState = LabelServer
    ClientState = ScoredClient
    needs = Needs(public=("clients", "server"))
    under_skew = ("loss",)
    Settings = UwaLikeSettings
    settings: UwaLikeSettings

    def start_server(self, server: Server) -> LabelServer:
        return LabelServer(server.initial_model())

    def start_client(self, client: Client) -> ScoredClient:
        return ScoredClient(client.initial_model(), scores=density_scores(client))

    def send(self, state: LabelServer, server: Server, client: int) -> SoftLabels | None:
        return None if state.labels is None else SoftLabels(state.labels, state.sampled_round)

    def client_step(
        self, state: ScoredClient, client: Client, received: SoftLabels | None
    ) -> tuple[ScoredClient, ScoredLabels]:
        model, optimizer = state.restore(client)
        if received is not None:
            inputs = client.sampled_public(self.settings.samples, received.sampled_round)
            distil(client, model, optimizer, inputs, received.probs, self.settings)
        train_private(model, optimizer, client, private_loss(client, model))
        probs = predict(model, client.sampled_public(self.settings.samples, client.round)).softmax(dim=1)
        return state.after(model, optimizer), ScoredLabels(probs, state.scores, client.round)

    def server_step(
        self, state: LabelServer, server: Server, replies: Iterable[Reply[ScoredLabels]]
    ) -> LabelServer:
        size = server.public_size
        drawn = sample_public(server.seed, size, self.samples(size), server.round)

        def weighted() -> Iterator[tuple[Tensor, Tensor]]:
            for reply in replies:
                yield (
                    reply.message.probs,
                    densities(reply.message.scores[drawn], self.settings.temperature),
                )

        labels = mean_by_sample(weighted())
        if labels is None:
            return state
        inputs = server.sampled_public(self.settings.samples, server.round)
        learned = distil_server(state, server, inputs, labels, self.settings)
        return replace(learned, labels=labels, sampled_round=server.round)

"""FedAUX: small models travel, and the server distils their ensemble, weighted by certainty scores."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from pydantic import Field
from torch import Tensor

from fedistill.aggregation.functional import mean_by_sample
from fedistill.communication.messages.scored import ScoredWeights
from fedistill.communication.messages.weights import Weights, no_integers
from fedistill.config.schema import Positive
from fedistill.methods.base import Method, Needs, Reply
from fedistill.methods.participants import Client, ClientInfo, Server
from fedistill.methods.shared.ensemble import EnsembleSettings, learn_from_ensemble
from fedistill.methods.shared.familiarity import certainties, certainty_scores
from fedistill.methods.shared.weight_averaging import (
    SmallModelsServer,
    initial_by_model,
    means_by_model,
    public_logits,
    train_received,
    weights_message,
)


class FedAuxSettings(EnsembleSettings):
    penalty: Positive = Field(
        default=0.01, description="lambda, regularisation of the certainty's regression"
    )


@dataclass(frozen=True)
class FedAuxClient:
    """A client's certainty scores (N,) of all public samples; computed once."""

    scores: Tensor = field(default_factory=no_integers)


class FedAux(Method[ScoredWeights, Weights, SmallModelsServer, FedAuxClient]):
    """As `feddf`, where a client counts on each public sample by how like its own data that sample is.

    Before its first round a client fits a logistic regression that tells its private samples from the public
    ones. The probability that a public sample is private is the client's *certainty* of it. The teacher is
    ``softmax(sum_k w_k z_k / sum_k w_k)``, where z_k are the logits of client k's model and w_k its
    certainty. The server averages the weights of each architecture by number of samples, and distils the
    teacher into each average and into its own model.
    Exchanged: weights of the client's model each way; once, a certainty of each public sample, in 64 steps.
    Bytes: ``b |θ_client| / 8`` each way, b bits per weight; once about ``N H / 8`` up, H at most 6 bits per
    public sample, N of them.

    Departs from the paper: no model is pretrained on public data, from which most of the published gain
    comes; so the regression has pixels or word counts in place of a pretrained model's features. No noise is
    added to the regression, so nothing here is differentially private. Certainties cross in 64 steps. As in
    the published code, lambda regularises the *sum* of the regression's losses (the sensitivity for which
    that code adds noise, ``2 / (n lambda)``, is that of their mean). The optimizer of distillation is that
    of `feddf`.
    """

    name = "fedaux"
    paper = "Sattler et al., 2021, arXiv 2102.02514 (abstract) and its published code"
    exchanges = "weights of the client's model, certainties of public samples once"
    byte_formula = "up = b|θ_client|/8 (once + NH/8, H at most 6), down = b|θ_client|/8"
    beyond_model = "how certain a model of their own data is of each public sample"
    uplink = ScoredWeights
    downlink = Weights
    ServerState = SmallModelsServer
    ClientState = FedAuxClient
    needs = Needs(public=("clients", "server"))
    Settings = FedAuxSettings
    settings: FedAuxSettings

    def broadcast_group(self, state: SmallModelsServer, info: ClientInfo) -> str:
        return info.model

    def start_server(self, server: Server) -> SmallModelsServer:
        return SmallModelsServer(server.initial_model(), initial_by_model(server))

    def start_client(self, client: Client) -> FedAuxClient:
        return FedAuxClient(certainty_scores(client, self.settings.penalty))

    def send(self, state: SmallModelsServer, server: Server, client: int) -> Weights:
        return weights_message(state.travelling[server.clients[client].model])

    def client_step(
        self, state: FedAuxClient, client: Client, received: Weights | None
    ) -> tuple[FedAuxClient, ScoredWeights]:
        assert received is not None
        trained = train_received(client, received)
        return state, ScoredWeights(trained.values, state.scores, trained.samples, trained.integers)

    def server_step(
        self, state: SmallModelsServer, server: Server, replies: Iterable[Reply[ScoredWeights]]
    ) -> SmallModelsServer:
        received = [*replies]
        weights = [certainties(reply.message.scores) for reply in received]
        logits = mean_by_sample(zip(public_logits(server, received), weights, strict=True))
        if logits is None:
            return state
        came = [(server.clients[reply.client].model, reply.message) for reply in received]
        travelling = means_by_model(state.travelling, came)
        return learn_from_ensemble(
            server, state.model, travelling, logits.softmax(dim=1), self.settings, True
        )

"""FedDF: small models travel, and the server distils their ensemble."""

from collections.abc import Iterable, Sequence

import torch
from pydantic import Field
from torch import Tensor

from fedistill.communication.messages.weights import TrainedWeights
from fedistill.methods.base import Reply
from fedistill.methods.participants import Server
from fedistill.methods.shared.ensemble import EnsembleSettings, learn_from_ensemble
from fedistill.methods.shared.weight_averaging import (
    AveragingSettings,
    SmallModels,
    SmallModelsServer,
    initial_by_model,
    merged_model,
    public_logits,
)


class FedDfSettings(EnsembleSettings, AveragingSettings):
    fuse: bool = Field(default=True, description="distil the travelling models too, not only average them")


class FedDf(SmallModels):
    """Clients train received weights; the server distils the ensemble of all returned models.

    For each architecture among the clients, the server averages the received weights by number of samples
    and trains the average on the ensemble's predictions, ``KL(softmax(mean logits of all clients) ||
    student)``, on the public set, which only the server holds. If the server's own model has another,
    typically larger architecture, it keeps its weights between rounds and learns from the same ensemble.
    Exchanged: weights of the client's model each way. Bytes: ``b |θ_client| / 8`` each way, b bits per
    weight.

    With an ``averaging`` other than the mean, the logits of a model that is relied on less count less.

    Departs from the paper: Adam at a constant rate for a fixed number of epochs, instead of a cosine
    schedule of up to 10,000 steps with early stopping on labelled validation data, which we do not assume.
    """

    name = "feddf"
    paper = "Lin et al., 2020, arXiv 2006.07242, algorithms 1 and 3"
    beyond_model = None
    trains_received = True
    Settings = FedDfSettings
    settings: FedDfSettings

    def start_server(self, server: Server) -> SmallModelsServer:
        travelling = initial_by_model(server)
        return SmallModelsServer(server.initial_model(), travelling)

    def server_step(
        self, state: SmallModelsServer, server: Server, replies: Iterable[Reply[TrainedWeights]]
    ) -> SmallModelsServer:
        received = [*replies]
        if not received:
            return state
        travelling = {
            name: merged_model(
                server,
                (
                    (reply.client, reply.message, reply.message.samples)
                    for reply in received
                    if server.clients[reply.client].model == name
                ),
                held,
                self.settings,
            )
            or held
            for name, held in state.travelling.items()
        }
        teacher = self._teacher(server, received)
        return learn_from_ensemble(
            server, state.model, travelling, teacher, self.settings, self.settings.fuse
        )

    def _teacher(self, server: Server, received: Sequence[Reply[TrainedWeights]]) -> Tensor:
        """Return the ensemble's probabilities (N, C), in which a model counts as far as it is relied on."""
        logits = torch.stack(public_logits(server, received))
        if not server.reliability:
            return logits.mean(dim=0).softmax(dim=1)
        trust = torch.tensor([server.reliability[reply.client] for reply in received])
        shares = trust / trust.sum() if trust.any() else torch.full_like(trust, 1 / len(trust))
        return torch.einsum("k,knc->nc", shares, logits).softmax(dim=1)

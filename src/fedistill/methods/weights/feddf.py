"""FedDF: small models travel, and the server distils their ensemble."""

from collections.abc import Iterable

import torch
from pydantic import Field
from torch import Tensor

from fedistill.communication.messages.weights import TrainedWeights
from fedistill.config.schema import Section
from fedistill.config.training import OptimizerConfig
from fedistill.methods.base import Reply
from fedistill.methods.participants import Server
from fedistill.methods.shared.weight_averaging import (
    SmallModels,
    SmallModelsServer,
    initial_by_model,
    means_by_model,
    public_logits,
)
from fedistill.training.loop import fit
from fedistill.training.losses import kl
from fedistill.training.model_state import ModelState
from fedistill.training.optimizers import make_optimizer


class FedDfSettings(Section):
    epochs: int = Field(default=5, ge=1, description="epochs of distillation on the public set")
    batch_size: int = Field(default=128, ge=1, description="samples per step of distillation")
    optimizer: OptimizerConfig = OptimizerConfig(name="adam", lr=1e-3)
    fuse: bool = Field(default=True, description="distil the travelling models too, not only average them")


class FedDf(SmallModels):
    """Clients train received weights; the server distils the ensemble of all returned models.

    For each architecture among the clients, the server averages the received weights by number of samples
    and trains the average on the ensemble's predictions, ``KL(softmax(mean logits of all clients) ||
    student)``, on the public set, which only the server holds. If the server's own model has another,
    typically larger architecture, it keeps its weights between rounds and learns from the same ensemble.
    Exchanged: weights of the client's model each way. Bytes: ``b |θ_client| / 8`` each way, b bits per
    weight.

    Departs from the paper: Adam at a constant rate for a fixed number of epochs, instead of a cosine
    schedule of up to 10,000 steps with early stopping on labelled validation data, which we do not assume.
    """

    name = "feddf"
    paper = "Lin et al., 2020, arXiv 2006.07242, algorithms 1 and 3"
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
        came = [(server.clients[reply.client].model, reply.message) for reply in received]
        teacher = torch.stack(public_logits(server, received)).mean(dim=0).softmax(dim=1)
        travelling = means_by_model(state.travelling, came)
        if self.settings.fuse:
            travelling = {
                name: self._distil(server, name, mean, teacher) for name, mean in travelling.items()
            }
        own = travelling.get(server.model)
        if own is None:
            own = self._distil(server, server.model, state.model, teacher)
        return SmallModelsServer(own, travelling)

    def _distil(self, server: Server, name: str, state: ModelState, teacher: Tensor) -> ModelState:
        model = server.load(state, name)
        fit(
            model,
            make_optimizer(self.settings.optimizer, model),
            server.public_inputs(name),
            lambda logits, at: kl(logits, teacher[at]),
            epochs=self.settings.epochs,
            batch_size=self.settings.batch_size,
            generator=server.stream(f"distil {name}"),
        )
        return ModelState.of(model)

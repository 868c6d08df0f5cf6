"""Fed-ET: small models travel; the server's larger one learns from their weighted, diverse ensemble."""

from collections.abc import Iterable

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from fedistill.aggregation.functional import weighted_mean
from fedistill.communication.messages.weights import TrainedWeights
from fedistill.config.schema import Section
from fedistill.config.training import OptimizerConfig
from fedistill.errors import TrainingError
from fedistill.methods.base import Reply
from fedistill.methods.participants import FederationInfo, Server
from fedistill.methods.shared.weight_averaging import (
    SmallModels,
    SmallModelsServer,
    initial_by_model,
    means_by_model,
    public_logits,
)
from fedistill.models.features import Split
from fedistill.training.loop import fit
from fedistill.training.model_state import ModelState, flatten, unflatten
from fedistill.training.optimizers import make_optimizer


class FedEtSettings(Section):
    epochs: int = Field(default=5, ge=1, description="epochs of distillation on the public set")
    batch_size: int = Field(default=128, ge=1, description="samples per step of distillation")
    optimizer: OptimizerConfig = Field(
        default=OptimizerConfig(name="adam", lr=1e-3), description="for distillation; fresh each round"
    )
    diversity: float = Field(default=0.05, ge=0, description="lambda, weight of the clients that disagree")
    share_head: bool = Field(
        default=True, description="share the last linear layer with the server's model if its width matches"
    )


class FedEt(SmallModels):
    """Clients train received weights; the server's own model learns from their weighted consensus.

    For each architecture among the clients, the server averages the received weights by number of samples.
    On the public set, which only the server holds, client k's logits s_k(x) are weighted by their variance
    over the classes, ``var(s_k(x))``, since the logits of a confident client vary more. Server loss:
    ``CE(S(x), y) + lambda KL(softmax(d) || S(x))``, where y is the class of the weighted mean of all s_k(x),
    and d is the weighted mean over the clients that predict another class (without such clients, a sample
    has no such term). The server's model keeps its weights between rounds and may have any architecture.
    Exchanged: weights of the client's model each way. Bytes: ``b |θ_client| / 8`` each way, b bits per
    weight.

    The server's model is no better than the consensus. If clients have learned little, the consensus is one
    class for nearly all samples: with news articles and plain SGD at a learning rate that suits images, runs
    end at chance level.

    Departs from the paper: there, clients receive a layer that all models share, which is averaged into the
    server's model before it learns and copied into the clients' models afterwards. Here it is the last linear
    layer, and only for architectures whose feature width is that of the server's model; the others receive
    only their averages. We know this step, and the value of lambda, only at second hand, from other people's
    public code. The server learns by Adam at a constant rate for a fixed number of epochs.
    """

    name = "fed-et"
    paper = "Cho et al., 2022, arXiv 2204.12703"
    beyond_model = None
    trains_received = True
    Settings = FedEtSettings
    settings: FedEtSettings

    def check(self, federation: FederationInfo) -> None:
        super().check(federation)
        if self.settings.share_head:
            for name in sorted({federation.server_model, *(info.model for info in federation.clients)}):
                federation.feature_width(name)

    def start_server(self, server: Server) -> SmallModelsServer:
        return SmallModelsServer(server.initial_model(), initial_by_model(server))

    def server_step(
        self, state: SmallModelsServer, server: Server, replies: Iterable[Reply[TrainedWeights]]
    ) -> SmallModelsServer:
        received = [*replies]
        if not received:
            return state
        came = [(server.clients[reply.client].model, reply.message) for reply in received]
        travelling = means_by_model(state.travelling, came)
        sharing = [name for name in travelling if self._shares(server, name)]
        models = [(name, ModelState.received(message), message.samples) for name, message in came]
        head = weighted_mean((_head(server, sent, name), n) for name, sent, n in models if name in sharing)
        own = state.model if head is None else _with_head(server, state.model, server.model, head)
        own = self._learn(server, own, *consensus(torch.stack(public_logits(server, received))))
        for name in sharing:
            learned = _head(server, own, server.model)
            travelling[name] = _with_head(server, travelling[name], name, learned)
        return SmallModelsServer(own, travelling)

    def _shares(self, server: Server, name: str) -> bool:
        if not self.settings.share_head:  # models without a head are allowed then
            return False
        length = server.federation.feature_width
        return length(name) == length(server.model)

    def _learn(self, server: Server, state: ModelState, labels: Tensor, diverse: Tensor) -> ModelState:
        def loss(logits: Tensor, at: Tensor) -> Tensor:
            # The divergence from a row of zeros is 0: its sample has no such term.
            other = kl_div(logits.log_softmax(dim=1), diverse[at], reduction="batchmean")
            return cross_entropy(logits, labels[at]) + self.settings.diversity * other

        model = server.load(state)
        with server.computing():
            fit(
                model,
                make_optimizer(self.settings.optimizer, model),
                server.public_inputs(),
                loss,
                epochs=self.settings.epochs,
                batch_size=self.settings.batch_size,
                generator=server.stream("distil"),
            )
        return ModelState.of(model)


def consensus(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the consensus class (n,) and the probabilities (n, C) of the clients that disagree.

    Logits are (K, n, C). Probabilities are zeros if no client disagrees.

    Raises:
        TrainingError: the logits are too large for their variance to be a number.
    """
    variance = logits.var(dim=2, keepdim=True)
    scores = (variance * logits).sum(dim=0)
    if not torch.isfinite(scores).all():
        raise TrainingError(
            f"the clients' models have logits up to {logits.abs().max():.3g}, too large for a consensus:"
            " lower train.optimizer.lr"
        )
    labels = scores.argmax(dim=1)
    against = variance * (logits.argmax(dim=2) != labels)[..., None]
    total = against.sum(dim=0)
    mean = (against * logits).sum(dim=0) / total.clamp(min=torch.finfo(total.dtype).tiny)
    return labels, mean.softmax(dim=1) * (total > 0)


def _head(server: Server, state: ModelState, name: str) -> Tensor:
    return flatten(Split(server.load(state, name), name, server.signature_of(name)).head)


def _with_head(server: Server, state: ModelState, name: str, head: Tensor) -> ModelState:
    split = Split(server.load(state, name), name, server.signature_of(name))
    unflatten(split.head, head)
    return ModelState.of(split.model)

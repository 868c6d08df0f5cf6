"""pfl's side: its simulated backend in one process, users' data as tensors in memory, no evaluation."""

from functools import partial
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn import functional as F
from turns import Turns, started


class Network(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.inner(images)
        return out

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self(images), labels)

    @torch.no_grad()
    def metrics(self, images: Tensor, labels: Tensor) -> dict[str, Any]:
        return {"loss": Weighted(float(self.loss(images, labels)) * len(labels), len(labels))}


class Rounds(TrainingProcessCallback):
    """Ends a round and waits for the next."""

    def __init__(self, turns: Turns, rounds: int) -> None:
        self._turns, self._rounds = turns, rounds

    def on_train_begin(self, *, model: Any) -> Metrics:
        self._turns.wait()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Any, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self._turns.played()
        if central_iteration + 1 < self._rounds:
            self._turns.wait()
        return False, Metrics()


workload, turns = started()
settings = workload.settings
network = Network(workload.network())
users = [PyTorchTensorDataset(data, user_id=str(user)) for user, data in enumerate(workload.clients)]
# One user after the other: its random sampler would draw some of them twice in a round.
everyone = FederatedDataset(users.__getitem__, get_user_sampler("minimize_reuse", range(len(users))))
FederatedAveraging().run(
    NNAlgorithmParams(
        central_num_iterations=settings["rounds"],
        # The first round evaluates in any case; it is the one that warms up.
        evaluation_frequency=settings["rounds"],
        train_cohort_size=settings["participants"],
        val_cohort_size=None,
    ),
    SimulatedBackend(training_data=everyone, val_data=everyone),
    PyTorchModel(
        network,
        partial(torch.optim.SGD, momentum=settings["momentum"]),
        # With a rate of 1 the server's step is the mean of the users' models.
        torch.optim.SGD(network.parameters(), lr=1.0),
    ),
    NNTrainHyperParams(
        local_batch_size=settings["batch"], local_num_epochs=1, local_learning_rate=settings["lr"]
    ),
    callbacks=[Rounds(turns, settings["rounds"])],
    send_metrics_to_platform=False,
)
turns.score(workload, network)

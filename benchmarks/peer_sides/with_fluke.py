"""fluke's side: its FedAVG with models in memory, its own fast data loader, no logger, no evaluation."""

from typing import Any

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    # torchvision from the index is built for CUDA and finds none of its operators beside a torch for the CPU
    # alone. fluke imports it and needs none of them here, so the two that the import asks for are declared.
    for name in ("nms", "qnms"):
        torch.library.define(
            f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )

from fluke import DDict, FlukeENV
from fluke.algorithms.fedavg import FedAVG
from fluke.data import DataSplitter, DummyDataContainer, FastDataLoader
from fluke.utils import FederationObserver
from turns import Turns, started


class Rounds(FederationObserver):
    """Starts a round when it is asked for."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def start_round(self, round: int, global_model: Any) -> None:
        self._turns.wait()

    def end_round(self, round: int) -> None:
        self._turns.played()


workload, turns = started()
settings = workload.settings
environment = FlukeENV()
environment.set_seed(settings["seed"])
environment.set_device("cpu")
environment.set_inmemory(True)
environment.set_eval_cfg(pre_fit=False, post_fit=False, locals=False, server=False)
loaders = [
    FastDataLoader(*data, num_labels=10, batch_size=settings["batch"], shuffle=True)
    for data in workload.clients
]
model = workload.network()
algorithm = FedAVG(
    n_clients=settings["clients"],
    data_splitter=DataSplitter(DummyDataContainer(loaders, [None] * len(loaders), None, num_classes=10)),
    hyper_params=DDict(
        model=model,
        client=DDict(
            batch_size=settings["batch"],
            local_epochs=1,
            loss="CrossEntropyLoss",
            optimizer=DDict(name="SGD", lr=settings["lr"], momentum=settings["momentum"]),
            scheduler=DDict(name="StepLR", step_size=1, gamma=1.0),
            # Clients start each round without the momentum of the last one, as on the other sides.
            persistency=False,
        ),
        server=DDict(weighted=True),
    ),
)
algorithm.set_callbacks([Rounds(turns)])
algorithm.run(settings["rounds"], settings["participants"] / settings["clients"])
turns.score(workload, model)

"""FedProx: FedAvg with a pull towards the received weights."""

import torch
from pydantic import Field
from torch import Tensor, nn

from fedistill.communication.messages.weights import Weights
from fedistill.methods.shared.weight_averaging import AveragingSettings, Penalty, WeightAveraging
from fedistill.training.model_state import trainable


class FedProxSettings(AveragingSettings):
    mu: float = Field(default=0.01, ge=0, description="strength of the pull; 0 is FedAvg")


class FedProx(WeightAveraging):
    """FedAvg with ``mu/2 ||w - w_received||^2`` added to the local loss.

    Exchanged and bytes: as in `fedavg`. Departs from the paper: all clients train for the same number of
    epochs; partial work by slow clients is not modelled.
    """

    name = "fedprox"
    paper = "Li et al., 2020, arXiv 1812.06127, equation 2"
    beyond_model = (
        "weights whose loss has a penalty that belongs to no record, and that DP-SGD would leave out"
    )
    Settings = FedProxSettings
    settings: FedProxSettings

    def penalty(self, received: Weights) -> Penalty:
        start = received.values

        def pull(model: nn.Module) -> Tensor:
            nonlocal start
            weights = torch.cat([value.reshape(-1) for value in trainable(model)])
            start = start.to(weights.device)  # once
            return self.settings.mu / 2 * (weights - start[: len(weights)]).square().sum()

        return pull

"""What a model of an arm answers, given its name and state."""

from torch import Tensor, nn

from fedistill.federation.arm import ReadyArm
from fedistill.models import registry as models
from fedistill.models.features import Split
from fedistill.rng import scoped
from fedistill.training.loop import predict
from fedistill.training.model_state import ModelState


def answers(arm: ReadyArm, name: str, state: ModelState, inputs: Tensor) -> Tensor:
    """Return the logits (n, C) of a model on inputs (n, ...)."""
    with scoped(arm.seed, "evaluation"):
        return predict(state.load_into(models.reusable(name, arm.signature(name))), inputs)


def features(arm: ReadyArm, name: str, state: ModelState, inputs: Tensor) -> Tensor:
    """Return the features (n, d) of a model, the input of its last layer, on inputs (n, ...)."""
    signature = arm.signature(name)
    split = Split(state.load_into(models.reusable(name, signature)), name, signature)
    with scoped(arm.seed, "evaluation"):
        return predict(_Features(split), inputs)


class _Features(nn.Module):
    def __init__(self, split: Split) -> None:
        super().__init__()
        self._split = split

    def forward(self, inputs: Tensor) -> Tensor:
        self._split(inputs)
        return self._split.features

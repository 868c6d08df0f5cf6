"""A running mean of the server's model over rounds, which is measured and saved in that model's place.

What is exchanged and trained stays as it is, so no byte depends on it.
"""

from dataclasses import replace

import torch

from fedistill.methods.base import AnyState
from fedistill.training.model_state import ModelState


def running_mean(
    mean: ModelState | None, before: AnyState, after: AnyState, decay: float
) -> ModelState | None:
    """Return the mean after a round: ``decay`` of the mean so far, and the rest of the server's new model.

    It starts from the model after the first round that changes it. A round that leaves the model as it was
    does not count. Floating-point buffers are averaged as weights are, integers are those of the new model.

    Args:
        before, after: the server's state before and after the round; they have a ``model``.
    """
    model: ModelState = after.model
    if torch.equal(before.model.weights, model.weights):
        return mean
    if mean is None:
        return model
    weights = mean.weights.double().lerp(model.weights.double(), 1 - decay).float()
    return ModelState(weights, model.integers)


def as_measured(state: AnyState, mean: ModelState | None) -> AnyState:
    """Return the server's state with the running mean as its model, if there is one."""
    return state if mean is None else replace(state, model=mean)

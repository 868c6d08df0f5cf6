"""What is checked, before round 1, of functions of the user's own that training calls."""

import torch
from torch import nn

from fedistill.config.plugins import named, naming
from fedistill.config.training import ResolvedOptimizer
from fedistill.errors import ExperimentError, TrainingError
from fedistill.rng import scoped
from fedistill.state import State, decode_state, encode_state
from fedistill.training.optimizers import Optimizer, make_optimizer


def check_optimizer(settings: ResolvedOptimizer) -> None:
    """Take two steps with an optimizer of the user's own, and the same with one that is saved in between.

    Raises:
        ExperimentError: the function cannot be found or fails, or returns something else than an optimizer,
            or one that goes on otherwise after it was saved.
    """
    if not settings.own:
        return
    what, make = f"optimizer {settings.name!r}", named("optimizer", settings.name, "function")
    with naming(f"{what}, called with a list of parameters and lr = {settings.lr:g}, raised"):
        made = make(list(_small().parameters()), lr=settings.lr)
    if not isinstance(made, torch.optim.Optimizer):
        raise ExperimentError(f"{what} must return a torch.optim.Optimizer, not a {type(made).__name__}")
    whole, parted = _small(), _small()
    with scoped(0, "check"), naming(f"{what} cannot take two steps:"):
        optimizer = make_optimizer(settings, whole)
        for _ in range(2):
            _step(whole, optimizer)
    first = make_optimizer(settings, parted)
    with scoped(0, "check"):
        _step(parted, first)
        saved = _saved(what, first)
        with naming(f"{what} cannot go on after it was saved:"):
            _step(parted, make_optimizer(settings, parted).restore(saved))
    if not all(map(torch.equal, whole.parameters(), parted.parameters())):
        raise ExperimentError(
            f"{what} goes on otherwise after it was saved: all that it remembers must be in its `state`, and"
            " nothing of it in `param_groups` or elsewhere"
        )


def _small() -> nn.Module:
    with scoped(0, "check"):
        return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def _step(model: nn.Module, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.arange(6.0).view(2, 3)).square().sum().backward()
    optimizer.step()


def _saved(what: str, optimizer: Optimizer) -> State:
    try:
        return decode_state(encode_state(optimizer.state()))
    except TrainingError as error:
        raise ExperimentError(f"{what} cannot be saved between rounds: {error}") from None

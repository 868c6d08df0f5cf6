"""What is checked, before round 1, of functions of the user's own that training calls."""

import torch
from torch import Tensor, nn

from fedistill.config.plugins import named, naming
from fedistill.config.training import ResolvedOptimizer, ResolvedTrain
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


def check_loss(train: ResolvedTrain, classes: int) -> None:
    """Call a loss of the user's own with some logits and labels, and take its gradient.

    Raises:
        ExperimentError: the function cannot be found or fails, does not return a scalar or a value for each
            sample, or has no finite gradient.
    """
    if not train.own_loss:
        return
    what, loss = f"loss {train.loss!r}", named("loss", train.loss, "function")
    for samples in (3, 1):
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(samples, classes, generator=generator).requires_grad_()
        labels = torch.arange(samples) % classes
        with naming(f"{what}, called with logits ({samples}, {classes}) and labels ({samples},), raised"):
            value = loss(logits, labels)
        if not isinstance(value, Tensor) or value.shape not in ((), (samples,)):
            found = tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise ExperimentError(
                f"{what} returns {found} for {samples} sample{'s' if samples > 1 else ''}: it must return a"
                f" tensor, a scalar or one value for each sample, of shape ({samples},)"
            )
        with naming(f"{what} has no gradient:"):
            (slope,) = torch.autograd.grad(value.mean(), logits)
        if not torch.isfinite(slope).all():
            raise ExperimentError(
                f"{what} has a gradient that is NaN or infinite for logits {logits.tolist()}"
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
        with naming(f"{what} cannot be saved between rounds:"):
            state = optimizer.state()
        return decode_state(encode_state(state))
    except TrainingError as error:
        raise ExperimentError(f"{what} cannot be saved between rounds: {error}") from None

"""Training on private data by DP-SGD: gradients of single records, clipped, summed, and made noisy.

Opacus takes the gradients of single records, clips them and adds the noise; the step itself is that of the
arm's own optimizer, which may be any, since it sees nothing but noisy gradients.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedistill.errors import TrainingError
from fedistill.privacy.library import opacus
from fedistill.privacy.mechanisms import DpSgd
from fedistill.training.cost import BatchCosts, uncounted
from fedistill.training.loop import Loss, batch
from fedistill.training.optimizers import Optimizer

if TYPE_CHECKING:
    from opacus.optimizers import DPOptimizer


def fit_privately(
    model: nn.Module,
    optimizer: Optimizer,
    inputs: Tensor,
    loss: Loss,
    settings: DpSgd,
    *,
    steps: int,
    draws: torch.Generator,
    noise: torch.Generator,
    augment: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Train a model, in place, by DP-SGD (Abadi et al., 2016, algorithm 1).

    In each step, every record is in the batch with probability `rate`, whatever the others are; a batch may
    be empty. The noisy sum is divided by the expected number of records in a batch.

    Args:
        inputs: (n, ...) the private records.
        loss: the mean over a batch of a loss of each record, which depends on no other record.
        draws: what batches are drawn from; ``noise``: what noise is drawn from.

    Raises:
        ExperimentError: Opacus is not installed.
        TrainingError: the model has a layer that it cannot work with, or a buffer has changed, which no noise
            covers.
    """
    assert settings.noise is not None
    trained = [value for value in model.parameters() if value.requires_grad]
    before = [value.clone() for value in model.buffers()]
    costs = BatchCosts()
    model.train()
    with (
        _per_record(model, trained, settings, settings.rate * len(inputs), noise) as noisy,
        warnings.catch_warnings(),
    ):
        # Of images, which need no gradients, and lie in memory otherwise than Opacus' gradients.
        for about in ("Full backward hook is firing", "grad and param do not obey"):
            warnings.filterwarnings("ignore", about, UserWarning)
        for step in range(steps):
            drawn = torch.rand(len(inputs), generator=draws) < settings.rate
            index = drawn.nonzero().flatten()
            with costs.step(len(index), model, optimizer):
                noisy.zero_grad()
                if len(index):
                    value = loss(model(batch(inputs, index, augment)), index)
                    value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                    _check_per_record(trained, len(index))
                else:
                    for parameter in trained:
                        parameter.grad_sample = parameter.new_zeros(0, *parameter.shape)  # type: ignore[attr-defined]  # Opacus' own
                with uncounted():
                    try:
                        noisy.pre_step()
                    except ValueError as error:
                        raise TrainingError(f"DP-SGD: a layer takes no part in the loss ({error})") from error
                    optimizer.step(step, steps)
    after = list(model.buffers())
    if len(before) != len(after) or not all(map(torch.equal, before, after)):
        raise TrainingError(
            "training has changed a buffer of the model, which holds what no noise covers: use layers without"
            " such buffers"
        )


def _check_per_record(trained: list[nn.Parameter], records: int) -> None:
    """See that there is one gradient per record, so that clipping them bounds what a record adds.

    Raises:
        TrainingError: a layer was given a batch in which a record is not one row, or a module runs twice.
    """
    for parameter in trained:
        found = getattr(parameter, "grad_sample", None)
        for one in found if isinstance(found, list) else [found]:
            if one is not None and len(one) != records:
                raise TrainingError(
                    f"DP-SGD: a layer takes {len(one)} rows where a batch has {records} records, so that"
                    " clipping rows would not bound what a record tells: keep records in the first dimension"
                )


@contextmanager
def _per_record(
    model: nn.Module, trained: list[nn.Parameter], settings: DpSgd, expected: float, noise: torch.Generator
) -> Iterator["DPOptimizer"]:
    """Have the model take a gradient of each record; yield what clips them and adds noise."""
    try:
        hooked = opacus("grad_sample").GradSampleModule(model)
    except NotImplementedError as error:
        raise TrainingError(f"DP-SGD cannot train this model: {error}") from error
    try:
        # Its optimizer never takes a step: the arm's own does.
        yield opacus("optimizers").DPOptimizer(
            torch.optim.SGD(trained, lr=1.0),
            noise_multiplier=settings.noise,
            max_grad_norm=settings.clip,
            expected_batch_size=expected,
            generator=noise,
        )
    finally:
        hooked.to_standard_module()
        for parameter in trained:
            for name in ("grad_sample", "summed_grad"):
                if hasattr(parameter, name):
                    delattr(parameter, name)


def fault(model: nn.Module) -> str | None:
    """Return why a model cannot be trained by DP-SGD, or None if it can.

    Raises:
        ExperimentError: Opacus is not installed.
    """
    if any(isinstance(part, _BatchNorm) for part in model.modules()):
        return (
            "has batch norm, by which a record changes the others' gradients: use nn.GroupNorm or"
            " nn.LayerNorm"
        )
    model.train()
    faults = [
        *opacus("validators").ModuleValidator.validate(model),
        *opacus("grad_sample").GradSampleModule.validate(model),
    ]
    return f"cannot be trained by DP-SGD: {faults[0]}" if faults else None

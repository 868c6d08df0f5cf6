"""The local training loop, which all methods share."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedistill.errors import TrainingError
from fedistill.training.optimizers import Optimizer

Loss = Callable[[Tensor, Tensor], Tensor]
"""A function from logits (b, C) and the positions (b,) of the batch's samples to a scalar."""


def fit(
    model: nn.Module,
    optimizer: Optimizer,
    inputs: Tensor,
    loss: Loss,
    *,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
    steps: int | None = None,
) -> None:
    """Train a model, visiting the samples in a new order each epoch.

    Args:
        steps: number of batches to train on, in place of epochs; the last epoch may end early.

    Raises:
        TrainingError: the loss is NaN or infinite; the message says whether it was before the first step.
    """
    model.train()
    left, first = steps, None
    for epoch in range(epochs if steps is None else steps):
        if left == 0:
            break
        batches = torch.split(torch.randperm(len(inputs), generator=generator), batch_size)[:left]
        if left is not None:
            left -= len(batches)
        total = torch.zeros(())
        for index in batches:
            optimizer.zero_grad()
            value = loss(model(batch(inputs, index)), index)
            value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            first = value.detach() if first is None else first
            total += value.detach()
        if not torch.isfinite(total):
            if first is not None and not torch.isfinite(first):
                raise TrainingError(
                    f"the loss is {first.item()} before the first step of training: the weights that it"
                    " starts from are broken, or the inputs are extreme; if weights were received, look at"
                    " the rounds before and at the codec of the downlink"
                )
            raise TrainingError(
                f"the loss is {total.item()} in local epoch {epoch + 1}: lower train.optimizer.lr, or look"
                " for extreme inputs"
            )


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor, batch_size: int = 500) -> Tensor:
    """Return logits (n, C) in evaluation mode."""
    model.eval()
    places = torch.split(torch.arange(len(inputs)), batch_size)
    return torch.cat([model(batch(inputs, index)) for index in places])


def batch(inputs: Tensor, index: Tensor) -> Tensor:
    """Select samples and convert them to what models take: scaled pixels, int64 tokens, or floats."""
    # Copies row by row, three times as fast as `inputs[index]`.
    picked = inputs.index_select(0, index)
    if inputs.dtype == torch.uint8:
        return to_float(picked).contiguous(memory_format=torch.channels_last)
    return picked if picked.is_floating_point() else picked.to(torch.int64)


def to_float(pixels: Tensor) -> Tensor:
    """Scale uint8 pixels to [-1, 1], by constants that do not depend on private data."""
    return pixels.to(torch.float32).div_(127.5).sub_(1.0)

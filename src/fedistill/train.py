"""The one local training loop, and models as plain data.

A model's weights travel and are saved as one flat float32 vector: all floating-point entries of its
``state_dict``, in order.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from fedistill.errors import TrainingError
from fedistill.optim import Optimizer
from fedistill.state import write
from fedistill.tasks.image import to_float

Loss = Callable[[Tensor, Tensor], Tensor]
"""From logits (b, C) and the positions (b,) of the batch's samples to a scalar."""


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
    """Train a model, going over the samples in a new order each epoch.

    Args:
        steps: batches to train on, in place of epochs: the last epoch may end early.

    Raises:
        TrainingError: the loss is NaN or infinite.
    """
    model.train()
    left = steps
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
            total += value.detach()
        if not torch.isfinite(total):
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
    """Pick samples and turn what is stored into what models take: scaled pixels, int64 tokens, or floats."""
    # Copies whole rows, three times as fast as `inputs[index]`.
    picked = inputs.index_select(0, index)
    if inputs.dtype == torch.uint8:
        return to_float(picked).contiguous(memory_format=torch.channels_last)
    return picked if picked.is_floating_point() else picked.to(torch.int64)


def flatten(model: nn.Module) -> Tensor:
    """Return a copy of a model's weights, float32 (P,)."""
    return torch.cat([value.detach().reshape(-1).float() for value in floats(model)])


def unflatten(model: nn.Module, weights: Tensor) -> nn.Module:
    """Load flat weights (P,) into a model, in place, and return it."""
    values = list(floats(model))
    parts = torch.split(weights, [value.numel() for value in values])
    with torch.no_grad():
        for value, part in zip(values, parts, strict=True):
            value.copy_(part.view(value.shape))
    return model


def save_model(path: Path, model: nn.Module, weights: Tensor, about: dict[str, str]) -> None:
    """Write flat weights (P,) of a model as safetensors, by PyTorch's own names; it is left with them."""
    unflatten(model, weights)
    # Clones, since weights that a model uses twice share memory, which the format does not know.
    tensors = {
        key: value.clone(memory_format=torch.contiguous_format) for key, value in model.state_dict().items()
    }
    write(path, save(tensors, about))


def floats(model: nn.Module) -> Iterable[Tensor]:
    """All floating-point weights of a model, in the order of its flat vector."""
    seen: set[int] = set()  # weights that a model uses twice travel once
    # `state_dict` would do, but builds a dictionary of names each time.
    for module in model.modules():
        for value in module._parameters.values():
            if value is not None and id(value) not in seen:
                seen.add(id(value))
                yield value
        for name, buffer in module._buffers.items():
            saved = name not in module._non_persistent_buffers_set
            if buffer is not None and saved and buffer.is_floating_point():
                yield buffer

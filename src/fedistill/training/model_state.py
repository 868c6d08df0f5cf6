"""Models as plain data.

A model's weights travel and are saved as one flat float32 vector: all floating-point entries of its
``state_dict``, in order.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from fedistill.state import write_file


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
    write_file(path, save(tensors, about))


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

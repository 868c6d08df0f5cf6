"""Models as plain data: weights that travel, buffers that stay local, and a frozen part common to all.

Weights travel and are saved as one flat float32 vector: all trainable parameters and all persistent
floating-point buffers, in the order of the modules. All other buffers (integer, boolean, complex or not
persistent) stay in the state of the client or server that trains the model. Parameters without gradient are
frozen: server and clients build them from the same seed, and they are neither sent nor saved in a state.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from fedistill.errors import TrainingError
from fedistill.state import write_file


@dataclass(frozen=True)
class ModelState:
    """Everything that distinguishes a model from others of the same architecture.

    Attributes:
        weights: float32 (P,), which travel.
        buffers: buffers that do not travel, by name; most models have none.
    """

    weights: Tensor
    buffers: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> "ModelState":
        """Return a copy of the state of a model."""
        return cls(flatten(model), {name: value.detach().clone() for name, value in local_buffers(model)})

    def load_into(self, model: nn.Module) -> nn.Module:
        """Load this state into a model of the same architecture, in place, and return it.

        Buffers that this state lacks are left unchanged.

        Raises:
            TrainingError: the model has no buffer of a name, or it has another shape.
        """
        unflatten(model, self.weights)
        held = dict(local_buffers(model))
        for name, value in self.buffers.items():
            if name not in held or held[name].shape != value.shape:
                raise TrainingError(f"the model's buffer {name!r} has changed its shape or is gone")
            with torch.no_grad():
                held[name].copy_(value)
        return model


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


def save_model(path: Path, model: nn.Module, state: ModelState, about: dict[str, str]) -> None:
    """Write a model's state as safetensors under PyTorch's names; this loads the state into the model."""
    state.load_into(model)
    # Cloned, since the format does not support tensors that share memory, such as tied weights.
    tensors = {
        key: value.clone(memory_format=torch.contiguous_format) for key, value in model.state_dict().items()
    }
    write_file(path, save(tensors, about))


def floats(model: nn.Module) -> Iterable[Tensor]:
    """Yield the weights that travel, in the order of the flat vector."""
    seen: set[int] = set()  # tied weights travel once
    # `state_dict` would also work, but builds a dictionary of names on each call.
    for module in model.modules():
        for value in module._parameters.values():
            if value is not None and value.requires_grad and id(value) not in seen:
                seen.add(id(value))
                yield value
        for name, buffer in module._buffers.items():
            if buffer is not None and _travels(module, name, buffer):
                yield buffer


def local_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield names and values of the buffers that do not travel."""
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and not _travels(module, name, buffer):
                yield f"{prefix}.{name}" if prefix else name, buffer


def _travels(module: nn.Module, name: str, buffer: Tensor) -> bool:
    return buffer.is_floating_point() and name not in module._non_persistent_buffers_set

"""Models as plain data: weights that travel, buffers that stay, and a frozen part that all have.

Weights travel and are saved as one flat float32 vector: all trainable parameters and all persistent
floating-point buffers, in the order of the modules. Every other buffer (of integers, truth values or complex
numbers, or not persistent) is in the state of whoever trains the model. Parameters that need no gradient are
frozen: each side builds them for itself, from the same seed, and they are neither sent nor saved in a state.
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
    """All that sets one model apart from another of its architecture.

    Attributes:
        weights: float32 (P,), what travels.
        buffers: by name, what stays where the model is trained; most models have none.
    """

    weights: Tensor
    buffers: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> "ModelState":
        """Return a copy of the state of a model."""
        return cls(flatten(model), {name: value.detach().clone() for name, value in local_buffers(model)})

    def load_into(self, model: nn.Module) -> nn.Module:
        """Load this state into a model of the same architecture, in place, and return it.

        Buffers that this state lacks are left as they are.

        Raises:
            TrainingError: a buffer has another shape, or there is none of this name.
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
    """Write a model's state as safetensors, by PyTorch's own names; the model is left with it."""
    state.load_into(model)
    # Clones, since weights that a model uses twice share memory, which the format does not know.
    tensors = {
        key: value.clone(memory_format=torch.contiguous_format) for key, value in model.state_dict().items()
    }
    write_file(path, save(tensors, about))


def floats(model: nn.Module) -> Iterable[Tensor]:
    """The weights that travel, in the order of the flat vector."""
    seen: set[int] = set()  # weights that a model uses twice travel once
    # `state_dict` would do, but builds a dictionary of names each time.
    for module in model.modules():
        for value in module._parameters.values():
            if value is not None and value.requires_grad and id(value) not in seen:
                seen.add(id(value))
                yield value
        for name, buffer in module._buffers.items():
            if buffer is not None and _travels(module, name, buffer):
                yield buffer


def local_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the buffers that do not travel."""
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and not _travels(module, name, buffer):
                yield f"{prefix}.{name}" if prefix else name, buffer


def _travels(module: nn.Module, name: str, buffer: Tensor) -> bool:
    return buffer.is_floating_point() and name not in module._non_persistent_buffers_set

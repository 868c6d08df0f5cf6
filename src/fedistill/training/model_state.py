"""Models as plain data: what travels, what integers they hold, and what every participant builds alike.

The state of a model is what its ``state_dict`` holds, without its frozen parameters:

- *weights*, one flat float32 vector: all trainable parameters, then all persistent floating-point buffers,
  each in the order of the modules; a complex number is two numbers. They are averaged.
- *integers*, one flat int64 vector: all persistent integer and boolean buffers. Where models are averaged,
  the result holds the largest of each.

All else starts from scratch whenever a state is loaded (`fedistill.models.registry.reusable`): buffers that
are not persistent, attributes, and generators. Parameters without gradient are frozen: server and clients
build them from the same seed or file, and they are neither sent nor saved in a state.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from fedistill.communication.messages.base import MessageContext
from fedistill.communication.messages.integer_arrays import StartIntegers
from fedistill.communication.messages.weights import CarriesWeights, no_integers
from fedistill.errors import TrainingError
from fedistill.state import write_file
from fedistill.training.cost import uncounted


@dataclass(frozen=True)
class ModelState:
    """Everything that distinguishes a model from others of the same architecture.

    Attributes:
        weights: float32 (P,).
        integers: int64 (I,); most models have none.
    """

    weights: Tensor
    integers: Tensor = field(default_factory=no_integers)

    @classmethod
    def of(cls, model: nn.Module) -> "ModelState":
        """Return a copy of the state of a model."""
        with uncounted():
            return cls(flatten(model), flatten_integers(model))

    @classmethod
    def received(cls, message: CarriesWeights) -> "ModelState":
        """Return the state that a message brings."""
        return cls(message.values, message.integers)

    def load_into(self, model: nn.Module) -> nn.Module:
        """Load this state into a model of the same architecture, in place, and return it.

        A state without integers leaves those of the model unchanged.

        Raises:
            TrainingError: the model holds more or fewer numbers.
        """
        with uncounted():
            unflatten(model, self.weights)
            if len(self.integers):
                _fill(list(integers(model)), self.integers, "integers in buffers")
        return model


@dataclass(frozen=True)
class WeightLayout:
    """What the state of a model consists of; equal for all models of an architecture.

    Attributes:
        parts: shapes of the trainable parameters.
        buffers: how many numbers the floating-point buffers have, the last of the weights.
        integers: the integers before round 1.
    """

    parts: tuple[tuple[int, ...], ...]
    buffers: int
    integers: StartIntegers

    @classmethod
    def of(cls, model: nn.Module) -> "WeightLayout":
        """Return the layout of a model; its integers are taken for those before round 1."""
        lowest, highest = [], []
        for value in integers(model):
            low, high = (0, 1) if value.dtype == torch.bool else _range(value.dtype)
            lowest += [low] * value.numel()
            highest += [high] * value.numel()
        return cls(
            tuple(tuple(value.shape) for value in trainable(model)),
            sum(value.numel() for value in float_buffers(model)),
            StartIntegers(tuple(flatten_integers(model).tolist()), tuple(lowest), tuple(highest)),
        )

    @property
    def size(self) -> int:
        """P, the number of weights."""
        return sum(map(math.prod, self.parts)) + self.buffers

    def into(self, context: MessageContext) -> MessageContext:
        """Return the context of messages with such a model."""
        return replace(
            context,
            parameters=self.size,
            parts=self.parts,
            buffers=self.buffers,
            integers=self.integers,
        )


def flatten(model: nn.Module) -> Tensor:
    """Return a copy of a model's weights, float32 (P,), in the processor's memory."""
    return torch.cat([value.detach().reshape(-1).float() for value in floats(model)]).cpu()


def flatten_integers(model: nn.Module) -> Tensor:
    """Return a copy of a model's integers, int64 (I,), in the processor's memory."""
    return torch.cat([no_integers(), *(value.detach().reshape(-1).long().cpu() for value in integers(model))])


def unflatten(model: nn.Module, weights: Tensor) -> nn.Module:
    """Load flat weights (P,) into a model, in place, and return it.

    Raises:
        TrainingError: the model has more or fewer weights.
    """
    _fill(list(floats(model)), weights, "weights")
    return model


def save_model(path: Path, model: nn.Module, state: ModelState) -> None:
    """Write a model's state as safetensors under PyTorch's names; this loads the state into the model."""
    state.load_into(model)
    # Cloned, since the format does not support tensors that share memory, such as tied weights.
    tensors = {
        key: value.clone(memory_format=torch.contiguous_format) for key, value in model.state_dict().items()
    }
    write_file(path, save(tensors, {"format": "pt"}))  # several keys would be in any order


def floats(model: nn.Module) -> Iterable[Tensor]:
    """Yield the weights that travel, in the order of the flat vector; complex ones as (..., 2) real ones."""
    return chain(trainable(model), float_buffers(model))


def trainable(model: nn.Module) -> Iterator[Tensor]:
    """Yield the trainable parameters, in the order of the flat vector, as in `floats`."""
    seen: set[int] = set()  # tied weights travel once
    # `parameters` would also work, but forms a name for each of them on each call.
    for module in _parts(model):
        for value in module._parameters.values():
            if value is not None and value.requires_grad and id(value) not in seen:
                seen.add(id(value))
                yield torch.view_as_real(value) if value.is_complex() else value


def float_buffers(model: nn.Module) -> Iterator[Tensor]:
    """Yield the persistent floating-point and complex buffers, in the order of the flat vector."""
    for value in _buffers(model):
        if value.is_complex():
            yield torch.view_as_real(value)
        elif value.is_floating_point():
            yield value


def integers(model: nn.Module) -> Iterator[Tensor]:
    """Yield the persistent integer and boolean buffers."""
    for value in _buffers(model):
        if not value.is_floating_point() and not value.is_complex():
            yield value


def persistent_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield names and values of the buffers that a ``state_dict`` holds, each tensor once."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, value in module._buffers.items():
            if value is None or name in module._non_persistent_buffers_set or id(value) in seen:
                continue
            seen.add(id(value))
            yield f"{prefix}.{name}" if prefix else name, value


def _buffers(model: nn.Module) -> Iterator[Tensor]:
    if any(part._buffers for part in _parts(model)):  # most models have none
        yield from (value for _, value in persistent_buffers(model))


def _parts(model: nn.Module) -> Iterator[nn.Module]:
    """Yield what `modules` does, each part once, in the same order, without the names that it forms."""
    seen: set[int] = set()
    ahead: list[nn.Module | None] = [model]
    while ahead:
        part = ahead.pop()
        if part is not None and id(part) not in seen:
            seen.add(id(part))
            yield part
            ahead += reversed(part._modules.values())


def _range(dtype: torch.dtype) -> tuple[int, int]:
    info = torch.iinfo(dtype)
    return int(info.min), int(info.max)


def _fill(places: list[Tensor], flat: Tensor, what: str) -> None:
    """Copy a flat vector into tensors."""
    sizes = [place.numel() for place in places]
    if sum(sizes) != len(flat):
        raise TrainingError(
            f"the model has {sum(sizes)} {what} where its state has {len(flat)}: parameters and buffers must"
            " keep their shapes, and parameters their `requires_grad`"
        )
    with torch.no_grad():
        for place, part in zip(places, torch.split(flat, sizes), strict=True):
            place.copy_(part.view(place.shape))

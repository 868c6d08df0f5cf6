"""What is checked of a model before round 1: that it fits the task, can be trained, and keeps its state."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedistill.config.plugins import naming
from fedistill.errors import ExperimentError
from fedistill.models.registry import blank_inputs, build_model, is_own, reusable
from fedistill.models.signature import Signature
from fedistill.rng import scoped
from fedistill.training.devices import CPU, current_device, explaining, placed
from fedistill.training.loop import has_one_value_per_channel
from fedistill.training.model_state import ModelState, persistent_buffers, trainable

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.complex64)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


def check_model(name: str, signature: Signature) -> nn.Module:
    """Build a model twice and run blank samples through it, in evaluation and in training.

    Raises:
        ExperimentError: as in `build_model`; or the output is not (n, classes) in one of the two modes; or it
            cannot be trained; or its state cannot be averaged, changes its shape, or is shared by two models;
            or a custom model answers otherwise when it is built or used again.
    """
    model, other = (build_model(name, signature, seed=0, client=client) for client in (0, 1))
    _check_apart(name, model, other)
    _check_tensors(name, model)
    with scoped(0, "check"), placed(model):
        model.eval()
        for samples in (2, 1, 3):
            _check_logits(name, _logits(name, model, signature, samples, ""))
        _check_training(name, model, signature)
    if is_own(name):
        _check_repeats(name, signature)
    return model


def _check_apart(name: str, model: nn.Module, other: nn.Module) -> None:
    """See that two models share nothing that training changes; frozen parameters they may share."""
    mine = {id(value): place for place, value in _state(model)}
    shared = [place for place, value in _state(other) if id(value) in mine]
    if model is other or shared:
        what = "the same module" if model is other else f"modules that share {shared[0]!r}"
        raise ExperimentError(
            f"model {name!r}: the function returns {what} when it is called twice, so that clients would"
            " train each other's weights: build everything that is trained inside the function"
        )


def _check_tensors(name: str, model: nn.Module) -> None:
    """See that the state can be carried and averaged."""
    for place, value in _state(model):
        if value.dtype not in (*_FLOATS, *_INTEGERS) or value.layout != torch.strided:
            kind = str(value.dtype if value.layout == torch.strided else value.layout).removeprefix("torch.")
            raise ExperimentError(
                f"model {name!r}: {place!r} is {kind}, but the weights of a model travel as float32, and its"
                " integers as int64: convert it in the function, for example by model.float()"
            )
    for place, part in model.named_modules():
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            raise ExperimentError(
                f"model {name!r}: {place or type(part).__name__!r} has extra state (get_extra_state), which"
                " cannot be averaged or sent: keep it in buffers"
            )
    if not any(True for _ in trainable(model)):
        raise ExperimentError(
            f"model {name!r} has no parameter that can be trained: set requires_grad of those that should be"
        )


def _check_training(name: str, model: nn.Module, signature: Signature) -> None:
    before = _shapes(model)
    model.train()
    # Batch norm may need more than one sample; `training.loop.fit` sees to it.
    alone = () if has_one_value_per_channel(model, blank_inputs(signature, 1).to(current_device())) else (1,)
    for samples in (2, *alone, 3):
        logits = _logits(name, model, signature, samples, " in training mode")
        with naming(f"model {name!r} cannot be trained:"), explaining():
            cross_entropy(logits, torch.zeros(samples, dtype=torch.int64)).backward()  # type: ignore[no-untyped-call]  # as in `fit`
    after = _shapes(model)
    for place in sorted(before.keys() | after.keys()):
        if before.get(place) != after.get(place):
            raise ExperimentError(
                f"model {name!r}: {place!r} is {_described(before.get(place))} before training and"
                f" {_described(after.get(place))} after it, but all that is averaged must keep its shape:"
                " give it a fixed shape, or register it with persistent=False, to start from scratch"
            )


def _check_repeats(name: str, signature: Signature) -> None:
    """See that what a custom model computes follows from its state alone, built or used again."""
    builds = [build_model(name, signature, seed=0, client=0) for _ in range(2)]
    start = ModelState.of(builds[0])
    first, *others = (
        *(_answers(model, signature) for model in builds),
        *(_answers(start.load_into(reusable(name, signature)), signature) for _ in range(2)),
    )
    if not all(torch.allclose(first, other, rtol=0, atol=0, equal_nan=True) for other in others):
        raise ExperimentError(
            f"model {name!r} answers otherwise when it is built or used a second time, with equal weights and"
            " random numbers: something outside of the module changes what it computes, such as a global"
            " variable, an attribute of its class, or the time: keep it in the module's buffers or attributes"
        )


def _answers(model: nn.Module, signature: Signature) -> Tensor:
    """Return logits of blank samples in training, then in evaluation."""
    with scoped(0, "check"), torch.no_grad():
        model.train()
        trained = [model(blank_inputs(signature, samples)) for samples in (3, 2)]
        model.eval()
        return torch.cat([*trained, model(blank_inputs(signature, 2))])


def _check_logits(name: str, logits: Tensor) -> None:
    if (logits >= 0).all() and torch.allclose(logits.sum(dim=1), torch.ones(len(logits)), atol=1e-4):
        raise ExperimentError(
            f"model {name!r} returns probabilities (they add up to 1), but losses and pooling take logits:"
            " leave out the softmax at its end"
        )


def _logits(name: str, model: nn.Module, signature: Signature, samples: int, mode: str) -> Tensor:
    """Return a model's logits for blank samples, after a check of their shape."""
    inputs = blank_inputs(signature, samples).to(current_device())
    with naming(f"model {name!r} fails on an input of shape {tuple(inputs.shape)}{mode}:"), explaining():
        output = model(inputs)
    if not isinstance(output, Tensor) or output.shape != (samples, signature.classes):
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ExperimentError(
            f"model {name!r} returns {found} for {samples} sample{'s' if samples > 1 else ''}{mode}, but the"
            f" task has {signature.classes} classes: it must return ({samples}, {signature.classes})"
        )
    return output.to(CPU)


def _state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield names and values of all that travels."""
    yield from ((name, value) for name, value in model.named_parameters() if value.requires_grad)
    yield from persistent_buffers(model)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in _state(model)}


def _described(shape: tuple[int, ...] | None) -> str:
    return "absent or frozen" if shape is None else f"of shape {shape}"

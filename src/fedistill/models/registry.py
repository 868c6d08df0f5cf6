"""Models: a ladder from small to large for images and texts, and custom models as ``module:function``.

Every model of the ladder consists of ``features`` (a module that returns one vector per sample)
and ``head`` (a linear layer on it), and uses group or layer norm, never batch norm, since batch
statistics of one client are meaningless to another. ``NAME@WIDTH`` is a model of the ladder with one more
linear layer that brings its features to that width, for methods that exchange features.
"""

import functools
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from fedistill.config.plugins import named
from fedistill.errors import ExperimentError, nearest
from fedistill.models.signature import Build, Preprocessing, Signature
from fedistill.rng import scoped
from fedistill.training.model_state import local_buffers

FEATURES = "features"
"""Name of the layer whose output is a sample's feature vector."""
WIDEST = 4096


def _ladder() -> dict[str, dict[str, Build]]:
    from fedistill.models import image, text

    return {"image": image.LADDER, "text": text.LADDER}


def model_names(kind: Literal["image", "text"]) -> list[str]:
    """Return the names on the ladder, from small to large: by compute for images, by weights for texts.

    `cnn-m` has more weights than the ResNets, whose convolutions use each weight more often.
    """
    return list(_ladder()[kind])


def build_model(name: str, signature: Signature, seed: int, client: int) -> nn.Module:
    """Build a model with initial weights drawn from the stream of this seed and client.

    Raises:
        ExperimentError: the name is unknown or belongs to the other kind of task, or a custom function
            fails or does not return a module.
    """
    make = _find(name, signature)
    try:
        with scoped(seed, "init", client):
            model = make(signature)
    except Exception as error:  # any error of a custom function is reported with its name
        raise ExperimentError(
            f"model {name!r}: {_function(name)}({signature}) raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ExperimentError(
            f"model {name!r}: {_function(name)} must return an nn.Module, not a {type(model).__name__}"
        )
    if signature.kind == "image":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub lacks it
    return model


def reusable(name: str, signature: Signature) -> nn.Module:
    """Return this process's only module of a name, to load weights into.

    Its weights are left over from earlier use. Buffers that do not travel are reset to those of a fresh
    build, so that nothing leaks from one client to another.
    """
    module, fresh = _built(name, signature)
    with torch.no_grad():
        for place, buffer in local_buffers(module):
            if place in fresh and buffer.shape == fresh[place].shape:
                buffer.copy_(fresh[place])
    return module


@functools.lru_cache(maxsize=32)
def _built(name: str, signature: Signature) -> tuple[nn.Module, dict[str, Tensor]]:
    module = build_model(name, signature, seed=0, client=0)
    return module, {place: buffer.detach().clone() for place, buffer in local_buffers(module)}


def preprocessing(name: str) -> Preprocessing:
    """Return the preprocessing of raw samples for a model: for a custom function, its attribute.

    Raises:
        ExperimentError: the function cannot be found, or its ``preprocessing`` is not a `Preprocessing`.
    """
    if ":" not in name:
        return Preprocessing()
    function = _own(name)
    declared = getattr(function, "preprocessing", Preprocessing())
    if not isinstance(declared, Preprocessing):
        raise ExperimentError(
            f"model {name!r}: its attribute `preprocessing` must be a `Preprocessing` from"
            f" fedistill.models.signature, but is a {type(declared).__name__}"
        )
    if declared.tokenizer is None:
        return declared
    # The path is relative to the module that declares it.
    folder = Path(inspect.getfile(inspect.unwrap(function))).parent
    return replace(declared, tokenizer=str(folder / declared.tokenizer))


def check_model(name: str, signature: Signature) -> nn.Module:
    """Build a model and run two blank samples through it.

    Raises:
        ExperimentError: as in `build_model`, or the output is not (2, classes).
    """
    model = build_model(name, signature, seed=0, client=0)
    try:
        output = model.eval()(blank_inputs(signature, 2))
    except Exception as error:  # any error of a custom model is reported with its name
        raise ExperimentError(
            f"model {name!r} fails on an input of shape {(2, *signature.shape)}:"
            f" {type(error).__name__}: {error}"
        ) from None
    if not isinstance(output, Tensor) or output.shape != (2, signature.classes):
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ExperimentError(
            f"model {name!r} returns {found} for 2 samples, but the task has {signature.classes} classes:"
            f" it must return (2, {signature.classes})"
        )
    return model


def blank_inputs(signature: Signature, samples: int) -> Tensor:
    """Return inputs of the right shape without content."""
    if signature.kind == "image":
        return torch.zeros(samples, *signature.shape)
    return torch.ones(samples, *signature.shape, dtype=torch.int64)


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _find(name: str, signature: Signature) -> Build:
    if ":" in name:
        return _own(name)
    ladder = _ladder()
    base, at, width = name.partition("@")
    if base in ladder[signature.kind]:
        make = ladder[signature.kind][base]
        return _brought_to(_width(name, width), make) if at else make
    known = model_names(signature.kind)
    other = next((kind for kind, models in ladder.items() if base in models), None)
    if other is not None:
        raise ExperimentError(
            f"model {name!r} is for {other} tasks; this is a task of {signature.kind}s: {', '.join(known)}"
        )
    raise ExperimentError(
        f"model {name!r} is not one of {', '.join(known)} or module:function.{nearest(base, known)}"
    )


def _width(name: str, given: str) -> int:
    if given.isascii() and given.isdigit() and 1 <= int(given) <= WIDEST:
        return int(given)
    raise ExperimentError(
        f"model {name!r}: write NAME@WIDTH, for example cnn-s@64, where WIDTH is the feature width that one"
        f" more linear layer produces, a whole number from 1 to {WIDEST}"
    )


def _brought_to(width: int, make: Build) -> Build:
    def wider(signature: Signature) -> nn.Module:
        model = make(signature)
        head = model.get_submodule("head")
        assert isinstance(head, nn.Linear)
        features = nn.Sequential(model.get_submodule(FEATURES), nn.Linear(head.in_features, width), nn.ReLU())
        model.register_module(FEATURES, features)
        model.register_module("head", nn.Linear(width, head.out_features))
        return model

    return wider


def _function(name: str) -> str:
    return name.rpartition(":")[2]


def _own(name: str) -> Build:
    return named("model", name, "function")  # type: ignore[no-any-return]  # `build_model` checks its result

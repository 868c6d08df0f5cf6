"""Models: a ladder from small to large for images and texts, and one's own by ``module:function``.

Every model of the ladder ends in ``features`` (a module whose output is one vector for each sample)
and ``head`` (a linear layer on it), and normalises by groups or layers, never by batches: batch
statistics of one client mean nothing to another.
"""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fedistill.errors import ExperimentError, nearest
from fedistill.rng import scoped

FEATURES = "features"
"""Name of the layer whose output is a sample's feature vector."""


@dataclass(frozen=True)
class Signature:
    """What a model of a task takes and gives.

    Attributes:
        kind: image models take float32 (n, channels, height, width) in [-1, 1], text models take
            int64 token ids (n, length), 0 being padding.
        shape: of one input: (channels, height, width) or (length,).
        classes: C; a model gives float32 logits (n, C).
        vocabulary: number of token ids; 0 for images.
    """

    kind: Literal["image", "text"]
    shape: tuple[int, ...]
    classes: int
    vocabulary: int


Build = Callable[[Signature], nn.Module]


def _ladder() -> dict[str, dict[str, Build]]:
    from fedistill.models import image, text

    return {"image": image.LADDER, "text": text.LADDER}


def names(kind: Literal["image", "text"]) -> list[str]:
    """Names of the ladder, from small to large."""
    return list(_ladder()[kind])


def build(name: str, signature: Signature, seed: int, client: int) -> nn.Module:
    """Build a model with its initial weights, drawn from the stream of this seed and client.

    Raises:
        ExperimentError: the name is unknown, belongs to the other kind of task, or the model does not
            give one logit for each class.
    """
    make = _find(name, signature)
    with scoped(seed, "init", client):
        model = make(signature)
    if signature.kind == "image":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub lacks it
    return model


@functools.lru_cache(maxsize=32)
def reusable(name: str, signature: Signature) -> nn.Module:
    """Return this process's one module of a name, to load weights into; its weights are leftovers."""
    return build(name, signature, seed=0, client=0)


def check(name: str, signature: Signature) -> nn.Module:
    """Build a model and run two blank samples through it.

    Raises:
        ExperimentError: as `build`; or the output is not (2, classes).
    """
    model = build(name, signature, seed=0, client=0)
    if not isinstance(model, nn.Module):
        raise ExperimentError(f"model {name!r}: the function gave a {type(model).__name__}, no nn.Module")
    try:
        output = model.eval()(blank(signature, 2))
    except Exception as error:  # whatever a user's own model raises is shown with its name
        raise ExperimentError(
            f"model {name!r} fails on an input of {(2, *signature.shape)}: {error}"
        ) from None
    if not isinstance(output, Tensor) or output.shape != (2, signature.classes):
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ExperimentError(
            f"model {name!r} gives {found} for 2 samples, but the task has {signature.classes} classes:"
            f" its last layer must give (2, {signature.classes})"
        )
    return model


def blank(signature: Signature, samples: int) -> Tensor:
    """Inputs of the right shape, without content."""
    if signature.kind == "image":
        return torch.zeros(samples, *signature.shape)
    return torch.ones(samples, *signature.shape, dtype=torch.int64)


def count(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def _find(name: str, signature: Signature) -> Build:
    if ":" in name:
        return _own(name)
    ladder = _ladder()
    if name in ladder[signature.kind]:
        return ladder[signature.kind][name]
    known = names(signature.kind)
    other = next((kind for kind, models in ladder.items() if name in models), None)
    if other is not None:
        raise ExperimentError(
            f"model {name!r} is for {other} tasks; this is a task of {signature.kind}s: {', '.join(known)}"
        )
    raise ExperimentError(
        f"model {name!r} is not one of {', '.join(known)} or module:function.{nearest(name, known)}"
    )


def _own(name: str) -> Build:
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ExperimentError(
            f"model {name!r}: module {module_name!r} cannot be imported ({error}); modules are looked up"
            " in the current folder and where Python finds packages"
        ) from None
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise ExperimentError(
            f"model {name!r}: {module_name} has no function {function_name!r}.{nearest(function_name, known)}"
        )
    return function  # type: ignore[no-any-return]  # its result is checked by `check`

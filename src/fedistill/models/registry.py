"""Models: ladders for images, texts and tables, ``hf:NAME``, and own models as ``module:function``.

Every model of the ladder consists of ``features`` (a module that returns one vector per sample)
and ``head`` (a linear layer on it), and uses group or layer norm, never batch norm, since batch
statistics of one client are meaningless to another. What a model of the ladder computes depends on the shapes
of its inputs alone, never on what is in them. ``NAME@WIDTH`` is a model of the ladder with one more
linear layer that brings its features to that width, for methods that exchange features.
"""

import functools
import inspect
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedistill.config.hf import is_hf
from fedistill.config.inputs import SAMPLES, InputKind
from fedistill.config.plugins import named, naming
from fedistill.errors import ExperimentError, nearest
from fedistill.models.reuse import ReusedModule
from fedistill.models.signature import Build, Preprocessing, Signature
from fedistill.rng import scoped
from fedistill.training.cost import declare_by_shapes

FEATURES = "features"
"""Name of the layer whose output is a sample's feature vector."""
WIDEST = 4096
_HASHED = "hashed-words@"


def _ladder() -> dict[InputKind, dict[str, Build]]:
    from fedistill.models import image, table, text

    return {"image": image.LADDER, "text": text.LADDER, "table": table.LADDER}


def model_names(kind: InputKind) -> list[str]:
    """Return the names on the ladder, from small to large: by compute for images, by weights for others.

    `cnn-m` has more weights than the ResNets, whose convolutions use each weight more often.
    """
    return list(_ladder()[kind])


def is_own(name: str) -> bool:
    """Return whether a name is that of a function of the user's own, ``module:function``."""
    return ":" in name and not is_hf(name)


def is_built_in(name: str) -> bool:
    """Return whether a name is that of a model of the ladder."""
    return not is_own(name) and not is_hf(name)


def build_model(name: str, signature: Signature, seed: int, client: int) -> nn.Module:
    """Build a model with initial weights drawn from the stream of this seed and client.

    What a custom model leaves to its first forward pass, such as the shapes of lazy layers, is done in a pass
    on blank samples. If it returns an object with the logits in its attribute ``logits``, these are taken.

    Raises:
        ExperimentError: the name is unknown or belongs to the other kind of task, or a custom function
            fails or does not return a module.
    """
    with scoped(seed, "init", client):
        model = _made(name, signature)
        if is_own(name) and _begins_in_first_pass(name, signature):
            with naming(f"model {name!r} fails on an input of shape {(2, *signature.shape)}:"):
                _first_pass(model, signature)
    if signature.kind == "image":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub lacks it
    return model


def _made(name: str, signature: Signature) -> nn.Module:
    """Call the function of a model and check its result."""
    if is_hf(name):
        from fedistill.models.huggingface.network import build_hf  # imports what others do not need

        model: nn.Module = build_hf(name, signature)
        _separate_numbers(model)
        return model
    make = _find(name, signature)
    with naming(f"model {name!r}: {_function(name)}({signature}) raised"):
        model = make(signature)
    if not isinstance(model, nn.Module):
        raise ExperimentError(
            f"model {name!r}: {_function(name)} must return an nn.Module, not a {type(model).__name__}"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise ExperimentError(
            f"model {name!r}: {_function(name)} returns a module of torch.jit, whose state cannot be looked"
            " into: return the module that it was made of"
        )
    if is_own(name):
        model.register_forward_hook(_logits)
        _separate_numbers(model)
    return model


def _separate_numbers(model: nn.Module) -> None:
    """Give each number of a buffer a place of its own: in an expanded tensor, several share one."""
    for module in model.modules():
        for name, value in module._buffers.items():
            if value is not None and not is_lazy(value) and 0 in value.stride():
                module._buffers[name] = value.clone(memory_format=torch.contiguous_format)


def _logits(module: nn.Module, inputs: object, output: object) -> object:
    return output if isinstance(output, Tensor) else getattr(output, "logits", output)


@functools.lru_cache(maxsize=32)
def _begins_in_first_pass(name: str, signature: Signature) -> bool:
    """Return whether a custom model leaves parameters or buffers to its first forward pass."""
    model = _made(name, signature)
    before = _tensors(model)
    if any(is_lazy(value) for value in before.values()):
        return True
    try:
        _first_pass(model, signature)
    except Exception:  # `check_model` says what is wrong
        return False
    return _tensors(model).keys() != before.keys()


def _first_pass(model: nn.Module, signature: Signature) -> None:
    with torch.no_grad():
        model.eval()(blank_inputs(signature, 2))
    model.train()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def reusable(name: str, signature: Signature, slot: int = 0) -> nn.Module:
    """Return this process's only module of a name and slot, to load a state into.

    Its weights are left over from earlier use. All that no state holds is as in a fresh build: buffers that
    are not persistent, attributes, and generators. So nothing leaks from one client to another.
    """
    return _reused(name, signature, slot).fresh()


@functools.lru_cache(maxsize=32)
def _reused(name: str, signature: Signature, slot: int) -> ReusedModule:
    def build() -> nn.Module:
        model = build_model(name, signature, seed=0, client=0)
        # Of other builds nobody knows what is done to them: a user's own model may have one inside.
        if is_built_in(name):
            declare_by_shapes(model, (name, signature))
        return model

    return ReusedModule(build, custom=is_own(name))


def hashed_words(buckets: int, length: int | None) -> str:
    """Return a name that, in place of a model's, stands for texts as ids of hashed words.

    The arguments are those of `Preprocessing`.
    """
    return f"{_HASHED}{buckets}" if length is None else f"{_HASHED}{buckets}x{length}"


def preprocessing(name: str) -> Preprocessing:
    """Return the preprocessing of raw samples for a model: for a custom function, its attribute.

    Raises:
        ExperimentError: the function or the folder of a pretrained model cannot be found, or the function's
            ``preprocessing`` is not a `Preprocessing`.
    """
    if is_hf(name):
        from fedistill.models.huggingface.network import hf_preprocessing  # imports what others do not need

        return hf_preprocessing(name)
    if name.startswith(_HASHED):
        buckets, _, length = name.removeprefix(_HASHED).partition("x")
        return Preprocessing(buckets=int(buckets), length=int(length) if length else None)
    if ":" not in name:
        return Preprocessing()
    function = _own(name)
    declared = getattr(function, "preprocessing", Preprocessing())
    if not isinstance(declared, Preprocessing):
        raise ExperimentError(
            f"model {name!r}: its attribute `preprocessing` must be a `Preprocessing` from"
            f" fedistill.models.signature, but is a {type(declared).__name__}"
        )
    if declared.buckets is not None and (declared.tokenizer is not None or declared.buckets < 1):
        raise ExperimentError(
            f"model {name!r}: its `preprocessing` must have either a tokenizer or buckets, at least one, but"
            f" has tokenizer = {declared.tokenizer!r} and buckets = {declared.buckets}"
        )
    if declared.tokenizer is None:
        return declared
    # The path is relative to the module that declares it.
    folder = Path(inspect.getfile(inspect.unwrap(function))).parent
    return replace(declared, tokenizer=str(folder / declared.tokenizer))


def blank_inputs(signature: Signature, samples: int) -> Tensor:
    """Return inputs of the right shape without content."""
    if signature.kind != "text":
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
            f"model {name!r} is for {other} tasks; this is a task of {SAMPLES[signature.kind]}:"
            f" {', '.join(known)}"
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

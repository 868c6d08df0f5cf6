"""Calls into transformers and peft: networks from a folder or from a configuration alone, and adapters."""

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fedistill.config.plugins import naming
from fedistill.config.section import Raw
from fedistill.errors import ExperimentError
from fedistill.models.huggingface.recipe import Recipe
from fedistill.models.signature import Signature

_QUERIES_AND_VALUES = frozenset(
    ["query", "value", "q_proj", "v_proj", "q_lin", "v_lin", "query_proj", "value_proj", "q", "v"]
)
"""What transformers calls the linear layers that LoRA adapts (Hu et al., 2022, section 4.2)."""
_POOLER = "pooler"
"""In the names of what a classifier adds to an encoder that has been trained without."""


@dataclass(frozen=True)
class Loaded:
    """A network of transformers.

    Attributes:
        new: the names of the parameters that the file does not give, which are drawn.
    """

    network: nn.Module
    new: frozenset[str]


def check_installed(name: str) -> None:
    """Raise unless transformers is there.

    Raises:
        ExperimentError: it is not.
    """
    try:
        import transformers  # noqa: F401  # takes seconds, so that only these models import it
    except ImportError as error:
        raise ExperimentError(
            f"model {name!r} needs more packages ({error}): pip install 'fedistill[hf]'"
        ) from None


def from_folder(recipe: Recipe, signature: Signature, folder: Path, name: str) -> Loaded:
    """Return a network with the weights in a folder, of safetensors alone; what they lack is drawn.

    Raises:
        ExperimentError: there are none, or they are those of another architecture.
    """
    config = recipe.transformers_config(signature.classes)
    with quietly(), naming(f"model {name!r} cannot be loaded:"):
        network, found = _auto(recipe, signature).from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            attn_implementation="eager",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **_without_pooler(recipe, config),
        )
    resized = {key for key, *_ in found["mismatched_keys"]}
    new = frozenset(found["missing_keys"]) | resized
    inside = {key for key, _ in _encoder(network, recipe, name).named_parameters(_prefix(network, recipe))}
    if wrong := sorted(resized & inside):
        raise ExperimentError(
            f"model {name!r}: {wrong[0]!r} has another shape in its weights than config.json says"
        )
    if lacking := sorted(key for key in new & inside if _POOLER not in key):
        raise ExperimentError(
            f"model {name!r}: its weights lack {lacking[0]!r}, which a model of the type"
            f" {recipe.config.get('model_type')!r} has: take the config.json that belongs to them"
        )
    return Loaded(network, new)


def from_recipe(recipe: Recipe, signature: Signature, name: str) -> nn.Module:
    """Return a network with drawn weights.

    Raises:
        ExperimentError: transformers cannot build it.
    """
    config = recipe.transformers_config(signature.classes)
    with quietly(), naming(f"model {name!r} cannot be built:"):
        network: nn.Module = _auto(recipe, signature).from_config(
            config, trust_remote_code=False, attn_implementation="eager", **_without_pooler(recipe, config)
        )
    return network


def train_only_the_new(loaded: Loaded, recipe: Recipe, name: str) -> None:
    """Freeze what the file gives of the encoder, and add adapters to it if the recipe has some.

    What the file lacks is drawn by each participant, so it is trained, and sent where models are averaged.

    Raises:
        ExperimentError: the network has no layer to adapt, or peft is missing.
    """
    encoder = _encoder(loaded.network, recipe, name)
    for key, value in encoder.named_parameters(_prefix(loaded.network, recipe)):
        value.requires_grad_(key in loaded.new)
    _fix_statistics(encoder)
    if recipe.lora is not None:
        _adapt(encoder, recipe.lora, recipe.lora_alpha or 2 * recipe.lora, name)


def _encoder(network: nn.Module, recipe: Recipe, name: str) -> nn.Module:
    """Return all of a network but its head."""
    if recipe.pooling is not None:
        return network
    encoder: nn.Module = network.base_model  # type: ignore[assignment]  # of transformers
    if encoder is network and not recipe.trains_encoder:
        raise ExperimentError(
            f"model {name!r}: transformers does not say which part of a {type(network).__name__} is its"
            " encoder, so that it cannot be frozen: train all of it"
        )
    return encoder


def _prefix(network: nn.Module, recipe: Recipe) -> str:
    return "" if recipe.pooling is not None else str(network.base_model_prefix)


def _fix_statistics(encoder: nn.Module) -> None:
    """Make frozen parameters of running statistics: as buffers they would be averaged, and sent."""
    for module in encoder.modules():
        for key, value in list(module._buffers.items()):
            if value is None or key in module._non_persistent_buffers_set:
                continue
            if value.is_floating_point():
                del module._buffers[key]
                module.register_parameter(key, nn.Parameter(value, requires_grad=False))


def _adapt(encoder: nn.Module, rank: int, alpha: float, name: str) -> None:
    """Add LoRA adapters to queries and values; of the rest, what is trained stays so."""
    layers = [key for key, part in encoder.named_modules() if isinstance(part, nn.Linear)]
    targets = [key for key in layers if key.rpartition(".")[2] in _QUERIES_AND_VALUES]
    if not targets:
        raise ExperimentError(
            f'model {name!r} has no linear layers of queries and values to adapt: set freeze = "encoder" in'
            " place of `lora`"
        )
    try:
        with quietly():
            from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ExperimentError(
            f"model {name!r} needs more packages ({error}): pip install 'fedistill[hf]'"
        ) from None
    before = [value for value in encoder.parameters() if value.requires_grad]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets), encoder)
    for value in before:  # which peft has frozen
        value.requires_grad_(True)


def merge_adapters(network: nn.Module) -> None:
    """Add adapters to the weights that they adapt, and take them out, in place."""
    from peft.tuners.lora import LoraLayer

    for key, part in list(network.named_modules()):
        if isinstance(part, LoraLayer):
            part.merge()
            network.set_submodule(key, part.get_base_layer())


def _auto(recipe: Recipe, signature: Signature) -> Raw:
    import transformers

    if signature.kind == "image":
        return transformers.AutoModelForImageClassification
    return transformers.AutoModel if recipe.pooling else transformers.AutoModelForSequenceClassification


def _without_pooler(recipe: Recipe, config: Raw) -> dict[str, bool]:
    """Leave out a pooler that a sentence encoder has no use for."""
    import transformers

    kind = transformers.MODEL_MAPPING.get(type(config), None) if recipe.pooling else None
    takes = kind is not None and "add_pooling_layer" in inspect.signature(kind.__init__).parameters
    return {"add_pooling_layer": False} if takes else {}


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Run without reports of which weights were loaded, and without progress bars."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()

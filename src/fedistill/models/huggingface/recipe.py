"""What builds a pretrained network again without its folder: plain data, checked, and no code."""

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fedistill.config.hf import WIDEST_RANK, HfModel
from fedistill.config.inputs import SAMPLES
from fedistill.config.plugins import naming
from fedistill.config.section import Positive, Raw, RawTable
from fedistill.errors import ExperimentError
from fedistill.models.huggingface.folder import (
    CONFIG,
    PIXELS,
    SENTENCE_ENCODER,
    TOKENIZER_CONFIG,
    read_json,
    tokenizer_file,
)
from fedistill.models.huggingface.pixels import PixelScaling
from fedistill.models.signature import Signature
from fedistill.models.token_ids import id_shift

_NOT_KEPT = (
    *("auto_map", "_name_or_path", "transformers_version", "dtype", "torch_dtype"),
    *("_attn_implementation", "attn_implementation", "num_labels", "id2label", "label2id", "architectures"),
)
"""Keys of a configuration that name code, folders or labels of somebody else, or what fedistill decides."""
_QUANTISED = "quantization_config"


class Recipe(BaseModel):
    """The parts of a pretrained network, without its weights.

    Attributes:
        config: of transformers.
        freeze, lora, lora_alpha: as in `HfModel`.
        pooling: how a sentence encoder makes one vector of its tokens'; None for a classifier.
        normalised: whether this vector is then scaled to length 1.
        shift: as `TextPreprocessing` has it.
        pixels: for images, how they are scaled, and ``processor``, what its file says.
        tokenizer: the content of tokenizer_config.json, for texts.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    config: RawTable
    freeze: Literal["encoder"] | None = None
    lora: int | None = Field(default=None, ge=1, le=WIDEST_RANK)
    lora_alpha: Positive | None = None
    pooling: Literal["mean", "cls"] | None = None
    normalised: bool = False
    shift: Literal[0, 1] = 0
    pixels: PixelScaling | None = None
    processor: RawTable | None = None
    tokenizer: RawTable | None = None

    @property
    def fixes_encoder(self) -> bool:
        """Whether the encoder never changes."""
        return self.freeze is not None and self.lora is None

    @property
    def trains_encoder(self) -> bool:
        """Whether all weights are trained."""
        return self.freeze is None and self.lora is None

    def transformers_config(self, classes: int) -> Raw:
        """Return the configuration as an object of transformers.

        Raises:
            ExperimentError: transformers has no such model, or the configuration is not one of it.
        """
        from transformers import AutoConfig

        config = {key: value for key, value in self.config.items() if key not in _NOT_KEPT}
        with naming("config.json of the model:"):
            kind = config.pop("model_type")
            return AutoConfig.for_model(kind, num_labels=classes, **config)


def recipe_of(model: HfModel, folder: Path, signature: Signature) -> Recipe:
    """Read the recipe of a model from its folder.

    Raises:
        ExperimentError: the task is of tables, or a file is missing or says what is not supported.
    """
    name = model.name
    if signature.kind == "table":
        raise ExperimentError(
            f"model {name!r} is for images or texts; this is a task of {SAMPLES[signature.kind]}: take one"
            " that `fedistill models` lists for these"
        )
    config = read_json(folder, CONFIG, name)
    if _QUANTISED in config:
        raise ExperimentError(
            f"model {name!r} is quantised, and cannot be trained: take one with plain weights"
        )
    chosen = model.model_dump(include={"freeze", "lora", "lora_alpha"})
    kept = {key: value for key, value in config.items() if key not in _NOT_KEPT}
    if signature.kind == "image":
        processor = read_json(folder, PIXELS, name)
        pixels = PixelScaling.of(processor, config.get("num_channels", 3), name)
        return Recipe(config=kept, pixels=pixels, processor=processor, **chosen)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file(folder, name)))
    told = read_json(folder, TOKENIZER_CONFIG, name) if (folder / TOKENIZER_CONFIG).is_file() else {}
    texts: RawTable = {"shift": id_shift(tokenizer), "tokenizer": told}
    if (folder / SENTENCE_ENCODER).is_file():
        texts |= _pooling(folder, name)
    return Recipe(config=kept, **texts, **chosen)


_POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "mean": "mean",
    "cls": "cls",
}
"""By the keys that are true in a Pooling's configuration, or by the value of its ``pooling_mode``."""


def _pooling(folder: Path, name: str) -> RawTable:
    """Return how a model of sentence-transformers makes a vector of the tokens'."""
    try:
        content = json.loads((folder / SENTENCE_ENCODER).read_text(encoding="utf-8"))
        paths = {part["type"].rpartition(".")[2]: part["path"] for part in content}
        pooled = read_json(folder, f"{paths.pop('Pooling')}/{CONFIG}", name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExperimentError(
            f"model {name!r}: its {SENTENCE_ENCODER} is none of a sentence encoder ({type(error).__name__}:"
            f" {error})"
        ) from None
    modes = [key for key, value in pooled.items() if key.startswith("pooling_mode_") and value is True]
    modes += [str(pooled["pooling_mode"])] if "pooling_mode" in pooled else []
    others = sorted(paths.keys() - {"Transformer", "Normalize"})
    if others or len(modes) != 1 or modes[0] not in _POOLINGS:
        raise ExperimentError(
            f"model {name!r} is a sentence encoder with {', '.join([*others, *modes])}, but only those that"
            " take the mean of the tokens or the first one, and may then normalise it, can be used"
        )
    return {"pooling": _POOLINGS[modes[0]], "normalised": "Normalize" in paths}

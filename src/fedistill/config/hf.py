"""A model of the Hugging Face hub in an experiment: ``hf:NAME``, with what of it is trained in brackets."""

from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from fedistill.config.messages import explain_errors
from fedistill.config.section import Positive, Raw, RawTable, Section
from fedistill.config.spelling import read_spelling, spell
from fedistill.errors import ExperimentError

PREFIX = "hf:"
WIDEST_RANK = 1024


class HfModel(Section):
    """A pretrained classifier, or a sentence encoder with a new linear layer.

    Examples:
        >>> HfModel.read("hf:./my-bert(lora=4)").lora
        4
        >>> spelled({"name": "hf:owner/bert", "freeze": "encoder"})
        'hf:owner/bert(freeze=encoder)'
    """

    name: str = Field(
        description="hf:FOLDER, or hf:OWNER/NAME of the hub, followed by @REVISION or not", pattern="^hf:.+"
    )
    freeze: Literal["encoder"] | None = Field(
        default=None, description="what is not trained: `encoder`, all that the file gives but the head"
    )
    lora: int | None = Field(
        default=None,
        ge=1,
        le=WIDEST_RANK,
        description="rank of LoRA adapters of queries and values, trained with the head in place of the rest",
    )
    lora_alpha: Positive | None = Field(
        default=None, description="adapters are scaled by lora_alpha / lora; default: 2 lora"
    )
    length: int | None = Field(
        default=None, ge=1, le=100_000, description="tokens kept of a text; default: task.text.length"
    )

    @classmethod
    def read(cls, name: str) -> Self:
        """Return the model that a name with settings stands for.

        Raises:
            ExperimentError: brackets are missing, or a setting is unknown or out of range.
        """
        return cls.of(read_spelling("model", name))

    @classmethod
    def of(cls, table: RawTable) -> Self:
        """Return the model of a table ``{ name, SETTINGS }``.

        Raises:
            ExperimentError: as `read`.
        """
        try:
            return cls.model_validate(table)
        except ValidationError as error:
            raise ExperimentError(explain_errors(error, f"model {table.get('name')!r}", cls)) from None

    @model_validator(mode="after")
    def _alpha_scales_adapters(self) -> Self:
        if self.lora_alpha is not None and self.lora is None:
            raise ValueError("`lora_alpha` scales LoRA adapters: set `lora`, their rank, or take it out")
        return self

    @property
    def place(self) -> str:
        """The folder, or the name on the hub with its revision."""
        return self.name.removeprefix(PREFIX)


def is_hf(name: str) -> bool:
    """Return whether the name of a model is one of the Hugging Face hub."""
    return name.startswith(PREFIX)


def spelled(model: Raw) -> Raw:
    """Return the short spelling of a model that an experiment names by a table, and all else as it is.

    Raises:
        ExperimentError: a setting is unknown or out of range, or the name cannot be spelled.
    """
    if isinstance(model, str) and is_hf(model):
        model = read_spelling("model", model)
    if not isinstance(model, dict):
        return model
    name = spell(str(model.get("name")), HfModel.of(model).model_dump(exclude={"name"}, exclude_none=True))
    HfModel.read(name)
    return name

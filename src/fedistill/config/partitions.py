"""How private samples are divided among clients: the choices of `task.partition`."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fedistill.config.section import Positive, Raw, Section
from fedistill.config.spelling import read_spelling
from fedistill.errors import ExperimentError


class Iid(Section):
    kind: Literal["iid"] = "iid"


class Dirichlet(Section):
    kind: Literal["dirichlet"]
    alpha: Positive = Field(description="concentration; smaller values are more skewed")
    min_samples: int = Field(default=2, ge=1, description="minimum number of samples per client")


class Pathological(Section):
    kind: Literal["pathological"]
    classes_per_client: int = Field(ge=1)


class Quantity(Section):
    kind: Literal["quantity"]
    alpha: Positive = Field(description="concentration of the clients' sizes; smaller values are more skewed")
    min_samples: int = Field(default=2, ge=1, description="minimum number of samples per client")


class Natural(Section):
    kind: Literal["natural"] = "natural"
    column: str | None = Field(
        default=None,
        description="column that names the client of each sample; default: the file that the sample is in",
    )
    file: str | None = Field(
        default=None,
        description="CSV, JSON or Parquet file that has the column, one row per training sample in order",
    )

    @model_validator(mode="after")
    def _file_needs_a_column(self) -> Self:
        if self.file is not None and self.column is None:
            raise ValueError("`file` needs `column`, the column of that file that names the clients")
        return self


Indices = Annotated[int, Field(ge=0, strict=True)]


class Listed(Section):
    kind: Literal["indices"]
    clients: list[list[Indices]] | dict[str, list[Indices]] | None = Field(
        default=None, description="positions of each client's training samples (the first is 0), or by name"
    )
    file: str | None = Field(default=None, description="JSON file that has them, in place of `clients`")

    @model_validator(mode="after")
    def _one_list(self) -> Self:
        if (self.clients is None) == (self.file is None):
            raise ValueError("set either `clients`, the positions of each client's samples, or `file`")
        return self


def partition_table(written: Raw) -> Raw:
    """Return ``{ kind, SETTINGS }`` for the short spelling of a partition; any other value as it is.

    Raises:
        ExperimentError: the brackets of the spelling do not hold ``SETTING=VALUE, ...``.
    """
    if not isinstance(written, str):
        return written
    table = read_spelling("partition", written)
    return {"kind": table.pop("name"), **table}


def _spelled(written: Raw) -> Raw:
    try:
        return partition_table(written)
    except ExperimentError as error:
        raise ValueError(str(error).removeprefix("partition ")) from None


Partition = Annotated[
    Iid | Dirichlet | Pathological | Quantity | Natural | Listed,
    Field(discriminator="kind"),
    BeforeValidator(_spelled),
]
"""A table ``{ kind, SETTINGS }``, or its short spelling, such as ``dirichlet(alpha=0.3)``."""

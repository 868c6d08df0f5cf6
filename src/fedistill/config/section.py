"""What every table of settings is made of."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Raw = Any
"""A value as TOML has it, before validation."""
RawTable = dict[str, Raw]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A finite number above 0."""
Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A table of the experiment file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

"""The aggregations by name, and how a method's setting names one."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError

from fedistill.aggregation.labels import Aggregation
from fedistill.config.messages import explain_errors
from fedistill.config.plugins import scan
from fedistill.errors import nearest

AGGREGATIONS = scan(
    "fedistill.aggregation",
    Aggregation,  # type: ignore[type-abstract]  # what is found is concrete
    lambda kind: kind.model_fields["name"].default,
)


def _chosen(wanted: Any) -> Any:
    """Return the section that a name, or a table ``{ name, SETTINGS }``, stands for."""
    if isinstance(wanted, Aggregation):
        return wanted
    table = {"name": wanted} if isinstance(wanted, str) else wanted
    if not isinstance(table, dict) or "name" not in table:
        raise ValueError(f"must be one of {', '.join(AGGREGATIONS)}, or a table {{ name = NAME, SETTINGS }}")
    name = str(table["name"])
    if name not in AGGREGATIONS:
        guess = nearest(name, AGGREGATIONS)
        raise ValueError(f"{name!r} is not one of {', '.join(AGGREGATIONS)}.{guess}")
    kind = AGGREGATIONS[name]
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        raise ValueError(explain_errors(error, name, kind)) from None


AnyAggregation = Annotated[
    SerializeAsAny[Aggregation],
    BeforeValidator(_chosen),
    Field(description="how the server pools labels: a name, or a table { name, SETTINGS }"),
]

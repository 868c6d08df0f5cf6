"""The aggregations by name, and the type of the settings that name one."""

from typing import Annotated

from pydantic import BeforeValidator, Field, PlainSerializer, SerializationInfo, ValidationError

from fedistill.aggregation.labels import Aggregation
from fedistill.config.declarations import field_faults
from fedistill.config.messages import explain_errors
from fedistill.config.plugins import Registry, scan
from fedistill.config.section import Raw, RawTable
from fedistill.config.spelling import read_spelling
from fedistill.errors import ExperimentError


def _name(kind: type[Aggregation]) -> object:
    return kind.model_fields["name"].default


def _faults(kind: type[Aggregation]) -> list[str]:
    """Return what is wrong with the declarations of an aggregation."""
    name = _name(kind)
    faults = [] if isinstance(name, str) else ['`name` needs a default: name: Literal["mine"] = "mine"']
    return [*faults, *field_faults(kind, "name")]


AGGREGATIONS: dict[str, type[Aggregation]] = scan(
    "fedistill.aggregation",
    Aggregation,  # type: ignore[type-abstract]  # what is found is concrete
    _name,
)
"""The built-in ones; `registry` also has those of installed packages."""

registry: Registry[Aggregation] = Registry(
    "aggregation",
    Aggregation,  # type: ignore[type-abstract]  # what is found is concrete
    AGGREGATIONS,
    _faults,
    _name,
)


def _chosen(wanted: Raw) -> Aggregation:
    """Return the aggregation that a name or a table ``{ name, SETTINGS }`` stands for."""
    if isinstance(wanted, Aggregation):
        return wanted
    try:
        table = read_spelling("aggregation", wanted) if isinstance(wanted, str) else wanted
    except ExperimentError as error:
        raise ValueError(str(error).removeprefix("aggregation ")) from None
    if not isinstance(table, dict) or "name" not in table:
        names = ", ".join(registry.names())
        raise ValueError(f"must be one of {names}, module:Class, or a table {{ name = NAME, SETTINGS }}")
    written = str(table["name"])
    try:
        kind = registry.find(written)
    except ExperimentError as error:
        raise ValueError(str(error).removeprefix("aggregation ")) from None
    try:
        found = kind.model_validate({**table, "name": _name(kind)})
    except ValidationError as error:
        raise ValueError(explain_errors(error, written, kind)) from None
    if written != found.name:
        found._written = written
    return found


def _table(chosen: Aggregation, info: SerializationInfo) -> RawTable:
    """Return its settings, with the name that the experiment uses."""
    table = chosen.model_dump(mode=info.mode, exclude_none=info.exclude_none)
    return {**table, "name": chosen._written or chosen.name}


AnyAggregation = Annotated[
    Aggregation,
    PlainSerializer(_table),
    BeforeValidator(_chosen),
    Field(description="how the server pools labels: a name, module:Class, or a table { name, SETTINGS }"),
]

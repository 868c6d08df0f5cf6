"""The JSON schema of experiment files, derived from what validates them: for completion in editors."""

from collections.abc import Iterator, Mapping

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from fedistill.aggregation.registry import registry as aggregations
from fedistill.communication.codecs.registry import registry as codecs
from fedistill.config.hf import HfModel
from fedistill.config.inputs import SAMPLES
from fedistill.config.plugins import Registry
from fedistill.config.schema import Experiment
from fedistill.config.section import Raw, RawTable
from fedistill.data.sources import NAMES
from fedistill.methods.registry import registry as methods
from fedistill.models.registry import model_names

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SPELLED: RawTable = {"type": "string", "pattern": "[(:]"}
"""A name with settings in brackets, or ``module:Class``: what is inside is checked when the file is read."""


def file_schema() -> RawTable:
    """Return the schema: a table as JSON has it, in the dialect 2020-12.

    Methods, codecs and aggregations of installed packages are included. Spellings such as ``qsgd(levels=1)``,
    own classes by ``module:Class``, and what several keys mean together are left to `fedistill doctor`.
    """
    found = {name: kind.Settings for name, kind in _usable(methods)}
    coders = {name: kind.Settings for name, kind in _usable(codecs)}
    poolings = dict(_usable(aggregations))
    sections = dict.fromkeys([Experiment, *found.values(), *coders.values(), *poolings.values()])
    refs, schema = models_json_schema(
        [(section, "validation") for section in sections], schema_generator=_WithoutTitles
    )
    parts: RawTable = schema["$defs"]

    def part(section: type[BaseModel]) -> RawTable:
        inner: RawTable = parts[refs[section, "validation"]["$ref"].rpartition("/")[2]]
        return inner

    parts["Codec"] = _either(*_choice({name: part(settings) for name, settings in coders.items()}))
    parts["Codecs"] = _either(
        _ref("Codec"), _table({"up": _ref("Codec"), "down": _ref("Codec")}, required=["up", "down"])
    )
    parts["Aggregation"] = _either(*_choice({name: part(section) for name, section in poolings.items()}))
    parts["ModelName"] = _either(
        {"enum": _model_names()}, {"type": "string", "pattern": "[:@]"}, HfModel.model_json_schema()
    )
    _open_up(parts)
    arm = parts.pop("Arm")["properties"]
    arms = [_arm(name, arm, part(settings)) for name, settings in found.items()]
    own = {"method": {"type": "string", "pattern": ":"}}
    parts["Arm"] = _either(*arms, {"type": "object", "properties": arm | own, "required": ["method"]})
    top = part(Experiment)
    del parts["Experiment"]
    whole: RawTable = _without_null({"$schema": _DIALECT, **top, "title": "experiment", "$defs": parts})
    return whole


class _WithoutTitles(GenerateJsonSchema):
    """Leaves out titles, which repeat the names of keys."""

    def field_title_should_be_set(self, schema: Raw) -> bool:
        return False


def _usable(registry: Registry[Raw]) -> Iterator[tuple[str, Raw]]:
    for listed in registry.listing():
        if listed.kind is not None:
            yield listed.name, listed.kind


def _model_names() -> list[str]:
    return [name for kind in SAMPLES for name in model_names(kind)]


def _open_up(parts: RawTable) -> None:
    """Let the tables of a file be as files may have them, before they are merged and spelled out."""
    arm, models, task = (parts[name]["properties"] for name in ("Arm", "ModelsConfig", "TaskConfig"))
    arm["codec"] = {**_ref("Codecs"), "description": arm["codec"]["description"]}
    arm["secure_sums"]["anyOf"].insert(0, {"type": "boolean"})
    arm["models"] = _table(models, required=[])
    models["clients"]["items"], models["server"] = _ref("ModelName"), _ref("ModelName")
    task["partition"] = _either({"type": "string"}, *task["partition"]["anyOf"]) | {
        "description": task["partition"]["description"]
    }
    for source in ("TaskConfig", "PublicSource"):
        name = parts[source]["properties"]["name"]
        names = _either({"enum": list(NAMES)}, {"type": "string", "pattern": "^hf:"})
        parts[source]["properties"]["name"] = names | {"description": name["description"]}
    for section in parts.values():
        start = section.get("properties", {}).get("start")
        if start is not None:
            start["anyOf"].insert(0, {"type": "string"})


def _arm(name: str, common: RawTable, settings: RawTable) -> RawTable:
    own = {"method": {"const": name, "description": settings.get("description", "")}}
    return _table(common | own | settings.get("properties", {}), ["method", *settings.get("required", [])])


def _choice(sections: Mapping[str, RawTable]) -> Iterator[RawTable]:
    """Yield what a choice with settings may be: a name, its spelling, or a table of one of them."""
    yield {"enum": list(sections)}
    yield _SPELLED
    for name, section in sections.items():
        yield _table(section.get("properties", {}) | {"name": {"const": name}}, required=["name"])
    yield {"type": "object", "properties": {"name": {"type": "string", "pattern": ":"}}, "required": ["name"]}


def _table(properties: RawTable, required: list[str]) -> RawTable:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _either(*schemas: RawTable) -> RawTable:
    return {"anyOf": list(schemas)}


def _ref(name: str) -> RawTable:
    return {"$ref": f"#/$defs/{name}"}


def _without_null(schema: Raw) -> Raw:
    """Leave out null, which TOML has not: a key is absent in its place."""
    if isinstance(schema, list):
        return [_without_null(one) for one in schema if one != {"type": "null"}]
    if not isinstance(schema, dict):
        return schema
    return {key: _without_null(value) for key, value in schema.items() if value is not None}

"""Validation errors in plain words: what is wrong, where, and how to fix it."""

from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fedistill.errors import nearest


def explain_errors(error: ValidationError, where: str, model: type[BaseModel]) -> str:
    """Turn a validation error into one line per wrong place."""
    items = error.errors()
    own = {(item["type"], item["loc"]) for item in items}
    # An arm repeats the errors of the tables that it inherits: each is reported once.
    kept = [
        item for item in items if item["loc"][:1] != ("arms",) or (item["type"], item["loc"][2:]) not in own
    ]
    return "\n".join(dict.fromkeys(f"{where}: {_line(item, model)}" for item in kept))


def _line(item: ErrorDetails, model: type[BaseModel]) -> str:
    """Describe one error: where it is, what is wrong and how to fix it."""
    *parents, last = item["loc"] or ("",)
    unknown = item["type"] == "extra_forbidden"
    parts = [str(part) for part in parents if part not in _TAGS]
    place = ".".join(parts if last in _TAGS and not unknown else [*parts, str(last)])
    if unknown:
        known = _known_keys(model, item["loc"][:-1])
        guess = nearest(str(last), known) or f" Known: {', '.join(known) or 'none'}"
        if not parents or last not in model.model_fields:
            return f"unknown key `{place}`.{guess}"
        return f"unknown key `{place}`. `{last}` belongs above the first [table], or in its own table"
    if item["type"] == "missing" and isinstance(last, int):
        return f"`{'.'.join(parts)}` has too few values"
    if item["type"] == "missing":
        hint = f": {_MISSING[place]}" if place in _MISSING else ""
        return f"`{place}` is missing{hint}"
    if item["type"] == "value_error":
        what = item["msg"].removeprefix("Value error, ")
        return f"`{place}`: {what}" if place else what
    if item["type"] in ("union_tag_not_found", "union_tag_invalid"):
        context = item.get("ctx", {})
        key, tag = context["discriminator"].strip("'"), context.get("tag")
        if tag is None:
            kinds = f": must be one of {', '.join(_KINDS)}." if key == "kind" else ""
            return f"`{place}.{key}` is missing{kinds}"
        known = [name.strip("'") for name in context["expected_tags"].split(", ")]
        return f"`{place}.{key}` = {tag!r}: must be one of {', '.join(known)}.{nearest(str(tag), known)}"
    phrase = _PHRASES.get(item["type"], item["msg"][:1].lower() + item["msg"][1:])
    what = phrase.format(place=place, **item.get("ctx", {})) + _ELSE.get(str(last), "")
    return f"`{place}` = {item['input']!r}: {what}"


_KINDS = ("iid", "dirichlet", "pathological", "quantity", "natural", "indices")
_TAGS = {*_KINDS, "constant", "cosine", "step", "int", "str", "PublicSource", "Link"}
"""Names of union members, which pydantic adds to the path of a key."""

_MISSING = {
    "rounds": "write, for example, rounds = 20 above the first [table]",
    "task": 'write [task] and, below it, for example name = "digits"',
    "models": 'write [models] and, below it, for example clients = ["cnn-s"] and server = "cnn-m"',
    "arms": 'write [[arms]] and, below it, for example method = "fedavg"',
}
_ELSE = {
    "arms": ": write each arm as its own table, [[arms]] with two brackets",
    "int": ", or a table { name = NAME, samples = NUMBER } for another data set",
    "str": ", or a table { up = NUMBER, down = NUMBER, latency = NUMBER }",
}
_PHRASES = {
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "finite_number": "must be a finite number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text in quotes",
    "list_type": "must be a list in [ ]",
    "tuple_type": "must be a list in [ ]",
    "too_short": "must not be empty",
    "literal_error": "must be {expected}",
    "model_type": "must be a table of keys and values",
    "model_attributes_type": 'must be a table, for example {{ kind = "iid" }}',
}


def _known_keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Return the names of the keys that the table at ``loc`` accepts, sorted."""
    found: list[type[BaseModel]] = [model]
    for part in loc:
        if isinstance(part, int):
            continue
        inner = [m.model_fields[part].annotation for m in found if part in m.model_fields]
        if inner:
            found = [m for annotation in inner for m in _models_in(annotation)]
        else:
            found = [m for m in found if part in (m.__name__, _kind_of(m))] or found
    return sorted({name for m in found for name in m.model_fields})


def _kind_of(model: type[BaseModel]) -> str:
    return model.__name__.lower()


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    inner = getattr(annotation, "__args__", ())
    return [m for part in inner for m in _models_in(part)]

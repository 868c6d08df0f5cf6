"""The short spelling of a choice with settings, as tables print it: ``qsgd(levels=1)``."""

import json
import re
from collections.abc import Mapping

from fedistill.config.section import Raw, RawTable
from fedistill.errors import ExperimentError

_CALL = re.compile(r"\s*(?P<name>[^\s(),=]+)\s*\((?P<inside>.*)\)\s*", re.DOTALL)
_SETTING = re.compile(
    r"""\s*(?P<key>\w+)\s*=\s*(?P<value>"(?:[^"\\]|\\.)*"|[^\s"',()=\[\]{}][^"',()=\[\]{}]*)\s*(?:,|$)"""
)
_BARE = re.compile(r"[\w.+/-]+")
_WORDS = {"true": True, "false": False, "none": None}


def spell(name: str, settings: Mapping[str, Raw]) -> str:
    """Return ``name(key=value, ...)``, or the name alone if there are no settings."""
    inside = ", ".join(f"{key}={_written(value)}" for key, value in settings.items())
    return f"{name}({inside})" if inside else name


def read_spelling(kind: str, text: str) -> RawTable:
    """Return ``{ name, key, ... }``: what `spell` wrote, or a name alone.

    Values are numbers, true and false in any case, ``None`` for a setting that is not set, and texts; a text
    with other characters than letters, digits, ``_ . + / -`` and spaces is in double quotes.

    Args:
        kind: what messages call such a choice, for example ``"codec"``.

    Raises:
        ExperimentError: a bracket is missing, or what is between the brackets is not ``key=value, ...``.
    """
    if not set("()") & set(text):
        return {"name": text}
    call = _CALL.fullmatch(text)
    if call is None:
        raise _malformed(kind, text, "the brackets do not enclose the settings of one name")
    found: RawTable = {}
    inside, place = call["inside"].strip(), 0
    while place < len(inside):
        setting = _SETTING.match(inside, place)
        if setting is None:
            raise _malformed(kind, text, f"`{inside[place:].strip()}` is not SETTING=VALUE")
        if setting["key"] in found:
            raise _malformed(kind, text, f"`{setting['key']}` is set twice")
        found[setting["key"]] = _read(setting["value"].strip())
        place = setting.end()
    return {**found, "name": call["name"]}


def _written(value: Raw) -> str:
    if isinstance(value, str) and (not _BARE.fullmatch(value) or _read(value) != value):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _read(value: str) -> Raw:
    """Return a number, true, false, None, or else the text itself."""
    if value.lower() in _WORDS:
        return _WORDS[value.lower()]
    if value.startswith('"'):
        return json.loads(value)
    for number in (int, float):
        try:
            return number(value)
        except ValueError:
            continue
    return value


def _malformed(kind: str, text: str, fault: str) -> ExperimentError:
    return ExperimentError(
        f"{kind} {text!r}: {fault}; write a name, or a name with settings such as name(setting=1, other=0.5)"
    )

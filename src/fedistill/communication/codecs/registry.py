"""The codecs by name, and how an experiment file chooses among them."""

import re
from collections.abc import Mapping

from pydantic import ValidationError

from fedistill.communication.codecs.base import Codec
from fedistill.communication.tensor_specs import Content
from fedistill.config.declarations import settings_faults, text_faults
from fedistill.config.messages import explain_errors as explain
from fedistill.config.plugins import Registry, scan
from fedistill.config.section import Raw, RawTable
from fedistill.config.spelling import read_spelling, spell
from fedistill.errors import ExperimentError, nearest


def _name(kind: type[Codec]) -> object:
    return getattr(kind, "name", None)


def _faults(kind: type[Codec]) -> list[str]:
    """What is wrong with what a codec declares."""
    faults = [*text_faults(kind, "name", "lossiness")]
    if not isinstance(kind.source, str):
        faults.append(f"`source` must be a string, but is {kind.source!r}")
    whole = isinstance(kind.codes, frozenset) and all(isinstance(one, Content) for one in kind.codes)
    if not (whole and kind.codes):
        faults.append(f"`codes` must be a frozenset of Content, and not empty, but is {kind.codes!r}")
    return [*faults, *settings_faults(kind, taken=("name",), defaults=True)]


CODECS: dict[str, type[Codec]] = scan(
    "fedistill.communication.codecs",
    Codec,  # type: ignore[type-abstract]  # what is found is concrete
    _name,
    first=("plain",),
)
"""Ours; `registry` has those of installed packages too."""

registry: Registry[Codec] = Registry(
    "codec",
    Codec,  # type: ignore[type-abstract]  # what is found is concrete
    CODECS,
    _faults,
    _name,
)

Wanted = str | Mapping[str, Raw]
"""A name or ``module:Class``; with settings, a table ``{ name, ... }`` or the spelling that `title` returns,
``name(key=value, ...)``; or ``{ up, down }`` or ``up ..., down ...`` with one of these each."""
_DIRECTIONS = re.compile(r"\s*up\s+(?P<up>.+?)\s*,\s*down\s+(?P<down>.+?)\s*", re.DOTALL)


def pair(wanted: Wanted) -> tuple[Codec, Codec]:
    """Return the codecs for the uplink and the downlink.

    Raises:
        ExperimentError: there is no such codec, it has no such setting, or something is wrong with its class.
    """
    up, down = _by_direction(wanted)
    return create_codec(up), create_codec(down)


def create_codec(wanted: Wanted) -> Codec:
    """Return a codec with its settings.

    Raises:
        ExperimentError: there is no such codec, it has no such setting, or something is wrong with its class.
    """
    name, settings = _split(wanted)
    kind = registry.find(name)
    own = list(kind.Settings.model_fields)
    for key in settings:
        if key not in own:
            raise ExperimentError(
                f"codec {name}: unknown key `{key}`.{nearest(key, own)} Settings: {', '.join(own) or 'none'}"
            )
    try:
        return kind(kind.Settings.model_validate(settings))
    except ValidationError as error:
        raise ExperimentError(explain(error, f"codec {name}", kind.Settings)) from None


def resolved(wanted: Wanted) -> Wanted:
    """Return the same codecs with all their settings written out."""
    up, down = (_table(codec) for codec in _by_direction(wanted))
    return up if up == down else {"up": up, "down": down}


def title(wanted: Wanted) -> str:
    """Name the codecs briefly, with those settings that differ from a codec's defaults."""
    up, down = (_title(codec) for codec in _by_direction(wanted))
    return up if up == down else f"up {up}, down {down}"


def _by_direction(wanted: Wanted) -> tuple[Wanted, Wanted]:
    """What is wanted up and down, each a name, a table ``{ name, ... }`` or ``name(key=value, ...)``."""
    if isinstance(wanted, str) and (both := _DIRECTIONS.fullmatch(wanted)):
        return both["up"], both["down"]
    if not isinstance(wanted, Mapping) or "name" in wanted:
        return wanted, wanted
    if wanted.keys() != {"up", "down"}:
        raise ExperimentError(
            f"codec {dict(wanted)!r}: write a name, NAME(SETTING=VALUE), {{ name = NAME, SETTING = VALUE }},"
            " or { up = CODEC, down = CODEC }"
        )
    return wanted["up"], wanted["down"]


def _split(wanted: Wanted) -> tuple[Raw, RawTable]:
    """Name, as it was written, and settings."""
    settings = read_spelling("codec", wanted) if isinstance(wanted, str) else dict(wanted)
    return settings.pop("name", None), settings


def _table(wanted: Wanted) -> Wanted:
    name, _ = _split(wanted)
    settings: RawTable = create_codec(wanted).settings.model_dump(exclude_none=True)
    return {"name": name, **settings} if settings else str(name)


def _title(wanted: Wanted) -> str:
    settings = create_codec(wanted).settings
    defaults = type(settings)()
    changed = {key: value for key, value in settings.model_dump().items() if value != getattr(defaults, key)}
    name, _ = _split(wanted)
    return spell(str(name), changed)

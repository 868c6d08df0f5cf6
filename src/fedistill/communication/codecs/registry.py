"""The codecs by name, and how an experiment file chooses among them."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from fedistill.communication.codecs.base import Codec
from fedistill.communication.codecs.labels import OneHot, Simplex, TopClasses
from fedistill.communication.codecs.low_rank import LowRank
from fedistill.communication.codecs.plain import Fp16, Fp32
from fedistill.communication.codecs.quantize import DAdaQuant, Int8, Qsgd, Sign
from fedistill.communication.codecs.sparsify import Stc, TopK
from fedistill.config.messages import explain_errors as explain
from fedistill.errors import ExperimentError, nearest

CODECS: dict[str, type[Codec]] = {
    codec.name: codec
    for codec in (Fp32, Fp16, Int8, OneHot, Simplex, TopClasses, Qsgd, DAdaQuant, Sign, TopK, Stc, LowRank)
}

Wanted = str | Mapping[str, Any]
"""A codec's name, a table ``{ name, ... }`` with its settings, or ``{ up, down }`` with two of these."""


def pair(wanted: Wanted) -> tuple[Codec, Codec]:
    """Return the codecs for the uplink and the downlink.

    Raises:
        ExperimentError: there is no such codec, or it has no such setting.
    """
    if isinstance(wanted, Mapping) and not wanted.keys() & {"name"}:
        unknown = [key for key in wanted if key not in ("up", "down")]
        missing = [key for key in ("up", "down") if key not in wanted]
        if unknown or missing:
            raise ExperimentError(
                f"codec {dict(wanted)!r}: write a name, {{ name = NAME, SETTING = VALUE }}, or"
                " { up = CODEC, down = CODEC }"
            )
        return create_codec(wanted["up"]), create_codec(wanted["down"])
    return create_codec(wanted), create_codec(wanted)


def create_codec(wanted: Wanted) -> Codec:
    """Return a codec with its settings.

    Raises:
        ExperimentError: there is no such codec, or it has no such setting.
    """
    settings = {"name": wanted} if isinstance(wanted, str) else dict(wanted)
    name = settings.pop("name", None)
    if not isinstance(name, str) or name not in CODECS:
        guess = nearest(str(name), CODECS)
        raise ExperimentError(f"codec {name!r} is not one of {', '.join(CODECS)}.{guess}")
    kind = CODECS[name]
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
    """Return the same choice of codecs with all their settings written out."""
    up, down = (_table(codec) for codec in pair(wanted))
    return up if up == down else {"up": up, "down": down}


def title(wanted: Wanted) -> str:
    """Return a short name of the codecs, with the settings that differ from the defaults."""
    up, down = (_title(codec) for codec in pair(wanted))
    return up if up == down else f"up {up}, down {down}"


def _table(codec: Codec) -> Wanted:
    settings = codec.settings.model_dump(exclude_none=True)
    return {"name": codec.name, **settings} if settings else codec.name


def _title(codec: Codec) -> str:
    defaults = type(codec.settings)()
    changed = [
        f"{key}={value}"
        for key, value in codec.settings.model_dump().items()
        if value != getattr(defaults, key)
    ]
    return f"{codec.name}({', '.join(changed)})" if changed else codec.name

"""The methods by name, and the method of an arm."""

from dataclasses import is_dataclass

from pydantic import ValidationError

from fedistill.communication.messages.base import Message, check_message
from fedistill.config.declarations import settings_faults, text_faults
from fedistill.config.messages import explain_errors
from fedistill.config.plugins import Registry, scan
from fedistill.config.schema import Arm
from fedistill.errors import ExperimentError, nearest
from fedistill.methods.base import AnyState, Method

AnyMethod = Method[Message, Message, AnyState, AnyState]


def _name(kind: type[AnyMethod]) -> object:
    return getattr(kind, "name", None)


def _faults(kind: type[AnyMethod]) -> list[str]:
    """Return what is wrong with a method's declarations."""
    faults = [*text_faults(kind, "name", "paper", "exchanges", "byte_formula")]
    for way in ("uplink", "downlink"):
        message = getattr(kind, way, None)
        if message is None:
            continue
        if not (isinstance(message, type) and issubclass(message, Message)):
            faults.append(
                f"`{way}` must be a subclass of Message (fedistill.communication.messages.base) or None, but"
                f" is {message!r}"
            )
        elif all("specs" not in vars(one) for one in message.__mro__ if one is not Message):
            faults.append(f"`{way}`: {message.__name__} does not describe its tensors in `specs`")
        else:
            try:
                check_message(message)
            except ExperimentError as error:
                faults.append(f"`{way}`: {error}")
    for side in ("ServerState", "ClientState"):
        state = getattr(kind, side, None)
        if not (isinstance(state, type) and is_dataclass(state)):
            faults.append(f"`{side}` must be a dataclass, but is {state!r}")
    return [*faults, *settings_faults(kind, taken=[*Arm.model_fields], defaults=False)]


METHODS: dict[str, type[AnyMethod]] = scan(
    "fedistill.methods",
    Method,  # type: ignore[type-abstract]  # the scan finds concrete classes
    _name,
    first=("controls", "weights", "classwise", "labels", "combined", "features", "sufficient_statistics"),
)
"""Built-in methods, by family; `registry` also has those of installed packages."""

registry: Registry[AnyMethod] = Registry(
    "method",
    Method,  # type: ignore[type-abstract]  # the registry holds concrete classes
    METHODS,
    _faults,
    _name,
)


def create_method(arm: Arm) -> AnyMethod:
    """Return the method of an arm with its settings.

    Raises:
        ExperimentError: there is no such method, or its class or one of its settings is invalid.
    """
    try:
        method = registry.find(arm.method)
    except ExperimentError as error:
        raise ExperimentError(f"arm {arm.name!r}: {error}") from None
    own = [*method.Settings.model_fields]
    for key in arm.settings:
        if key not in own:
            raise ExperimentError(
                f"arm {arm.name!r}: unknown key `{key}`.{nearest(key, [*Arm.model_fields, *own])}"
                f" Settings of method {arm.method}: {', '.join(own) or 'none'}"
            )
    try:
        settings = method.Settings.model_validate(arm.settings)
    except ValidationError as error:
        raise ExperimentError(explain_errors(error, f"arm {arm.name!r}", method.Settings)) from None
    return method(settings)

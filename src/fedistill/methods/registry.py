"""The methods by name, and how an arm names one."""

from pydantic import ValidationError

from fedistill.communication.messages.base import Message
from fedistill.config.messages import explain_errors
from fedistill.config.plugins import scan
from fedistill.config.schema import Arm
from fedistill.errors import ExperimentError, nearest
from fedistill.methods.base import Method

AnyMethod = Method[Message, Message]

METHODS: dict[str, type[AnyMethod]] = scan(
    "fedistill.methods",
    Method,  # type: ignore[type-abstract]  # what is found is concrete
    lambda kind: getattr(kind, "name", None),
    first=("controls", "weights", "classwise", "labels", "features"),
)


def create_method(arm: Arm) -> AnyMethod:
    """Return the method of an arm with its settings.

    Raises:
        ExperimentError: the method is unknown, or one of its settings is.
    """
    if arm.method not in METHODS:
        known = ", ".join(METHODS)
        raise ExperimentError(
            f"arm {arm.name!r}: method {arm.method!r} is not one of {known}.{nearest(arm.method, METHODS)}"
        )
    method = METHODS[arm.method]
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

"""The mechanisms by name, and the one that an arm asks for."""

from pydantic import ValidationError

from fedistill.config.messages import explain_errors
from fedistill.config.plugins import scan
from fedistill.config.schema import Experiment
from fedistill.config.section import RawTable
from fedistill.errors import ExperimentError, nearest
from fedistill.privacy.mechanisms import Mechanism


def _kind(mechanism: type[Mechanism]) -> str:
    return str(mechanism.model_fields["kind"].default)


MECHANISMS: dict[str, type[Mechanism]] = scan(
    "fedistill.privacy",
    Mechanism,  # type: ignore[type-abstract]  # what is found is concrete
    _kind,
)
"""All mechanisms, by kind."""
NONE = "none"
"""The kind by which an arm says that it has no privacy where the experiment has."""


def privacy_of(table: RawTable | None) -> Mechanism | None:
    """Return the mechanism of an arm's table `privacy`, or None if it has none.

    Raises:
        ExperimentError: there is no such mechanism, or one of its settings is invalid.
    """
    if table is None or table == {"kind": NONE}:
        return None
    kind = table.get("kind")
    if not isinstance(kind, str) or kind not in MECHANISMS:
        wrong = "`privacy.kind` is missing" if kind is None else f"`privacy.kind` = {kind!r}"
        known = (*MECHANISMS, NONE)
        raise ExperimentError(f"{wrong}: must be one of {', '.join(known)}.{nearest(str(kind), known)}")
    try:
        return MECHANISMS[kind].model_validate(table)
    except ValidationError as error:
        raise ExperimentError(explain_errors(error, "privacy", MECHANISMS[kind])) from None


def refuse_privacy_on_network(experiment: Experiment) -> None:
    """Refuse noise where clients are real: here it is drawn from the run's seed, which the server knows.

    Raises:
        ExperimentError: an arm has a mechanism.
    """
    if any(privacy_of(arm.privacy) is not None for arm in experiment.arms):
        raise ExperimentError(
            "[privacy] is for simulations on one machine: its noise is drawn from the seed, which the server"
            " knows and could subtract. Take it out to run on a network, or run `fedistill compare`"
        )

"""The attacks by name, and the one that an experiment asks for."""

from pydantic import ValidationError

from fedistill.attacks.base import Attack
from fedistill.config.messages import explain_errors
from fedistill.config.plugins import scan
from fedistill.config.schema import Experiment
from fedistill.errors import ExperimentError, Refusal, nearest
from fedistill.methods.registry import AnyMethod


def _kind(attack: type[Attack]) -> str:
    return str(attack.model_fields["kind"].default)


ATTACKS: dict[str, type[Attack]] = scan(
    "fedistill.attacks",
    Attack,  # type: ignore[type-abstract]  # what is found is concrete
    _kind,
)
"""All attacks, by kind."""


def attack_of(experiment: Experiment) -> Attack | None:
    """Return the attack of an experiment, or None if its clients are honest.

    Raises:
        ExperimentError: there is no such attack, or one of its settings is invalid.
    """
    table = experiment.attack
    if table is None:
        return None
    kind = table.get("kind")
    if not isinstance(kind, str) or kind not in ATTACKS:
        wrong = "`attack.kind` is missing" if kind is None else f"`attack.kind` = {kind!r}"
        raise ExperimentError(f"{wrong}: must be one of {', '.join(ATTACKS)}.{nearest(str(kind), ATTACKS)}")
    try:
        attack = ATTACKS[kind].model_validate(table)
    except ValidationError as error:
        raise ExperimentError(explain_errors(error, "attack", ATTACKS[kind])) from None
    if attack.from_round > experiment.rounds:
        raise ExperimentError(
            f"`attack.from_round` = {attack.from_round}: there are {experiment.rounds} rounds, and nobody"
            " would lie"
        )
    return attack


def check_attack(attack: Attack, method: AnyMethod, seed: int, clients: int) -> None:
    """Check, before round 1, that an attack can change what clients of a method do, and has its liars.

    Raises:
        Refusal: it cannot; names those that can.
        ExperimentError: it names a client that is none of these.
    """
    attack.liars(seed, clients)
    if method.one_shot and attack.from_round > 1:
        raise Refusal(
            f"method {method.name} asks each client once, so that nobody lies with `attack.from_round` ="
            f" {attack.from_round}: set it to 1, or remove this arm"
        )
    if not attack.fits(method):
        fitting = [kind for kind, other in ATTACKS.items() if other.model_construct(kind=kind).fits(method)]
        raise Refusal(
            f"attack {attack.kind} changes nothing that clients of method {method.name} send: choose one of"
            f" {', '.join(fitting)}, or remove this arm"
            if fitting
            else f"attack {attack.kind}: clients of method {method.name} send nothing: remove this arm"
        )


def refuse_on_network(experiment: Experiment) -> None:
    """Refuse an attack where clients are real: it is for simulations.

    Raises:
        ExperimentError: the experiment has one.
    """
    if experiment.attack is not None:
        raise ExperimentError(
            "[attack] is for simulations on one machine: take it out to run on a network, or run"
            " `fedistill compare`"
        )

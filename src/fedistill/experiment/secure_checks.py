"""What secure sums rule out, found before round 1 and reported together."""

from collections.abc import Iterator

from fedistill.attacks.base import MessageAttack
from fedistill.communication.codecs import registry as codecs
from fedistill.config.secure_sums import LEAST
from fedistill.errors import ExperimentError
from fedistill.experiment.findings import Finding
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client_sampling import sample_clients, sample_dropouts
from fedistill.federation.setup import is_alone
from fedistill.methods.registry import METHODS, create_method
from fedistill.methods.secure_sums import AddsUp


def check_secure_sums(arm: ReadyArm) -> list[Finding]:
    """Return one error with all that keeps an arm from secure sums, if it asks for them and anything does."""
    if arm.secure_sums is None:
        return []
    reasons = [*_installed(), *_method(arm), *_clients(arm), *_message(arm), *_before_round_1(arm)]
    if not reasons:
        return []
    what = "secure_sums hides from the server what each client sends, which does not go with: "
    return [Finding("error", f"arm {arm.name!r}", what + "; ".join(reasons), "or take secure_sums out")]


def _installed() -> Iterator[str]:
    try:
        import fedistill.communication.secure_aggregation.primitives  # noqa: F401  # an extra
    except ImportError as error:
        yield f"packages that are missing ({error}): pip install 'fedistill[secure]'"


def _method(arm: ReadyArm) -> Iterator[str]:
    method = arm.method
    if not isinstance(method, AddsUp):
        able = [name for name, kind in METHODS.items() if issubclass(kind, AddsUp)]
        yield (
            f"method {method.name}, whose server reads each client's message (of {', '.join(able)} it needs"
            " their sum)"
        )
        return
    yield from method.without_sums(arm.federation)
    assert arm.secure_sums is not None
    try:
        for addend in arm.addends.values():
            addend.bits(len(arm.federation.clients))
    except ExperimentError as error:
        yield str(error)


def _clients(arm: ReadyArm) -> Iterator[str]:
    """Yield why so few clients take part, or remain, that no sum could be unmasked."""
    assert arm.secure_sums is not None
    clients = len(sample_clients(arm.sampling, len(arm.federation.clients), arm.seed, round=1))
    if clients < LEAST:
        yield (
            f"{clients} {'client' if clients == 1 else 'clients'} per round, each of whom could tell what"
            f" others send (task.clients times sampling.fraction must be {LEAST} or more)"
        )
        return
    for round in range(1, arm.rounds + 1):
        drawn = sample_clients(arm.sampling, len(arm.federation.clients), arm.seed, round)
        needed, lost = arm.secure_sums.needed(clients), sample_dropouts(arm.sampling, drawn, arm.seed, round)
        if clients - len(lost) < needed:
            yield (
                f"sampling.dropout = {arm.sampling.dropout:g}, with which {clients - len(lost)} of {clients}"
                f" replies remain in round {round}, fewer than the {needed} needed (lower it, or"
                " secure_sums.threshold)"
            )
            return


def _before_round_1(arm: ReadyArm) -> Iterator[str]:
    """Yield what clients send in the clear before any sum."""
    if arm.task.column_sums and not is_alone(arm.method):
        yield "the sums of its rows that each client sends so that all encode rows alike (set task.public)"


def _message(arm: ReadyArm) -> Iterator[str]:
    """Yield what is asked of a message up that is masked: that it be coded, or be a lie."""
    own = codecs.pair(create_method(arm.config).codec)[0]
    if (arm.coder.up.name, arm.coder.up.settings) != (own.name, own.settings):
        yield (
            f"codec {arm.coder.up.name} up, as masked integers have no shorter code (leave `codec` out, or"
            f' write {{ up = "{codecs.title(arm.method.codec)}", down = CODEC }}; secure_sums.bits sets how'
            " finely numbers are rounded)"
        )
    if isinstance(arm.attack, MessageAttack):
        yield (
            f"attack {arm.attack.kind}, which changes messages beyond what clients can add (attacks on labels"
            " go with it)"
        )

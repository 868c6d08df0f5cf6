"""What each client of an arm spends of its privacy, and which arms no noise makes private.

The rounds that count are those in which a client works: a reply that is lost may have been read by somebody.
That clients are drawn at random makes nothing more private here: the server knows who takes part.
"""

from collections.abc import Iterable, Sequence

import torch

from fedistill.errors import Refusal
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client_sampling import sample_clients
from fedistill.federation.history import RoundRecord
from fedistill.federation.local_rounds import fixed_rounds
from fedistill.federation.privacy_settings import counts_rounds, takes_noisy_votes
from fedistill.federation.setup import is_alone
from fedistill.methods.registry import METHODS, AnyMethod
from fedistill.models import registry as models
from fedistill.models.signature import Signature
from fedistill.privacy.dp_sgd import fault
from fedistill.privacy.mechanisms import DpSgd, LocalMechanism, Mechanism, NoisyVotes
from fedistill.rng import scoped, stream

Exchange = tuple[int, int]
"""A round in which a client works, and the rounds of local training behind it."""


def planned_epsilons(arm: ReadyArm) -> list[float]:
    """Return what each client will have spent after the last round, by number.

    Raises:
        ExperimentError: a package is missing, or no noise is enough.
    """
    found: list[list[Exchange]] = [[] for _ in arm.federation.clients]
    for number in range(1, arm.rounds + 1):
        _add_planned(found, arm, number)
    return [_epsilon(arm, client, exchanges) for client, exchanges in enumerate(found)]


def spent_epsilons(
    arm: ReadyArm, records: Sequence[RoundRecord], failed_round: int | None = None
) -> list[float]:
    """Return what each client has spent in these rounds, by number; 0 for one that did not work.

    Args:
        failed_round: the one after these, if the arm failed: its clients may have worked and replied.
    """
    found: list[list[Exchange]] = [[] for _ in arm.federation.clients]
    for record in records:
        for client in record.clients:
            found[client].append((record.round, record.local))
    if failed_round is not None:
        _add_planned(found, arm, failed_round)
    return [_epsilon(arm, client, exchanges) for client, exchanges in enumerate(found)]


def _add_planned(found: list[list[Exchange]], arm: ReadyArm, number: int) -> None:
    """Add the exchanges of clients that are to work in a round."""
    accumulate = arm.config.accumulate
    if isinstance(accumulate, int) and (number % accumulate == 0 or number == arm.rounds):
        for client in sample_clients(arm.sampling, len(found), arm.seed, number):
            found[client].append((number, fixed_rounds(accumulate, number)))


def _epsilon(arm: ReadyArm, client: int, exchanges: Sequence[Exchange]) -> float:
    mechanism, classes = arm.mechanism, len(arm.task.classes)
    assert mechanism is not None
    if isinstance(mechanism, DpSgd):
        steps = mechanism.steps(arm.train)
        return mechanism.bound(sum(local * steps for _, local in exchanges), classes)
    rounds = [number for number, _ in exchanges]
    once = isinstance(mechanism, LocalMechanism)
    return mechanism.bound(_answers(arm, client, rounds, once), classes)


def _answers(arm: ReadyArm, client: int, rounds: Iterable[int], once: bool) -> int:
    """Return how many labels of public samples a client has given; of each sample only one if ``once``."""
    context = arm.message_context(client)
    assert context.sampled is not None
    if not once:
        return context.samples * len(list(rounds))
    answered = torch.zeros(context.population, dtype=torch.bool)
    for number in rounds:
        answered[torch.from_numpy(context.sampled(number))] = True
    return int(answered.sum())


def check_privacy(arm: ReadyArm) -> None:
    """Check, before round 1, that the noise of an arm covers all that its clients send.

    Raises:
        Refusal: it does not; the text says what is sent beside, and what to change.
        ExperimentError: a package is missing, or no noise is enough.
    """
    mechanism, method = arm.privacy, arm.method
    if mechanism is None:
        return
    where = f"privacy.kind = {mechanism.kind}"
    if not method.clients_work:
        raise Refusal(f"{where}: clients of method {method.name} do nothing: give this arm {_NOTHING}")
    _check_surroundings(arm, where)
    if isinstance(mechanism, DpSgd):
        _check_dp_sgd(arm, mechanism, where)
    elif isinstance(mechanism, LocalMechanism):
        _check_local(method, mechanism, where)
    elif isinstance(mechanism, NoisyVotes):
        _check_central(arm, mechanism, where)
    largest = max(planned_epsilons(arm))
    if largest == float("inf"):
        raise Refusal(f"{where}: so little noise bounds nothing: raise it")
    budget = mechanism.epsilon if isinstance(mechanism, DpSgd) else None
    if budget is not None and largest > budget * 1.005:
        raise Refusal(
            f"{where}: a client would spend ε = {largest:.3g}, more than privacy.epsilon = {budget:g}: raise"
            " `noise`, or leave one of the two out (of a run that has begun, neither can be changed)"
        )


_NOTHING = 'privacy = { kind = "none" }'


def _check_surroundings(arm: ReadyArm, where: str) -> None:
    """Check what crosses beside the messages of the method."""
    if not counts_rounds(arm.config.accumulate):
        raise Refusal(
            f"{where}: with an adaptive `accumulate`, nobody knows before a run what it spends: set it to a"
            " number of rounds"
        )
    if arm.task.column_sums and not is_alone(arm.method):
        raise Refusal(
            f"{where}: clients send sums of their rows, without noise, so that all encode rows alike: set"
            " task.public, whose rows then say how"
        )
    if arm.holds_out:
        raise Refusal(
            f"{where}: clients hold some of their own samples out and tell, without noise, how many of these"
            " models get right: set task.own_test_share = 0"
        )


def _check_dp_sgd(arm: ReadyArm, mechanism: DpSgd, where: str) -> None:
    method, train = arm.method, arm.train
    if method.also_up:
        raise Refusal(
            f"{where}: with `start`, clients of method {method.name} first send statistics of their data,"
            " which noise in training does not cover: leave `start` out"
        )
    if method.beyond_model is not None:
        fitting = ", ".join(name for name, other in METHODS.items() if other.beyond_model is None)
        raise Refusal(
            f"{where}: it covers what a trained model tells, but clients of method {method.name} send"
            f" {method.beyond_model}: choose one of {fitting}, or give this arm {_NOTHING}"
        )
    if train.loss != "cross-entropy":
        why = "adds the client's class counts" if not train.own_loss else "may mix the samples of a batch"
        raise Refusal(
            f'{where}: train.loss = "{train.loss}" {why}, which no clipping of single records bounds: take'
            " cross-entropy"
        )
    if train.early_stopping is not None:
        raise Refusal(
            f"{where}: early stopping chooses an epoch by private samples, without noise: leave"
            " train.early_stopping out"
        )
    if mechanism.delta * max(arm.task.samples()) >= 1:
        raise Refusal(
            f"{where}: δ = {mechanism.delta:g} lets all of one record's data out, of"
            f" {max(arm.task.samples()):,}: set privacy.delta well below one over that"
        )
    for name in sorted({info.model for info in arm.federation.clients}):
        found = fault(models.reusable(name, arm.signature(name)))
        if found is None and models.is_own(name) and _mixes_records(name, arm.signature(name)):
            found = (
                "answers otherwise to a record if the others in its batch are others, so that no clipping of"
                " single records bounds what one tells: take each record by itself"
            )
        if found is not None:
            raise Refusal(f"{where}: model {name!r} {found}")


def _mixes_records(name: str, signature: Signature) -> bool:
    """Whether a custom model's answer to a record depends on the other records of a batch, in training."""
    draws, model = stream(0, "records"), models.build_model(name, signature, seed=0, client=0).train()
    blank = models.blank_inputs(signature, 3)
    first, second = (
        torch.randint(1, max(signature.vocabulary, 2), blank.shape, generator=draws)
        if signature.kind == "text"
        else torch.randn(blank.shape, generator=draws)
        for _ in range(2)
    )
    second[0] = first[0]
    with torch.no_grad():
        with scoped(0, "records"):
            alone = model(first)[0]
        with scoped(0, "records"):
            among_others = model(second)[0]
    return not torch.allclose(alone, among_others, rtol=1e-4, atol=1e-5, equal_nan=True)


def _check_local(method: AnyMethod, mechanism: LocalMechanism, where: str) -> None:
    if len(method.uplinks) == 1 and method.uplinks[0] in mechanism.messages:
        return
    fitting = [name for name, other in METHODS.items() if other.uplink in mechanism.messages]
    what = " or ".join(_words(kind.__name__) for kind in mechanism.messages)
    sent = " and ".join(_words(kind.__name__) for kind in method.uplinks) or "nothing"
    raise Refusal(
        f"{where}: it is for clients that send {what} and nothing else, but those of method {method.name}"
        " send"
        f" {sent}{', since it has a `start`' if method.also_up else ''}: choose one of {', '.join(fitting)}"
        f"{' without it' if method.also_up else ''}, or give this arm {_NOTHING}"
    )


def _words(name: str) -> str:
    return "".join(f" {one.lower()}" if one.isupper() else one for one in name).strip()


def _check_central(arm: ReadyArm, mechanism: Mechanism, where: str) -> None:
    method, clients = arm.method, len(arm.federation.clients)
    if not takes_noisy_votes(method) or method.also_up:
        raise Refusal(
            f"{where}: it is for votes of which the server keeps nothing but the majority: choose method"
            f' voting with aggregation = "majority" and without `start`, or give this arm {_NOTHING}'
        )
    if mechanism.delta * clients >= 1:
        raise Refusal(
            f"{where}: δ = {mechanism.delta:g} lets one of {clients} clients out: set privacy.delta well"
            " below"
            " one over their number"
        )

"""Clients of a process whose small models are trained together (`runtime.fast`).

The jobs of a round are cut into stacks by their order alone, so that results do not depend on the number of
processes. In a stack, clients whose step is plain training of a model that can be stacked are trained in
products over all of them (`fedistill.training.stacked`); all else is done client by client, as without
`runtime.fast`.
"""

import time
from collections.abc import Iterator, Sequence

from fedistill.communication.messages.weights import TrainedWeights, Weights
from fedistill.config.schema import RuntimeConfig
from fedistill.errors import TrainingError
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client import ClientResult, ClientWork, Stopwatch, begin_work, end_work, run_client
from fedistill.federation.executor import Job
from fedistill.federation.failures import failing_at
from fedistill.models import registry as models
from fedistill.training.devices import CPU, current_device
from fedistill.training.stacked import STACK, Trained, Trainee, fit_together, is_stackable, not_stacked


def run_jobs(
    arm: ReadyArm, round: int, jobs: Sequence[Job], runtime: RuntimeConfig
) -> Iterator[ClientResult]:
    """Do clients' parts of a round, in stacks where the settings ask for them; results come in order.

    Args:
        jobs: with `runtime.fast`, all of a round, or some that begin at a multiple of `STACK`.

    Raises:
        TrainingError: as `run_client`.
    """
    if not runtime.fast or why_alone(arm) is not None:
        for client, state, frame in jobs:
            yield run_client(arm, client, round, state, frame)
        return
    for start in range(0, len(jobs), STACK):
        yield from _run_stack(arm, round, jobs[start : start + STACK])


def why_alone(arm: ReadyArm) -> str | None:
    """Return why all clients of an arm are trained one by one, for people, after "since"; else None."""
    if not vars(type(arm.method)).get("trains_received", False):
        return f"clients of method {arm.method.name} do more than to train the weights that they receive"
    if arm.secure_sums is not None:
        return "secure sums are set"
    if arm.privacy is not None:
        return "privacy is set"
    if current_device() != CPU:
        return f"models compute on {current_device().type}"
    if (setting := not_stacked(arm.train)) is not None:
        return f"{setting} is for one model at a time"
    names = [*dict.fromkeys(arm.config.models.clients)]
    if not any(_stacks(arm, name) for name in names):
        return f"{', '.join(names)} cannot be stacked; mlp-s, logistic and mlp-tab can"
    return None


def _stacks(arm: ReadyArm, name: str) -> bool:
    """Return whether models of a name can be trained together."""
    return models.is_built_in(name) and is_stackable(models.reusable(name, arm.signature(name)))


def _run_stack(arm: ReadyArm, round: int, jobs: Sequence[Job]) -> Iterator[ClientResult]:
    """Do the parts of the clients of one stack."""
    names = {arm.federation.clients[client].model for client, _, _ in jobs}
    stackable = {name for name in names if _stacks(arm, name)}
    begun: dict[int, ClientWork] = {}
    for place, (client, state, frame) in enumerate(jobs):
        if arm.federation.clients[client].model not in stackable:
            continue
        work = _begin(arm, client, round, state, frame)
        if work is not None:
            begun[place] = work
    trained: dict[int, Trained] = {}
    for name in sorted(stackable):
        alike = {place: work for place, work in begun.items() if work.own.model == name}
        for group in _groups(alike):
            trained |= _train(arm, name, group)
    for place, (client, state, frame) in enumerate(jobs):
        done = trained.get(place)
        if done is None or done.weights is None:
            # An error, such as a loss that is not finite, is met again here, and has the client's name.
            yield run_client(arm, client, round, state, frame)
            continue
        work = begun[place]
        with failing_at(f"round {round}, client {client}"):
            message = TrainedWeights(done.weights, len(work.own.data))
            work.clock.start()
            result = end_work(arm, work, work.before, message, done.cost, stacked=True)
        yield result


def _begin(arm: ReadyArm, client: int, round: int, state: bytes, frame: bytes) -> ClientWork | None:
    """Return the work of a client that can be trained with others; None for one that is left alone."""
    if not frame or arm.attack_by(client, round) is not None:
        return None
    try:
        with failing_at(f"round {round}, client {client}"):
            work = begin_work(arm, client, round, state, frame, Stopwatch())
    except TrainingError:
        return None
    if isinstance(work, ClientResult) or not isinstance(work.received, Weights) or not len(work.own.data):
        return None
    work.clock.stop()
    return work


def _groups(alike: dict[int, ClientWork]) -> Iterator[dict[int, ClientWork]]:
    """Yield those whose largest batches differ by a factor of two at most: shorter ones are filled up.

    It depends on numbers of samples alone, and a group has two clients at least.
    """
    largest = {place: min(len(work.own.data), work.own.train.batch_size) for place, work in alike.items()}
    waiting = sorted(alike, key=lambda place: (-largest[place], place))
    while waiting:
        size = sum(2 * largest[place] >= largest[waiting[0]] for place in waiting)
        if size > 1:
            yield {place: alike[place] for place in sorted(waiting[:size])}
        waiting = waiting[size:]


def _train(arm: ReadyArm, name: str, alike: dict[int, ClientWork]) -> dict[int, Trained]:
    """Train the models of clients of one architecture; return what became of each, by place in the stack."""
    started = time.perf_counter()
    module = models.reusable(name, arm.signature(name))
    first = next(iter(alike.values())).own
    try:
        found = fit_together(module, [_trainee(work) for work in alike.values()], first.train, first.classes)
    except Exception:  # each is trained alone then, and who fails has the error with its name
        return {}
    share = (time.perf_counter() - started) / len(alike)
    for work in alike.values():
        work.clock.add(share)
    return dict(zip(alike, found, strict=True))


def _trainee(work: ClientWork) -> Trainee:
    assert isinstance(work.received, Weights)
    own = work.own
    return Trainee(work.received.values, own.inputs(), own.data.labels, own.stream("private"))

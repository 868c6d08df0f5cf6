"""Checks before a run, each with what to do about it; `doctor` shows them, and every run makes them first."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial

from torch.nn.modules.batchnorm import _BatchNorm

from fedistill.attacks.registry import check_attack
from fedistill.communication.codecs.registry import CODECS
from fedistill.communication.messages.base import contents
from fedistill.communication.tensor_specs import Content
from fedistill.config.inputs import SAMPLES
from fedistill.config.schema import Experiment, RuntimeConfig
from fedistill.config.training import OptimizerConfig
from fedistill.config.units import format_bytes
from fedistill.data.task import Task
from fedistill.deployment.description import Description, TablePreprocessing
from fedistill.errors import ExperimentError
from fedistill.experiment.findings import Finding
from fedistill.experiment.secure_checks import check_secure_sums
from fedistill.experiment.task_checks import check_task, label_skew
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client_stacks import why_alone
from fedistill.federation.executor import worker_count
from fedistill.federation.expected_bytes import expected_bytes, expected_bytes_of_others
from fedistill.federation.privacy_budget import check_privacy, planned_epsilons
from fedistill.federation.setup import public_bytes
from fedistill.models import registry as models
from fedistill.models.checks import check_model
from fedistill.models.saved_start import start_file
from fedistill.privacy.disclosures import told_of
from fedistill.training.devices import computing
from fedistill.training.early_stopping import FEWEST, held_out
from fedistill.training.loop import has_one_value_per_channel
from fedistill.training.own_functions import check_loss, check_optimizer
from fedistill.training.stacked import STACK

STRONG_SKEW = 0.55
"""Label skew (`label_skew`) from which aggregated labels need a remedy.

Ten clients have about 0.05 with an even partition, 0.37 with Dirichlet 1, 0.46 with 0.5, 0.52 with 0.3, 0.6
with 0.2 and 0.7 with 0.1. With a small CNN, one local epoch and 5 rounds (Fashion-MNIST, seeds 0 and 1,
held-out training images) the remedy gains 1 and 4 points over plain `dsfl` for 1, 5 and 4 for 0.5, 3 and 20
for 0.3, 13 and 24 for 0.2, 26 and 39 for 0.1. The threshold is where both seeds gain much: other tasks,
more rounds and tuned training make it smaller (benchmarks/skew.py).
"""
_CORRECTS = ("prior-corrected", "reliability")
"""Aggregations that divide each client's rows by its class prior."""
_PROCESS_BYTES = 250_000_000
"""Memory of a Python process with torch before it has any data; measured with torch 2.13 on Linux."""
_MANY_BYTES = 100_000_000
"""Of samples: where there are more, their room on disk is worth a word."""


def examine(experiment: Experiment, task: Task, arms: Sequence[ReadyArm]) -> list[Finding]:
    """Return all findings, those about the task first."""
    findings = check_task(task, arms)
    skew = label_skew(task)
    with computing(experiment.runtime):
        for arm in arms:
            findings += _sites(arm, experiment.flower.clients_per_node)
            found = [*examine_arm(arm), *_skewed(arm, skew), *_training(arm), *_start(arm)]
            findings += found
            if not any(finding.level == "error" for finding in found):
                findings += [*_norms(arm), _bytes(arm), *_privacy(arm), *_stacks(arm, experiment.runtime)]
        if not any(finding.level == "error" for finding in findings):
            findings.append(_memory(experiment, task, arms))
    return findings


def examine_arm(arm: ReadyArm) -> list[Finding]:
    """Return the errors of an arm: what it names and does not fit, and what its method or codecs refuse."""
    where = f"arm {arm.name!r}"
    findings = []
    names = dict.fromkeys([*arm.config.models.clients, arm.config.models.server])
    for name in names:
        try:
            check_model(name, arm.signature(name))
        except ExperimentError as error:
            findings.append(Finding("error", where, str(error)))
    findings += [Finding("error", where, error) for error in _own_functions(arm)]
    if findings:
        return findings
    kind, augment = arm.task.signature.kind, arm.train.augment
    if augment is not None and (others := augment.others(kind)):
        what = f"train.augment has {', '.join(others)}, but the samples of this task are {SAMPLES[kind]}"
        findings.append(Finding("error", where, what, f"take {'them' if others[1:] else 'it'} out"))
    if arm.method.uplink is None and arm.config.accumulate != 1:
        what = f"method {arm.method.name} exchanges nothing, so there is nothing to wait for"
        findings.append(Finding("error", where, what, "take `accumulate` out of this arm"))
    if arm.config.ema is not None and not arm.method.has_server_model:
        what = f"method {arm.method.name} has no model at the server, so there is none to average"
        findings.append(Finding("error", where, what, "take `ema` out of this arm"))
    try:
        arm.method.check(arm.federation)
        if arm.attack is not None:
            check_attack(arm.attack, arm.method, arm.seed, len(arm.federation.clients))
        check_privacy(arm)
    except ExperimentError as error:
        findings.append(Finding("error", where, str(error)))
    return [*findings, *_codecs(arm), *check_secure_sums(arm)]


def _sites(arm: ReadyArm, clients_per_node: int) -> Iterator[Finding]:
    """Find secure sums of which one SuperNode that is several clients knows, or could unmask, too much."""
    if arm.secure_sums is None or clients_per_node == 1:
        return
    clients = round(arm.sampling.fraction * len(arm.federation.clients))
    if clients_per_node >= min(arm.secure_sums.needed(clients), clients - 1):
        yield Finding(
            "warning",
            f"arm {arm.name!r}",
            f"one SuperNode may be {clients_per_node} of {clients} clients: with the server it could unmask"
            " what the others add up, or it learns what is left of the sum without its own",
            "make flower.clients_per_node less, or secure_sums.threshold greater",
        )


def _own_functions(arm: ReadyArm) -> Iterator[str]:
    """Yield what is wrong with the optimizers and the loss of the user's own."""
    wanted = (arm.train.optimizer, getattr(arm.method.settings, "optimizer", None))
    kind, classes = arm.task.signature.kind, len(arm.task.classes)
    checks = [
        partial(check_optimizer, one.resolved(kind)) for one in wanted if isinstance(one, OptimizerConfig)
    ]
    for check in (*checks, partial(check_loss, arm.train, classes)):
        try:
            check()
        except ExperimentError as error:
            yield str(error)


def _skewed(arm: ReadyArm, skew: float) -> list[Finding]:
    """Find methods that aggregate soft labels of clients with very different classes, without a remedy.

    Methods whose clients answer only for samples like their own do as well without (docs/label-skew.md).
    Others are not warned about: for averaged weights balanced softmax is better in the first rounds and worse
    after twenty, and where nothing is aggregated it costs accuracy on the clients' own classes.
    """
    train, aggregation = arm.train, getattr(arm.method.settings, "aggregation", None)
    if skew < STRONG_SKEW or aggregation is None:
        return []
    missing = []
    plain = train.loss == "cross-entropy" and (train.not_true is None or train.not_true.beta == 0)
    if "loss" in arm.method.under_skew and plain:
        missing.append('train = { loss = "balanced-softmax" }')
    if "aggregation" in arm.method.under_skew and aggregation.name not in _CORRECTS:
        missing.append('aggregation = "prior-corrected"')
    if not missing:
        return []
    what = f"the clients' labels are strongly skewed ({skew:.2f} of 1), and what they send repeats it"
    return [Finding("warning", f"arm {arm.name!r}", what, f"give this arm {' and '.join(missing)}")]


def _training(arm: ReadyArm) -> list[Finding]:
    """Find a warm-up that never ends, and early stopping without an end or with too few samples."""
    settings, schedule, where = arm.train.early_stopping, arm.train.optimizer.schedule, f"arm {arm.name!r}"
    findings = []
    if schedule is not None and schedule.over == "rounds" and schedule.warm_up >= arm.rounds:
        what = f"a warm-up of {schedule.warm_up} rounds does not end within {arm.rounds}"
        findings.append(Finding("warning", where, what, "lower warm_up in train.optimizer.schedule"))
    if settings is None or not arm.method.clients_use_models:
        return findings
    if arm.train.steps is None and arm.train.epochs == 1:
        what = "early stopping never ends a training of one epoch, and only keeps samples from it"
        findings.append(Finding("warning", where, what, "raise train.epochs, or leave early_stopping out"))
    few = [client for client, count in enumerate(arm.task.samples()) if held_out(count, settings) == 0]
    if few:
        shown = ", ".join(map(str, few[:5])) + (" …" if len(few) > 5 else "")
        what = (
            f"clients with too few samples for early stopping, of which {FEWEST} would be held out, train to"
            f" the end on all: {shown}"
        )
        findings.append(Finding("warning", where, what, "raise early_stopping.share, or leave it out"))
    return findings


def _start(arm: ReadyArm) -> list[Finding]:
    """Find a saved model that nobody starts from, or one that has read rows of tables otherwise."""
    method = arm.method
    sent = {content for kind in method.uplinks + method.downlinks for content in contents(kind)}
    uses = method.has_server_model or method.clients_build_common or Content.WEIGHTS in sent
    if arm.config.models.start is None:
        return []
    if uses:
        return list(_read_otherwise(arm, arm.config.models.start))
    what = f"method {method.name} has no model at the server and sends none: nothing starts from models.start"
    return [Finding("fact", f"arm {arm.name!r}", what)]


def _read_otherwise(arm: ReadyArm, start: str) -> Iterator[Finding]:
    encoding, before = arm.task.record_encoding(), None
    if encoding is None:
        return
    with suppress(ExperimentError):  # weights may stand alone; what is wrong with these is found elsewhere
        before = Description.read(start_file(start).parent).preprocessing
    if not isinstance(before, TablePreprocessing) or before.encoding == encoding:
        return
    if before.encoding.places() == encoding.places():
        what = "columns had other means and deviations when the saved model was trained"
        yield Finding("fact", f"arm {arm.name!r}", what)
        return
    what = "the saved model reads other columns or categories, in as many places, than this task has"
    fix = "name the same columns in task.table, or leave models.start out"
    yield Finding("warning", f"arm {arm.name!r}", what, fix)


def _codecs(arm: ReadyArm) -> list[Finding]:
    """Find codecs that cannot code what the method sends, such as weights with a codec of probabilities."""
    wrong_by_codec: dict[tuple[str, str, str], list[str]] = {}
    for direction, codec, kinds in (
        ("up", arm.coder.up, arm.method.uplinks),
        ("down", arm.coder.down, arm.method.downlinks),
    ):
        sent = {content for kind in kinds for content in contents(kind)}
        wrong = sorted(content.value for content in sent - codec.codes)
        if wrong:
            fitting = ", ".join(name for name, other in CODECS.items() if sent <= other.codes)
            wrong_by_codec.setdefault((codec.name, wrong[0], fitting), []).append(direction)
    return [
        Finding(
            "error",
            f"arm {arm.name!r}",
            f"codec {codec} cannot code the {wrong} that method {arm.method.name} sends"
            f" {' and '.join(directions)}",
            f"choose one of {fitting}",
        )
        for (codec, wrong, fitting), directions in wrong_by_codec.items()
    ]


def _norms(arm: ReadyArm) -> list[Finding]:
    """Find batch norm: its statistics are those of one client's data, and a batch of one may have none."""
    where = f"arm {arm.name!r}"
    findings = []
    for name in dict.fromkeys([*arm.config.models.clients, arm.config.models.server]):
        signature = arm.signature(name)
        module = models.reusable(name, signature)
        if not any(isinstance(part, _BatchNorm) for part in module.modules()):
            continue
        fix = "use nn.GroupNorm or nn.LayerNorm"
        what = f"model {name!r} has batch norm, whose statistics of one client mislead the others"
        findings.append(Finding("warning", where, what, fix))
        if has_one_value_per_channel(module, models.blank_inputs(signature, 1)):
            findings += [
                Finding("error", where, f"model {name!r} has batch norm, but {alone}", f"{fix}, or {other}")
                for alone, other in _batches_of_one(arm, name)
            ]
    return findings


def _batches_of_one(arm: ReadyArm, name: str) -> Iterator[tuple[str, str]]:
    """Yield where a model would be trained on one sample at a time, each with a fix.

    A last batch of one is not found: it joins the one before (`training.loop.fit`).
    """
    servers = arm.method.travels == "server" and name == arm.config.models.server
    trained = [info.id for info in arm.federation.clients if servers or info.model == name]
    if trained and arm.train.batch_size == 1:
        yield "its clients train on batches of one sample", "raise train.batch_size"
    if alone := [client for client in trained if len(arm.task.clients[client]) == 1]:
        yield f"client {alone[0]} has one sample", "set task.partition.min_samples"
    for key in ("distill_batch_size", "batch_size"):
        if getattr(arm.method.settings, key, None) == 1:
            yield "it is distilled on batches of one sample", f"raise {key}"
    if arm.method.needs.public and arm.federation.public == 1:
        yield "the public set has one sample", "raise task.public"


def _bytes(arm: ReadyArm) -> Finding:
    up, down = expected_bytes(arm)
    step = arm.config.accumulate if isinstance(arm.config.accumulate, int) else 1
    exchanges = -(-arm.rounds // step)
    kinds = [kind for kind in (arm.method.uplink, arm.method.downlink) if kind is not None]
    fixed = (
        arm.coder.up.fixed and arm.coder.down.fixed and not any(kind.varies or kind.once for kind in kinds)
    )
    what = f"{'about' if fixed else 'at most'} {format_bytes(up)} up and {format_bytes(down)} down"
    if arm.method.one_shot:
        what += ", once"
    else:
        total, unit = format_bytes((up + down) * exchanges), "rounds" if step == 1 else "exchanges"
        what += f" per round, {total} in {exchanges} {unit}"
    if others := expected_bytes_of_others(arm):
        what += f"; before that about {format_bytes(others)} or less, once"
    if up == down == 0:
        what = "exchanges nothing"
    if public := public_bytes(arm):
        what += f"; public data {format_bytes(public)} once"
    return Finding("fact", f"arm {arm.name!r}", what)


def _privacy(arm: ReadyArm) -> list[Finding]:
    """Tell what clients will have spent after the last round, and what of their messages noise covers."""
    mechanism = arm.mechanism
    if mechanism is None:
        return []
    epsilons = planned_epsilons(arm)
    least, most = min(epsilons), max(epsilons)
    spent = (
        f"{most:.3g}" if least == most else f"{least:.3g} to {most:.3g}, by how often a client takes part,"
    )
    told = told_of(arm.method.uplinks)
    if not any(one.startswith("samples ") for one in told):
        told.append("samples (of the number of private samples)")  # before round 1
    noise, sent = getattr(mechanism, "noise", None), ", ".join(told)
    what = (
        f"{mechanism.kind}{'' if noise is None else f' with noise {noise:g}'}: after {arm.rounds} rounds"
        f" ε = {spent} at δ = {mechanism.delta:g}, for {mechanism.unit}; what leaves a client: {sent}"
    )
    return [Finding("fact", f"arm {arm.name!r}", what)]


def _stacks(arm: ReadyArm, runtime: RuntimeConfig) -> Iterator[Finding]:
    """Tell, where clients are to be trained together, of which arms that cannot be done."""
    if not runtime.fast or not arm.method.clients_work:
        return
    why = why_alone(arm)
    what = f"small models are trained together, up to {STACK} at a time"
    if why is not None:
        what = f"clients are trained one by one, since {why}"
    yield Finding("fact", f"arm {arm.name!r}", f"runtime.fast: {what}")


def _memory(experiment: Experiment, task: Task, arms: Sequence[ReadyArm]) -> Finding:
    """Estimate the memory of processes, and of clients' states and replies, within a factor of 2.

    Samples lie on disk; of these, the system keeps in memory what there is room for.
    """
    count = worker_count(experiment.runtime, len(task.clients))
    processes = 1 if count == 1 and experiment.runtime.kind != "processes" else count + 1
    data = sum(part.samples.nbytes for part in (*task.clients, *task.own_tests, task.test))
    heaviest = max(_heaviest(arm) for arm in arms)
    total = processes * _PROCESS_BYTES + heaviest
    where = "one process" if processes == 1 else f"{processes} processes"
    what = f"about {format_bytes(total)} in {where}"
    if data > _MANY_BYTES:
        what += f"; the samples are read from disk as they are needed, and take {format_bytes(data)} there"
    return Finding("fact", "memory", what)


def _heaviest(arm: ReadyArm) -> int:
    """Return the bytes of all clients' states (weights and momentum) and replies of an arm."""
    copies = 2 if arm.method.has_client_models else 1
    return sum(4 * info.parameters * copies for info in arm.federation.clients)

"""Checks before a run, each with what to do about it. `compare` makes them too, before round 1."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fedistill.communication.codecs.registry import CODECS
from fedistill.communication.messages.base import contents
from fedistill.config.schema import Experiment
from fedistill.config.units import format_bytes
from fedistill.data.task import Task
from fedistill.errors import ExperimentError, Refusal
from fedistill.federation.arm import ReadyArm
from fedistill.models import registry as models

STRONG_SKEW = 0.55
"""Label skew (`label_skew`) from which on pooled labels need a remedy.

Ten clients are at about 0.05 where the partition is even, 0.37 for Dirichlet 1, 0.46 for 0.5, 0.52 for 0.3,
0.6 for 0.2 and 0.7 for 0.1. By benchmarks/skew.py (small, seeds 0 and 1, judged on held-out training
images, after 5 rounds) the remedy is ahead of `dsfl` as it is by 1 and 4 points for 1, 5 and 4 for 0.5, 3
and 20 for 0.3, 13 and 24 for 0.2, 26 and 39 for 0.1. The threshold is where both seeds gain much: other
tasks and more rounds can turn a small lead round (benchmarks/methods.py).
"""
Level = Literal["error", "warning", "fact"]
_PROCESS_BYTES = 250_000_000
"""What a Python process with torch holds before it has any data; measured, with torch 2.13 on Linux."""


@dataclass(frozen=True)
class Finding:
    """Something seen before a run. Errors stop it, warnings and facts do not."""

    level: Level
    where: str
    what: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f": {self.fix}" if self.fix else "")


def examine(experiment: Experiment, task: Task, arms: Sequence[ReadyArm]) -> list[Finding]:
    """Return all findings, those of the task first."""
    findings = [*_labels(task), *_clients(task)]
    skew = label_skew(task)
    for arm in arms:
        found = [*_arm(arm), *_skewed(arm, skew)]
        findings += found
        if not any(finding.level == "error" for finding in found):
            findings += [*_norms(arm), _bytes(arm)]
    if not any(finding.level == "error" for finding in findings):
        findings.append(_memory(experiment, task, arms))
    return findings


def raise_errors(findings: Sequence[Finding]) -> None:
    """Raise one `ExperimentError` that says all errors among the findings, if there are any."""
    errors = [str(finding) for finding in findings if finding.level == "error"]
    if errors:
        raise ExperimentError("\n".join(errors))


def _labels(task: Task) -> list[Finding]:
    """Classes that only one side knows."""
    private = task.class_counts().sum(dim=0) > 0
    tested = torch.bincount(task.test.labels, minlength=len(task.classes)) > 0
    findings = []
    if missing := _named(task, tested & ~private):
        what = f"no client holds any sample of {missing}, but the test set does"
        fix = "make task.partition more even, or raise task.limit"
        findings.append(Finding("warning", "task", what, fix))
    if missing := _named(task, private & ~tested):
        what = f"clients hold samples of {missing}, but the test set has none"
        fix = "give task.test data of all classes, or raise task.test_share"
        findings.append(Finding("warning", "task", what, fix))
    return findings


def label_skew(task: Task) -> float:
    """How far the clients' label shares are from those of all samples, 0 to 1.

    The mean over clients of the total variation distance, half the sum of absolute differences: the part of
    a client's samples that would need another label to be like everyone's.
    """
    counts = task.class_counts().double()
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    overall = counts.sum(dim=0) / counts.sum().clamp(min=1)
    return float((shares - overall).abs().sum(dim=1).mean() / 2)


def _named(task: Task, mask: Tensor) -> str:
    return ", ".join(repr(task.classes[place]) for place in mask.nonzero().flatten().tolist())


def _clients(task: Task) -> list[Finding]:
    empty = [client for client, data in enumerate(task.clients) if len(data) == 0]
    if not empty:
        return []
    shown = ", ".join(map(str, empty[:5])) + (" …" if len(empty) > 5 else "")
    fix = "lower task.clients, or set task.partition.min_samples"
    return [Finding("error", "task", f"clients without samples: {shown}", fix)]


def _arm(arm: ReadyArm) -> list[Finding]:
    """What the method refuses, and models that do not fit the task."""
    where = f"arm {arm.name!r}"
    findings = []
    names = dict.fromkeys([*arm.config.models.clients, arm.config.models.server])
    for name in names:
        try:
            models.check_model(name, arm.signature(name))
        except ExperimentError as error:
            findings.append(Finding("error", where, str(error)))
    if findings:
        return findings
    if arm.method.uplink is None and arm.config.accumulate != 1:
        what = f"method {arm.method.name} exchanges nothing, so there is nothing to wait for"
        findings.append(Finding("error", where, what, "take `accumulate` out of this arm"))
    try:
        arm.method.check(arm.federation)
    except Refusal as error:
        findings.append(Finding("error", where, str(error)))
    return [*findings, *_codecs(arm)]


def _skewed(arm: ReadyArm, skew: float) -> list[Finding]:
    """Soft labels of clients that hold very unlike classes.

    Those who answer only what is like their own data do as well without (docs/label-skew.md). Others are left
    alone: for averaged weights balanced softmax is ahead in the first rounds and behind
    after twenty, and where nothing is pooled it costs accuracy on the clients' own classes.
    """
    train, pooling = arm.config.train, getattr(arm.method.settings, "aggregation", None)
    if skew < STRONG_SKEW or pooling is None:
        return []
    missing = []
    plain = train.loss == "cross-entropy" and (train.not_true is None or train.not_true.beta == 0)
    if "loss" in arm.method.under_skew and plain:
        missing.append('train = { loss = "balanced-softmax" }')
    if "aggregation" in arm.method.under_skew and pooling.name != "prior-corrected":
        missing.append('aggregation = "prior-corrected"')
    if not missing:
        return []
    what = f"the clients' labels are strongly skewed ({skew:.2f} of 1), and what they send repeats it"
    return [Finding("warning", f"arm {arm.name!r}", what, f"give this arm {' and '.join(missing)}")]


def _codecs(arm: ReadyArm) -> list[Finding]:
    """A codec of class probabilities cannot code weights, and the other way round."""
    said: dict[tuple[str, str, str], list[str]] = {}
    for way, codec, kind in (
        ("up", arm.coder.up, arm.method.uplink),
        ("down", arm.coder.down, arm.method.downlink),
    ):
        sent = set() if kind is None else contents(kind)
        wrong = sorted(content.value for content in sent - codec.codes)
        if wrong:
            fitting = ", ".join(name for name, other in CODECS.items() if sent <= other.codes)
            said.setdefault((codec.name, wrong[0], fitting), []).append(way)
    return [
        Finding(
            "error",
            f"arm {arm.name!r}",
            f"codec {codec} cannot code the {wrong} that method {arm.method.name} sends {' and '.join(ways)}",
            f"choose one of {fitting}",
        )
        for (codec, wrong, fitting), ways in said.items()
    ]


def _norms(arm: ReadyArm) -> list[Finding]:
    """Batch norm: its statistics belong to one client's data, and a batch of one has none."""
    where = f"arm {arm.name!r}"
    findings = []
    for name in dict.fromkeys([*arm.config.models.clients, arm.config.models.server]):
        module = models.reusable(name, arm.signature(name))
        norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        if not any(isinstance(part, norms) for part in module.modules()):
            continue
        fix = "use nn.GroupNorm or nn.LayerNorm"
        what = f"model {name!r} has batch norm, whose statistics of one client mislead the others"
        findings.append(Finding("warning", where, what, fix))
        ones = _batches_of_one(arm, name)
        if ones:
            size_ = arm.config.train.batch_size
            what = f"model {name!r} has batch norm, but client {ones[0]} has a last batch of one sample"
            fix = f"{fix}, or another train.batch_size than {size_}"
            findings.append(Finding("error", where, what, fix))
        if _leaves_one_public_sample(arm):
            size_ = arm.method.settings.distill_batch_size
            what = f"model {name!r} has batch norm, but the last batch of public samples is of one"
            fix = f"use nn.GroupNorm or nn.LayerNorm, or another distill_batch_size than {size_}"
            findings.append(Finding("error", where, what, fix))
    return findings


def _leaves_one_public_sample(arm: ReadyArm) -> bool:
    size_ = getattr(arm.method.settings, "distill_batch_size", None)
    count = arm.method.samples(arm.federation.public)
    return size_ is not None and count > 0 and (count % size_ == 1 or size_ == 1)


def _batches_of_one(arm: ReadyArm, name: str) -> list[int]:
    batch = arm.config.train.batch_size
    return [
        info.id
        for info in arm.federation.clients
        if info.model == name and (len(arm.task.clients[info.id]) % batch == 1 or batch == 1)
    ]


def _bytes(arm: ReadyArm) -> Finding:
    up, down = arm.expected_bytes()
    step = arm.config.accumulate if isinstance(arm.config.accumulate, int) else 1
    exchanges = -(-arm.rounds // step)
    kinds = [kind for kind in (arm.method.uplink, arm.method.downlink) if kind is not None]
    fixed = (
        arm.coder.up.fixed and arm.coder.down.fixed and not any(kind.varies or kind.once for kind in kinds)
    )
    what = (
        f"{'about' if fixed else 'at most'} {format_bytes(up)} up and {format_bytes(down)} down a round,"
        f" {format_bytes((up + down) * exchanges)} in {exchanges} {'rounds' if step == 1 else 'exchanges'}"
    )
    if up == down == 0:
        what = "exchanges nothing"
    if public := arm.public_bytes():
        what += f"; public data {format_bytes(public)} once"
    return Finding("fact", f"arm {arm.name!r}", what)


def _memory(experiment: Experiment, task: Task, arms: Sequence[ReadyArm]) -> Finding:
    """Processes, data, states of clients and one training step each; an estimate within a factor of 2."""
    from fedistill.federation.executor import worker_count  # the runtime knows arms, arms are checked here

    count = worker_count(experiment.runtime, len(task.clients))
    processes = 1 if count == 1 and experiment.runtime.kind != "processes" else count + 1
    data = sum(part.samples.nbytes for part in (*task.clients, task.test))
    heaviest = max(_heaviest(arm) for arm in arms)
    total = processes * (_PROCESS_BYTES + data) + heaviest
    where = "one process" if processes == 1 else f"{processes} processes"
    return Finding("fact", "memory", f"about {format_bytes(total)} in {where}")


def _heaviest(arm: ReadyArm) -> int:
    """Bytes of clients' states (weights and momentum) and of all replies, for the largest method."""
    copies = 2 if arm.method.has_client_models else 1
    return sum(4 * info.parameters * copies for info in arm.federation.clients)

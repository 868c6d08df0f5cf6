"""What `doctor` says of arms that a comparison lacks: rivals that cost little, and a method that fits."""

from collections.abc import Iterator, Sequence

from fedistill.config.schema import Arm, Experiment
from fedistill.config.units import format_bytes
from fedistill.data.task import Task
from fedistill.errors import ExperimentError
from fedistill.experiment.at_scale import at_scale
from fedistill.experiment.findings import Finding
from fedistill.experiment.preflight import STRONG_SKEW, examine, examine_arm
from fedistill.experiment.task_checks import label_skew
from fedistill.federation.arm import ReadyArm
from fedistill.federation.expected_bytes import expected_bytes
from fedistill.methods.shared.expertise import mean_level, share_of_voters

STATISTICS = {"text": "naive-bayes", "image": "gaussian", "table": "gaussian"}
"""A method of one message for each kind of data."""
WITH_PUBLIC, WITHOUT_PUBLIC = "bridge", "random-mask"
"""The methods that are often the cheapest way to an accuracy, with a public set and without one."""
STARTS = {"image": "gaussian(width=32)"}
"""Statistics that `bridge` should begin with under strong label skew, by kind of data; measured on images
alone (benchmarks/flagship.py)."""
FEW_VOTERS = 0.6
"""Share of a class's samples whose clients should vote for it; at least 0.72 in all tasks on which votes at
once were measured (benchmarks/flagship.py), where `coverage` asks for 0.8."""
BEST_LOSS = "balanced-softmax"
"""The loss that is advised for both of these."""


def examine_and_advise(
    experiment: Experiment, task: Task, arms: Sequence[ReadyArm], population: int | None = None
) -> list[Finding]:
    """Return the findings of `examine` and, if there are no errors, facts about arms that are missing.

    With ``population``, also about each arm with so many clients.
    """
    findings = examine(experiment, task, arms)
    if any(finding.level == "error" for finding in findings):
        return findings
    scaled = [] if population is None else at_scale(arms, population)
    return [*findings, *scaled, *_advice(experiment, task, arms)]


def _advice(experiment: Experiment, task: Task, arms: Sequence[ReadyArm]) -> Iterator[Finding]:
    named = {arm.method.name for arm in arms}
    skew = label_skew(task)
    start = STARTS.get(task.signature.kind) if skew >= STRONG_SKEW else None
    for arm in arms if start else ():
        if arm.method.name == WITH_PUBLIC and arm.method.settings.start is None:
            what = (
                f"the clients' labels are strongly skewed ({skew:.2f} of 1), so their votes alone say little"
            )
            yield Finding("warning", f"arm {arm.name!r}", what, f'give this arm start = "{start}"')
    for arm in arms:
        if arm.method.name == WITH_PUBLIC:
            yield from _unvoted(arm, task)
    statistics = STATISTICS[task.signature.kind]
    if not any(arm.method.one_shot for arm in arms):
        once = _ready(statistics, experiment, task)
        if once is not None:
            cost = f"about {format_bytes(sum(expected_bytes(once)))} or less"
            what = f"no arm sends statistics once; {statistics} would cost {cost} in all, and nobody trains"
            yield Finding("fact", "arms", what, f'compare with it: add [[arms]] with method = "{statistics}"')
    trained = any(arm.method.uplink is not None and not arm.method.one_shot for arm in arms)
    if not trained or WITH_PUBLIC in named:
        return
    if task.public is not None and _ready(WITH_PUBLIC, experiment, task) is not None:
        what = f"with a public set and these models, {WITH_PUBLIC} is often the cheapest way to an accuracy"
        first = f', start = "{start}"' if start else ""
        fix = f'add [[arms]] with method = "{WITH_PUBLIC}"{first} and train = {{ loss = "{BEST_LOSS}" }}'
        yield Finding("fact", "arms", what, fix)
    elif WITHOUT_PUBLIC not in named:
        masked = _ready(WITHOUT_PUBLIC, experiment, task)
        if masked is not None:
            cost = format_bytes(sum(expected_bytes(masked)))
            what = (
                f"{WITHOUT_PUBLIC}, which trains and sends a small part of the weights, would cost about"
                f" {cost}"
            )
            fix = f'compare with it: add [[arms]] with method = "{WITHOUT_PUBLIC}"'
            yield Finding("fact", "arms", what, fix)


def _unvoted(arm: ReadyArm, task: Task) -> Iterator[Finding]:
    """Find classes of which those who would vote for them at once hold too little."""
    settings = arm.method.settings
    if settings.levels_first or settings.start is not None:
        return
    held = share_of_voters(task.class_counts(), mean_level(task.samples(), len(task.classes)))
    few = [repr(name) for name, share in zip(task.classes, held.tolist(), strict=True) if share < FEW_VOTERS]
    if few:
        what = (
            f"clients that have enough samples of a class to vote for it at once hold less than"
            f" {FEW_VOTERS:.0%} of these classes: {', '.join(few)}"
        )
        yield Finding("warning", f"arm {arm.name!r}", what, "take levels_first out of this arm")


def _ready(method: str, experiment: Experiment, task: Task) -> ReadyArm | None:
    """Return an arm of this method with the experiment's models, or None if it could not be run."""
    arm = Arm(method=method, name=method, models=experiment.models, train=experiment.train)
    try:
        ready = ReadyArm.of(arm, experiment, task)
    except ExperimentError:
        return None
    return None if examine_arm(ready) else ready

"""What `doctor` says of data on which accuracy misleads, and of sites too small to be tested."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from fedistill.data.task import Labelled, Task
from fedistill.experiment.findings import Finding
from fedistill.experiment.task_checks import check_task
from fedistill.federation.arm import ReadyArm
from helpers.runs import ready

RAW: dict[str, Any] = {
    "rounds": 1,
    "task": {"name": "digits", "clients": 3, "limit": 90},
    "models": {"clients": ["mlp-s"], "server": "mlp-s"},
    "arms": [{"method": "fedavg"}],
}


def with_zeros(arm: ReadyArm, zeros: int) -> Task:
    """The arm's task, of whose hundred test samples so many are of class 0."""
    labels = torch.tensor([0] * zeros + [1] * (100 - zeros))
    # Samples of any kind can be sliced, which their type does not say.
    return replace(arm.task, test=Labelled(arm.task.test.samples[:100], labels))  # type: ignore[index]  # images


def about(findings: list[Finding], word: str) -> list[str]:
    return [str(finding) for finding in findings if word in finding.what]


@pytest.mark.parametrize(
    ("zeros", "metrics", "said"),
    [
        (90, ["accuracy"], False),
        (95, ["accuracy"], True),
        (95, ["accuracy", "log-loss"], True),
        (95, ["accuracy", "macro-f1"], False),
        (95, ["balanced-accuracy"], False),
    ],
)
def test_one_class_above_nine_tenths_is_warned_of(zeros: int, metrics: list[str], said: bool) -> None:
    _, arm = ready({**RAW, "evaluate": {"metrics": metrics}})
    found = about(check_task(with_zeros(arm, zeros), [arm]), "always names it")
    listed = ", ".join(f'"{name}"' for name in [*metrics, "balanced-accuracy"])
    assert (
        found
        == [
            "task: 95.0% of the test samples are of class '0', and whoever always names it is as accurate as"
            f" that: set evaluate.metrics = [{listed}] and look at that"
        ]
        * said
    )


def test_sites_too_small_to_hold_out_anything_are_named() -> None:
    lists = {"north": list(range(40)), "south": list(range(40, 80)), "west": [80, 81, 82]}
    partition = {"kind": "indices", "clients": lists}
    task = {"name": "digits", "partition": partition, "own_test_share": 0.1}
    _, arm = ready({**RAW, "task": task})
    small = next(held for held in arm.task.own_tests if not len(held))
    assert len(small) == 0
    findings = [finding for finding in check_task(arm.task, [arm]) if finding.where == "task.own_test_share"]
    fact, warning = findings
    sizes = sorted(filter(None, map(len, arm.task.own_tests)))
    assert fact.what.startswith("2 of 3 clients hold out ")
    assert str(sizes[-1]) in fact.what
    left = len(arm.task.clients[2])
    assert warning.level == "warning"
    assert warning.what == f"too few samples to hold out any: 'west' ({left}); the views @own leave them out"
    _, without = ready(RAW)
    assert not about(check_task(without.task, [without]), "hold out")

"""Experiments with one arm, run inside the test's own process."""

from typing import Any

from fedistill import parse
from fedistill.config.schema import Experiment
from fedistill.experiment.runner import prepare
from fedistill.federation.arm import ReadyArm
from fedistill.federation.history import ArmRun
from fedistill.federation.local_executor import SerialExecutor
from fedistill.methods.base import Method
from fedistill.methods.registry import AnyMethod
from fedistill.testing.runs import finish


def ready(raw: dict[str, Any]) -> tuple[Experiment, ReadyArm]:
    """The experiment of these tables, and its only arm with the task built."""
    experiment = parse(raw, "test")
    _, (arm,) = prepare(experiment)
    return experiment, arm


def run_serially(experiment: Experiment, arm: ReadyArm) -> ArmRun:
    """All rounds of an arm in this process."""
    with SerialExecutor(experiment, arm.task) as executor:
        return finish(arm, executor)


def finished(raw: dict[str, Any]) -> tuple[ReadyArm, ArmRun]:
    """The only arm of these tables, and its run after the last round."""
    experiment, arm = ready(raw)
    return arm, run_serially(experiment, arm)


def on_digits(*arms: dict[str, Any], clients: int = 3, **more: Any) -> Experiment:
    """Five rounds of these arms on digits, in one process; ``more`` replaces whole tables."""
    raw: dict[str, Any] = {
        "rounds": 5,
        "task": {"name": "digits", "clients": clients, "limit": 120, "public": 40},
        "models": {"clients": ["cnn-s"], "server": "cnn-s"},
        "train": {"batch_size": 16},
        "runtime": {"kind": "serial"},
        "arms": list(arms),
    }
    return parse({**raw, **more}, "test")


def views_of(method: AnyMethod) -> set[str]:
    """Return the views that a method's models have."""
    at_server = method.has_server_model or type(method).server_eval_models is not Method.server_eval_models
    expected = {"server@global"} if at_server else set()
    return expected | ({"client@global", "client@own"} if method.has_client_models else set())

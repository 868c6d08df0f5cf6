"""Experiments with one arm, run inside the test's own process."""

from typing import Any

from fedistill import parse
from fedistill.communication.protocol.shared_state import dump_states
from fedistill.config.schema import Experiment
from fedistill.experiment.runner import prepare
from fedistill.federation.arm import ReadyArm, start_run
from fedistill.federation.executor import Executor
from fedistill.federation.history import ArmRun
from fedistill.federation.local_executor import SerialExecutor
from fedistill.federation.round import play_round
from fedistill.state import encode_state


def ready(raw: dict[str, Any]) -> tuple[Experiment, ReadyArm]:
    """The experiment of these tables, and its only arm with the task built."""
    experiment = parse(raw, "test")
    _, (arm,) = prepare(experiment)
    return experiment, arm


def finish(arm: ReadyArm, executor: Executor, run: ArmRun | None = None) -> ArmRun:
    """All rounds of an arm, or those that a run still lacks."""
    run = start_run(arm) if run is None else run
    while run.round < arm.rounds:
        play_round(run, arm, executor)
    return run


def run_serially(experiment: Experiment, arm: ReadyArm) -> ArmRun:
    """All rounds of an arm in this process."""
    with SerialExecutor(experiment, arm.task) as executor:
        return finish(arm, executor)


def finished(raw: dict[str, Any]) -> tuple[ReadyArm, ArmRun]:
    """The only arm of these tables, and its run after the last round."""
    experiment, arm = ready(raw)
    return arm, run_serially(experiment, arm)


def bits(run: ArmRun) -> tuple[Any, ...]:
    """All of a run that must not depend on where, when or how often it was run."""
    return (
        encode_state(run.server),
        run.clients,
        encode_state(dump_states(run.shared_states)),
        run.ledger,
        [record.views for record in run.records],
        [(record.clients, record.dropped) for record in run.records],
    )

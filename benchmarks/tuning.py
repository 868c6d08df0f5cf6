"""Tunes the one arm of an experiment, as `fedistill tune` does, before a benchmark measures it."""

from pathlib import Path
from typing import Any

from fedistill.config.inputs import InputKind
from fedistill.config.schema import Experiment
from fedistill.experiment.progress import Logged
from fedistill.studies.goal import Goal, TunedArm
from fedistill.studies.search_space import changed, search_space
from fedistill.studies.tune import Plan, tune


def tune_alone(experiment: Experiment, plan: Plan, folder: Path, command: str, kind: InputKind) -> TunedArm:
    """Return the arm's trials and the best of them; trials that the folder has are not run again.

    Args:
        plan: settings in its ``vary`` that the arm does not have are left out.
    """
    known = search_space(experiment.arms[0], kind, plan.vary)
    vary = {key: values for key, values in plan.vary.items() if key in known}
    asked = Plan(plan.trials, plan.rounds, plan.seed, plan.goal, plan.arms, vary)
    (tuned,) = tune(experiment, asked, folder, command, Logged())
    return tuned


def with_settings(experiment: Experiment, tuned: TunedArm, kind: InputKind) -> Experiment:
    """Return the experiment with the best settings of its arm."""
    best = changed(experiment.arms[0], settings_of(tuned), kind)
    return experiment.model_copy(update={"arms": [best]})


def settings_of(tuned: TunedArm) -> dict[str, Any]:
    """Return the best settings; none where no trial has ended well."""
    return tuned.best["settings"] if tuned.best else {}


def tuning_of(tuned: TunedArm) -> dict[str, Any]:
    """Return how many trials an arm had, and the validation accuracy of its own and of its best settings."""
    goal = Goal()
    return {
        "trials": len(tuned.trials),
        "rounds": max(len(trial["result"]["rounds"]) for trial in tuned.trials),
        "own": goal.value(tuned.trials[0]),
        "best": None if tuned.best is None else goal.value(tuned.best),
    }

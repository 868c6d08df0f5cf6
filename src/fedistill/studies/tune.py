"""Tunes the arms of an experiment: the same number of trials each, on a validation part of the training set.

The test set is not read. A trial plays an arm with some of its settings changed (`search_space`) for a few
rounds in the round loop of every run. The best trial of an arm is chosen by `Goal`.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path

from fedistill.config.schema import Arm, Experiment
from fedistill.config.section import RawTable
from fedistill.data.build import build_task
from fedistill.data.task import Task
from fedistill.errors import ExperimentError, TrainingError, nearest
from fedistill.experiment.changes import FREE_TABLES, rounding
from fedistill.experiment.findings import raise_errors
from fedistill.experiment.folder_lock import alone_in
from fedistill.experiment.measure import ACCURACY
from fedistill.experiment.preflight import examine, examine_arm
from fedistill.experiment.progress import Watcher
from fedistill.experiment.results import ArmJson
from fedistill.experiment.summary import arm_json
from fedistill.federation import local_executor
from fedistill.federation.arm import ReadyArm, resolve_arm
from fedistill.federation.client_states import ClientStates
from fedistill.federation.executor import check_main_guard
from fedistill.federation.history import ArmRun
from fedistill.federation.ledger import Ledger
from fedistill.federation.metrics import find_metrics
from fedistill.federation.round import play_round
from fedistill.federation.setup import start_run
from fedistill.state import write_file
from fedistill.studies.goal import Goal, TunedArm
from fedistill.studies.search_space import Settings, Space, Values, changed, propose, search_space, size
from fedistill.studies.tuned_file import tuned_toml
from fedistill.studies.tuning_folder import Trial, TuningFolder
from fedistill.training.devices import find_device

DEFAULT_TRIALS, DEFAULT_ROUNDS = 12, 8
_PACKAGES = ("fedistill", "torch")


@dataclass(frozen=True)
class Plan:
    """How to tune.

    Attributes:
        trials: of each arm, its own settings included.
        rounds: of each trial; by default 8, or those of the experiment if they are fewer.
        seed: of the search; data and training have the experiment's.
        arms: names of the arms to tune; by default, all.
        vary: as in `search_space`.
    """

    trials: int = DEFAULT_TRIALS
    rounds: int | None = None
    seed: int = 0
    goal: Goal = field(default_factory=Goal)
    arms: Sequence[str] = ()
    vary: Mapping[str, Values | None] = field(default_factory=dict)


def tune(
    experiment: Experiment,
    plan: Plan,
    path: Path,
    command: str,
    watcher: Watcher,
    shown: Callable[[Trial, int], None] = lambda trial, trials: None,
) -> list[TunedArm]:
    """Tune arms and write the folder; finished trials that are in it are not run again.

    Args:
        command: what was typed, for the tuned file.
        watcher: receives the findings about the experiment.
        shown: receives each trial that has been run, and the number of trials of its arm.

    Returns:
        The arms that have been tuned, in the order of the experiment.

    Raises:
        ExperimentError: the experiment, the plan or the folder is wrong.
        RuntimeFailure: the machine failed; the tuning can be continued.
        KeyboardInterrupt: the user stopped it; the tuning can be continued.
    """
    check_main_guard()
    chosen = _chosen(experiment, plan.arms)
    find_metrics(experiment.evaluate.metrics)  # before data are loaded, which may take minutes
    for arm in chosen:
        resolve_arm(arm)
    task = build_task(experiment.task, experiment.seed, validation=True, scratch=path)
    data, rounds = task.signature.kind, plan.rounds or min(DEFAULT_ROUNDS, experiment.rounds)
    short = experiment.model_copy(update={"rounds": rounds})
    spaces = {arm.name: search_space(arm, data, plan.vary) for arm in experiment.arms}
    _check_vary(chosen, spaces, plan.vary, short, task)
    ready = [ReadyArm.of(arm, short, task) for arm in chosen]
    findings = examine(short, task, ready)
    watcher.findings(findings)
    raise_errors(findings)
    goal = plan.goal
    stops_at: RawTable | None = None
    if goal.target is not None:
        stops_at = {"target": goal.target, "view": goal.view}
        if goal.measure != ACCURACY:
            stops_at["metric"] = goal.measure.name
    heading = _heading(plan, rounds, len(task.test), command)
    with alone_in(path):
        folder = TuningFolder(path, _asked(short, task, plan.seed, spaces), stops_at)
        for arm in chosen:
            for trial in _new_trials(short, arm, spaces[arm.name], plan, task, folder):
                shown(trial, min(plan.trials, size(spaces[arm.name])))
            arms = [_tuned(arm, plan, folder) for arm in experiment.arms]
            write_file(folder.tuned, tuned_toml(experiment, arms, plan.goal, data, heading).encode())
        return [_tuned(arm, plan, folder) for arm in chosen]


def _new_trials(
    experiment: Experiment, arm: Arm, space: Space, plan: Plan, task: Task, folder: TuningFolder
) -> Iterator[Trial]:
    """Run and keep the trials that an arm still lacks; yield each."""
    while len(before := folder.trials(arm.name)) < plan.trials:
        tried, best = [trial["settings"] for trial in before], plan.goal.best(before)
        settings = propose(space, tried, best and best["settings"], plan.seed, arm.name)
        if settings is None:
            return
        started = time.perf_counter()
        goal = plan.goal if folder.stops_at else Goal()  # without a target, all rounds are run
        result = _play(experiment, arm, settings, task, partial(goal.decided, best=best))
        trial: Trial = {
            "arm": arm.name,
            "trial": len(before) + 1,
            "settings": settings,
            "seconds": round(time.perf_counter() - started, 1),
            "result": result,
        }
        folder.append(trial)
        yield trial


def _tuned(arm: Arm, plan: Plan, folder: TuningFolder) -> TunedArm:
    # The folder may have more: with a larger number of trials for some arms, they would be at an advantage.
    trials = folder.trials(arm.name)[: plan.trials]
    return TunedArm(arm.name, trials, plan.goal.best(trials))


def _heading(plan: Plan, rounds: int, samples: int, command: str) -> tuple[str, str]:
    versions = " and ".join(f"{name} {version(name)}" for name in _PACKAGES)
    budget = f"{_count(plan.trials, 'trial')} of {_count(rounds, 'round')} for each arm"
    return (
        f"Made by: {command}",
        f"With {versions}: {budget}, search seed {plan.seed}. The best have {plan.goal}, on"
        f" {samples:,} samples of the training set that no client has.",
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _chosen(experiment: Experiment, names: Sequence[str]) -> list[Arm]:
    known = [arm.name for arm in experiment.arms]
    for name in names:
        if name not in known:
            raise ExperimentError(f"--arm {name}: the arms are {', '.join(known)}.{nearest(name, known)}")
    return [arm for arm in experiment.arms if not names or arm.name in names]


def _check_vary(
    chosen: Sequence[Arm],
    spaces: Mapping[str, Space],
    vary: Mapping[str, Values | None],
    experiment: Experiment,
    task: Task,
) -> None:
    """Check that each setting to vary is one of some arm, and that its arms can have its values."""
    data = task.signature.kind
    for key, values in vary.items():
        having = [arm for arm in chosen if key in spaces[arm.name]]
        for arm in having if values else []:
            for value in spaces[arm.name][key][1:]:
                ready = ReadyArm.of(changed(arm, {key: value}, data), experiment, task)
                raise_errors(examine_arm(ready))
        if not having:
            known = list(dict.fromkeys(key for arm in chosen for key in search_space(arm, data, {})))
            raise ExperimentError(
                f"--vary {key}: no arm has a setting of this name with another value to try; by default,"
                f" these are varied: {', '.join(known)}.{nearest(key, known)}"
            )


def _asked(experiment: Experiment, task: Task, seed: int, spaces: Mapping[str, Space]) -> RawTable:
    """Return all that trials depend on."""
    rest = {"rounds", *FREE_TABLES}  # these change no trial, but for the device and `rounding`
    device = find_device(experiment.runtime.device).type
    return {
        "experiment": experiment.model_dump(mode="json", exclude_none=True, exclude=rest),
        "data": task.fingerprint(),
        "rounds": experiment.rounds,
        "seed": seed,
        "search space": spaces,
        "versions": {name: version(name) for name in _PACKAGES},
        **({} if device == "cpu" else {"device": device}),
        **rounding(experiment.runtime),
    }


def _play(
    experiment: Experiment,
    arm: Arm,
    settings: Settings,
    task: Task,
    decided: Callable[[ArmJson], bool],
) -> ArmJson:
    """Run a trial; one that cannot start, or breaks off, has the status ``failed``.

    Args:
        decided: receives the result so far; if true, the rounds that are left are not run.

    Raises:
        RuntimeFailure: the machine failed.
    """
    ready, run = ReadyArm.of(arm, experiment, task), ArmRun(0, None, ClientStates(), Ledger())
    try:
        tried = changed(arm, settings, task.signature.kind)
        ready = ReadyArm.of(tried, experiment, task)
        raise_errors(examine_arm(ready))
    except ExperimentError as error:  # each value is valid, but not all of them together
        return arm_json(ready, run, "failed", str(error))
    alone = experiment.model_copy(update={"arms": [tried]})
    try:
        run = start_run(ready)
        with local_executor.start_executor(alone, task) as executor:
            while run.round < ready.rounds and not decided(arm_json(ready, run, "done", None)):
                play_round(run, ready, executor)
    except TrainingError as error:
        return arm_json(ready, run, "failed", str(error))
    return arm_json(ready, run, "done", None)

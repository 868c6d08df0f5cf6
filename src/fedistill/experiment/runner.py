"""Runs all arms of an experiment with one seed and writes the folder of the run.

`fedistill.experiment.seeds` runs an experiment of one seed or of several.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from fedistill.attacks.registry import attack_of
from fedistill.config.hf import is_hf
from fedistill.config.inputs import InputKind
from fedistill.config.partitions import Iid, Natural, Partition
from fedistill.config.schema import Arm, Experiment
from fedistill.data.build import build_task
from fedistill.data.task import Task
from fedistill.errors import ExperimentError, MissingMainGuard, RuntimeFailure, TrainingError, nearest
from fedistill.experiment.callbacks import NO_CALLBACKS, Callbacks
from fedistill.experiment.changes import check_changes
from fedistill.experiment.findings import Finding, raise_errors
from fedistill.experiment.folder_lock import alone_in
from fedistill.experiment.preflight import examine
from fedistill.experiment.progress import Watcher
from fedistill.experiment.report import write_results
from fedistill.experiment.results import ArmJson, ResultsJson, Status
from fedistill.experiment.run_folder import RunFolder
from fedistill.experiment.saved_models import save_models
from fedistill.experiment.summary import arm_json, results_json
from fedistill.federation import local_executor
from fedistill.federation.arm import ReadyArm, resolve_arm, settle_arm
from fedistill.federation.client_states import ClientStates
from fedistill.federation.executor import Executor, check_main_guard
from fedistill.federation.history import ArmRun
from fedistill.federation.ledger import Ledger
from fedistill.federation.metrics import find_metrics
from fedistill.federation.round import play_round
from fedistill.methods.registry import create_method
from fedistill.models.huggingface.folder import digest_of
from fedistill.models.saved_start import start_digest
from fedistill.privacy.registry import NONE
from fedistill.training.devices import find_device


def prepare(experiment: Experiment, out: Path | None = None) -> tuple[Task, list[ReadyArm]]:
    """Build the task and make all arms ready.

    Args:
        out: the folder of the run, which need not exist: samples lie on its disk, in a file without a name;
            default: in the system's folder for temporary files.

    Raises:
        ExperimentError: the data cannot be loaded, an arm does not fit them, or the device is not there.
        RuntimeFailure: the disk is full or fails.
    """
    find_device(experiment.runtime.device)  # before data are loaded, which may take minutes
    find_metrics(experiment.evaluate.metrics)
    attack_of(experiment)
    for arm in experiment.arms:
        resolve_arm(arm)
    task = build_task(experiment.task, experiment.seed, scratch=out)
    return task, [ReadyArm.of(arm, experiment, task) for arm in experiment.arms]


def resolve(experiment: Experiment, task: Task) -> Experiment:
    """Return the experiment with what it leaves open written out, as it is chosen for this task."""
    partition = Natural() if task.client_names else Iid()
    runtime = experiment.runtime.model_copy(update={"device": find_device(experiment.runtime.device).type})
    settled = settle(experiment, task.signature.kind, len(task.clients), partition)
    arms = [_with_noise(arm, settled, task) for arm in settled.arms]
    return settled.model_copy(update={"runtime": runtime, "arms": arms})


def _with_noise(arm: Arm, experiment: Experiment, task: Task) -> Arm:
    """Return the arm with all settings of its privacy, so that the noise for a budget is found only once."""
    if arm.privacy is None:
        return arm
    mechanism = ReadyArm.of(arm, experiment, task).mechanism
    table = {"kind": NONE} if mechanism is None else mechanism.model_dump(exclude_none=True)
    return arm.model_copy(update={"privacy": table})


def settle(experiment: Experiment, data: InputKind, clients: int, partition: Partition) -> Experiment:
    """Return the experiment with what it leaves open written out: what suits the data, and these.

    Raises:
        ExperimentError: the method, a codec, or a setting of one is unknown.
    """
    partition = experiment.task.partition or partition
    share = experiment.task.own_test_share
    if isinstance(partition, Natural):
        share = experiment.task.own_share(partition)
    task = experiment.task.model_copy(
        update={"clients": clients, "partition": partition, "own_test_share": share}
    )
    arms = [_with_digests(settle_arm(arm, data)) for arm in experiment.arms]
    train = experiment.train.written_out(data)
    attack = attack_of(experiment)
    table = None if attack is None else attack.model_dump(exclude_none=True)
    return experiment.model_copy(update={"task": task, "train": train, "attack": table, "arms": arms})


def _with_digests(arm: Arm) -> Arm:
    """Return the arm with the digests of the saved model that it starts from and of its pretrained models."""
    found: dict[str, str | dict[str, str]] = {}
    if arm.models.start is not None:
        found["start_digest"] = start_digest(arm.models.start)
    names = (*arm.models.clients, arm.models.server, *create_method(arm).frozen_models)
    if pretrained := [name for name in dict.fromkeys(names) if is_hf(name)]:
        found["hf_digests"] = {name: digest_of(name) for name in pretrained}
    return arm.model_copy(update={"models": arm.models.model_copy(update=found)}) if found else arm


def select_arm(experiment: Experiment, name: str) -> Experiment:
    """Return the experiment with only one of its arms.

    Raises:
        ExperimentError: there is no such arm.
    """
    arms = [arm for arm in experiment.arms if arm.name == name]
    if not arms:
        known = [arm.name for arm in experiment.arms]
        raise ExperimentError(f"--arm {name}: the arms are {', '.join(known)}.{nearest(name, known)}")
    return experiment.model_copy(update={"arms": arms})


StartExecutor = Callable[[Experiment, Task], Executor]


def run_experiment(
    experiment: Experiment,
    out: Path,
    command: str,
    watcher: Watcher,
    start: StartExecutor = local_executor.start_executor,
    callbacks: Callbacks = NO_CALLBACKS,
) -> ResultsJson:
    """Run every arm of an experiment with one seed from the start; return the results.

    Raises:
        ExperimentError: the experiment or the folder is wrong; nothing was written.
        RuntimeFailure: the machine or a callback failed; the run can be resumed.
        KeyboardInterrupt: the user stopped it; the run can be resumed.
    """
    assert experiment.seeds is None
    check_main_guard()
    RunFolder.check_free(out)
    task, arms = prepare(experiment, out)
    findings = examine(experiment, task, arms)
    watcher.findings(findings)
    raise_errors(findings)
    experiment = resolve(experiment, task)
    with alone_in(out):
        folder = RunFolder.create(out, experiment, command)
        folder.append({"event": "task", "fingerprint": task.fingerprint(), "kind": task.signature.kind})
        callbacks.run_start(out, experiment, resumed=False)
        try:
            return _play(folder, experiment, task, arms, watcher, start, callbacks)
        except MissingMainGuard:
            folder.discard()
            raise


def resume_experiment(
    path: Path,
    watcher: Watcher,
    start: StartExecutor = local_executor.start_executor,
    callbacks: Callbacks = NO_CALLBACKS,
) -> ResultsJson:
    """Resume a run after the last complete round of each arm, bit-identically; return the results.

    Raises:
        ExperimentError: there is no run in the folder, another process plays in it, it was run on a network
            and would be resumed without one, its experiment or its data have changed, or it is damaged;
            nothing was written.
        RuntimeFailure, KeyboardInterrupt: as `run_experiment`.
    """
    check_main_guard()
    folder = RunFolder.open(path)
    with alone_in(path):
        if start is local_executor.start_executor:
            check_local(folder)
        experiment = folder.experiment()
        before = folder.began_with()
        changed = before is not None and check_changes(before, experiment, folder.path / "experiment.toml")
        task, arms = prepare(experiment, path)
        check_data(folder, task)
        if changed:
            findings = examine(experiment, task, arms)
            watcher.findings(findings)
            raise_errors(findings)
            experiment = resolve(experiment, task)
        goes_on: Literal["resumed", "changed"] = "changed" if changed else "resumed"
        return _play(folder, experiment, task, arms, watcher, start, callbacks, goes_on)


def check_data(folder: RunFolder, task: Task) -> None:
    """Raise `ExperimentError` if a task's data are not those that the run in the folder began with."""
    before = [event["fingerprint"] for event in folder.events() if event["event"] == "task"]
    if before and before[0] != task.fingerprint():
        raise ExperimentError(
            f"{folder.path}: the data of task {task.name!r} are not those that the run began with; restore"
            " them, or start a new run"
        )


def check_local(folder: RunFolder) -> None:
    """Raise `ExperimentError` if the clients' states are not in the folder, but at nodes of a network."""
    if folder.on_network:
        raise ExperimentError(
            f"{folder.path} was run on a network, whose clients keep their own states: resume it with:"
            f" {folder.resume_command()}"
        )


def _play(
    folder: RunFolder,
    experiment: Experiment,
    task: Task,
    arms: list[ReadyArm],
    watcher: Watcher,
    start: StartExecutor,
    callbacks: Callbacks,
    goes_on: Literal["resumed", "changed"] | None = None,
) -> ResultsJson:
    runs: dict[str, ArmRun] = {}
    broken: dict[str, TrainingError] = {}
    errors: dict[str, str] = {}
    damage: list[Finding] = []
    for arm in arms:

        def warn(what: str, where: str = f"arm {arm.name}") -> None:
            damage.append(Finding("warning", where, what))

        try:
            runs[arm.name] = folder.restore(arm, warn)
        except TrainingError as error:
            runs[arm.name], broken[arm.name] = ArmRun(0, None, ClientStates(), Ledger()), error
    if goes_on is not None:
        watcher.findings(damage)
        folder.go_on(experiment, {name: run.round for name, run in runs.items()}, goes_on)
        callbacks.run_start(folder.path, experiment, resumed=True)
    try:
        with start(experiment, task) as executor:
            for arm in arms:
                run = runs[arm.name]
                before = run.round
                watcher.arm(arm.name, arm.rounds, run.round)
                try:
                    if arm.name in broken:
                        raise broken[arm.name]
                    while run.round < arm.rounds:
                        record = play_round(run, arm, executor)
                        folder.add_round(arm, run)
                        if run.round % experiment.checkpoint.every == 0:
                            folder.save(arm, run)
                        watcher.round(arm.name, record)
                        callbacks.round_end(arm, run, record)
                except TrainingError as error:
                    errors[arm.name] = str(error)
                    folder.append({"event": "failed", "arm": arm.name, "error": str(error)})
                    watcher.failed(arm.name, str(error))
                folder.save(arm, run)
                save_models(folder, experiment, arm, run)
                if run.round > before or arm.name in errors:
                    callbacks.arm_end(arm, describe_arm(arm, run, errors))
    except (KeyboardInterrupt, RuntimeFailure):
        for arm in arms:
            with suppress(RuntimeFailure):  # what has stopped the run comes first
                folder.save(arm, runs[arm.name])
        results = _finish(folder, experiment, task, arms, runs, errors)
        for arm in arms:
            if runs[arm.name].round < arm.rounds:
                save_models(folder, experiment, arm, runs[arm.name])
        with suppress(RuntimeFailure):
            callbacks.run_end(results)
        raise
    results = _finish(folder, experiment, task, arms, runs, errors)
    callbacks.run_end(results)
    return results


def _finish(
    folder: RunFolder,
    experiment: Experiment,
    task: Task,
    arms: list[ReadyArm],
    runs: dict[str, ArmRun],
    errors: dict[str, str],
) -> ResultsJson:
    described = [describe_arm(arm, runs[arm.name], errors) for arm in arms]
    device = find_device(experiment.runtime.device)
    content = results_json(folder.command(), task, described, experiment.evaluate, arms[0].metrics, device)
    write_results(folder, experiment, content)
    return content


def describe_arm(arm: ReadyArm, run: ArmRun, errors: dict[str, str]) -> ArmJson:
    """Return an arm as it stands; ``errors`` are those of the arms that have failed, by name."""
    status: Status = "done" if run.round == arm.rounds else "stopped"
    if arm.name in errors:
        status = "failed"
    return arm_json(arm, run, status, errors.get(arm.name))

"""Runs an experiment as ``fedistill compare`` does: once, or with each of several seeds.

With several, each seed is a complete run of its own, in a folder of its own (`run_folder`): what it does is
what the experiment with that ``seed`` alone does, bit for bit.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from fedistill.config.schema import Experiment
from fedistill.config.toml import to_toml
from fedistill.data.task import Task
from fedistill.errors import ExperimentError, MissingMainGuard, RuntimeFailure
from fedistill.experiment.callbacks import NO_CALLBACKS, Callbacks
from fedistill.experiment.changes import check_changes
from fedistill.experiment.findings import Finding, raise_errors
from fedistill.experiment.folder_lock import alone_in
from fedistill.experiment.preflight import examine
from fedistill.experiment.progress import Prefixed, Watcher
from fedistill.experiment.report import write_results
from fedistill.experiment.results import AnyResultsJson, ResultsJson, ResultsOfSeedsJson
from fedistill.experiment.run_folder import RunFolder, read_results
from fedistill.experiment.runner import check_local, prepare, resolve, resume_experiment, run_experiment
from fedistill.experiment.summary import results_of_seeds
from fedistill.federation.arm import ReadyArm
from fedistill.federation.executor import check_main_guard
from fedistill.state import write_file

RunOne = Callable[[Experiment, Path, str, Watcher], ResultsJson]
"""Runs an experiment with one seed from the start."""
ResumeOne = Callable[[Path, Watcher], ResultsJson]
"""Resumes such a run."""


def run_seeds(
    experiment: Experiment,
    out: Path,
    command: str,
    watcher: Watcher,
    run: RunOne | None = None,
    callbacks: Callbacks = NO_CALLBACKS,
) -> AnyResultsJson:
    """Run every arm with every seed from the start; return the results.

    Args:
        run: runs one seed; by default here, which tells the callbacks.

    Raises:
        ExperimentError: the experiment or the folder is wrong; nothing was written.
        RuntimeFailure: the machine or a callback failed; the run can be resumed.
        KeyboardInterrupt: the user stopped it; the run can be resumed.
    """
    if experiment.seeds is None:
        one = run or partial(run_experiment, callbacks=callbacks)
        return one(experiment, out, command, watcher)
    check_main_guard()
    RunFolder.check_free(out)
    experiment, findings = examine_seeds(experiment, out=out)
    watcher.findings(findings)
    raise_errors(findings)
    with alone_in(out):
        folder = RunFolder.create(out, experiment, command)
        callbacks.run_start(out, experiment, resumed=False)
        one = run or partial(run_experiment, callbacks=callbacks.of_seed())
        return _play(folder, experiment, watcher, one, None, callbacks)


def resume_seeds(
    path: Path,
    watcher: Watcher,
    run: RunOne | None = None,
    resume: ResumeOne | None = None,
    callbacks: Callbacks = NO_CALLBACKS,
) -> AnyResultsJson:
    """Resume a run after its last complete round, bit-identically; return the results.

    Seeds that are done are left as they are.

    Args:
        run, resume: run and resume one seed; by default here, which tells the callbacks.

    Raises:
        ExperimentError, RuntimeFailure, KeyboardInterrupt: as `runner.resume_experiment`.
    """
    folder = RunFolder.open(path)
    experiment = folder.experiment()
    if experiment.seeds is None:
        one = resume or partial(resume_experiment, callbacks=callbacks)
        return one(path, watcher)
    check_main_guard()
    if resume is None:
        check_local(folder)
    with alone_in(path):
        before = folder.began_with()
        if before is not None and check_changes(before, experiment, path / "experiment.toml"):
            experiment, findings = examine_seeds(experiment, out=path)
            watcher.findings(findings)
            raise_errors(findings)
            folder.go_on(experiment, {}, "changed")
        else:
            folder.go_on(experiment, {}, "resumed")
        callbacks.run_start(path, experiment, resumed=True)
        told = callbacks.of_seed()
        run = run or partial(run_experiment, callbacks=told)
        resume = resume or partial(resume_experiment, callbacks=told)
        return _play(folder, experiment, watcher, run, resume, callbacks)


Check = Callable[[Experiment, Task, Sequence[ReadyArm]], list[Finding]]


def examine_seeds(
    experiment: Experiment, check: Check = examine, out: Path | None = None
) -> tuple[Experiment, list[Finding]]:
    """Check an experiment with each of its seeds; ``out`` is for `runner.prepare`.

    Returns:
        The experiment with what it leaves open written out, and the findings. One that not all seeds have
        names those that have it.

    Raises:
        ExperimentError: the data cannot be loaded, or an arm does not fit them.
    """
    seeds = experiment.all_seeds
    seeds_by_finding: dict[Finding, list[int]] = {}
    resolved: list[Experiment] = []
    for seed in seeds:
        one = experiment.with_seed(seed)
        try:
            task, arms = prepare(one, out)
        except ExperimentError as error:
            raise ExperimentError(str(error) if seed == seeds[0] else f"seed {seed}: {error}") from None
        for finding in check(one, task, arms):
            seeds_by_finding.setdefault(finding, []).append(seed)
        resolved.append(resolve(one, task))
    findings = [
        finding if having == seeds else replace(finding, where=f"{finding.where}, {_named(having)}")
        for finding, having in seeds_by_finding.items()
    ]
    return _resolved_alike(experiment, resolved), findings


def _resolved_alike(asked: Experiment, resolved: Sequence[Experiment]) -> Experiment:
    """Return what seeds share of what is written out for each: how many sites have samples may differ."""
    first, task = resolved[0], resolved[0].task
    if any(one.task.clients != task.clients for one in resolved):
        task = task.model_copy(update={"clients": asked.task.clients})
    seeds = None if asked.seeds is None else asked.all_seeds
    return first.model_copy(update={"seeds": seeds, "task": task})


def _named(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _play(
    folder: RunFolder,
    experiment: Experiment,
    watcher: Watcher,
    run: RunOne,
    resume: ResumeOne | None,
    callbacks: Callbacks,
) -> ResultsOfSeedsJson:
    """Run the seeds one after the other, or resume those that have begun."""
    command = folder.command()
    for seed in experiment.all_seeds:
        one, place, named = (
            experiment.with_seed(seed),
            folder.of_seed(seed),
            Prefixed(watcher, f"seed {seed}: "),
        )
        try:
            if resume is None or not place.begun:
                folder.append({"event": "seed", "seed": seed, "folder": place.path.name})
                run(one, place.path, command, named)
            elif not _is_done(place, one):
                # What may be changed before a run is resumed is changed in the file above.
                write_file(place.path / "experiment.toml", to_toml(one).encode())
                resume(place.path, named)
        except MissingMainGuard:
            folder.discard()
            raise
        except (KeyboardInterrupt, RuntimeFailure):
            results = _write(folder, experiment)
            if results is not None:
                with suppress(RuntimeFailure):  # what has stopped the run comes first
                    callbacks.run_end(results)
            raise
    content = _write(folder, experiment)
    assert content is not None
    callbacks.run_end(content)
    return content


def _write(folder: RunFolder, experiment: Experiment) -> ResultsOfSeedsJson | None:
    """Write the results of all seeds that have any, and return them."""
    places = {seed: folder.of_seed(seed) for seed in experiment.all_seeds}
    found = {seed: _results(place) for seed, place in places.items() if place.has_results}
    if not found:
        return None
    content = results_of_seeds(folder.command(), experiment.all_seeds, found)
    write_results(folder, experiment, content)
    return content


def _results(folder: RunFolder) -> ResultsJson:
    content = read_results(folder.path)
    assert "tasks" not in content
    return content


def _is_done(folder: RunFolder, experiment: Experiment) -> bool:
    """Whether there is nothing to resume."""
    if not folder.has_results:
        return False
    done = {
        arm["name"]
        for arm in _results(folder)["arms"]
        if arm["status"] == "done" and len(arm["rounds"]) == experiment.rounds
    }
    return done >= {arm.name for arm in experiment.arms}

"""Runs an experiment at each point of a grid, and puts the runs side by side.

The folder of a sweep::

    sweep.json     each point by name: its folder, and the experiment that it asks for
    POINT/         the complete folder of each point's run (`fedistill.experiment.run_folder`)
    report.html    the arms of all points that have run
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from fedistill.config.schema import Experiment
from fedistill.config.section import RawTable
from fedistill.config.toml import load
from fedistill.errors import ExperimentError
from fedistill.experiment.callbacks import NO_CALLBACKS, Callbacks
from fedistill.experiment.changes import rounding
from fedistill.experiment.findings import Finding, raise_errors
from fedistill.experiment.progress import Prefixed, Watcher
from fedistill.experiment.report import write_side_by_side
from fedistill.experiment.results import AnyResultsJson, of_seeds
from fedistill.experiment.run_folder import RunFolder, read_results
from fedistill.experiment.seeds import examine_seeds, resume_seeds, run_seeds
from fedistill.federation.executor import check_main_guard
from fedistill.state import write_file
from fedistill.studies.grid import GridPoint, grid_points

_CHANGES_NO_RESULT = {"runtime", "link"}


class _Kept(TypedDict):
    """A point in ``sweep.json``."""

    folder: str
    experiment: RawTable


def sweep(
    file: Path,
    overrides: Sequence[str],
    grid: Sequence[str],
    out: Path,
    command: str,
    watcher: Watcher,
    callbacks: Callbacks = NO_CALLBACKS,
) -> AnyResultsJson:
    """Run the experiment of a file at each point of a grid; return the arms of all, side by side.

    All points are checked before the first one runs. In a folder that holds a sweep, points that are done are
    left as they are, and those that have begun are resumed; a grid may have grown since.

    Args:
        overrides: ``section.key=value`` for all points.
        grid: as in `grid_points`.
        command: what was typed, for the results.
        callbacks: told of each point's run.

    Raises:
        ExperimentError: the file, the grid or the folder is wrong; nothing was run.
        RuntimeFailure: the machine or a callback failed; the sweep can be continued.
        KeyboardInterrupt: the user stopped it; the sweep can be continued.
    """
    check_main_guard()
    points = grid_points(grid)
    experiments = {point.name: load(file, [*overrides, *point.overrides]) for point in points}
    folders = {point.name: out / point.folder for point in points}
    begun = {name for name, folder in folders.items() if RunFolder(folder).begun}
    kept = _kept(out)
    asked = _asked(points, experiments)
    _check_same(out, kept, asked)
    _examine({name: one for name, one in experiments.items() if name not in begun}, out, watcher)
    write_file(out / "sweep.json", json.dumps({**kept, **asked}, indent=1).encode())
    for name, folder in folders.items():
        if _is_complete(folder, experiments[name]):
            continue
        named = Prefixed(watcher, f"{name}: ")
        if name in begun:
            resume_seeds(folder, named, callbacks=callbacks)
        else:
            run_seeds(experiments[name], folder, command, named, callbacks=callbacks)
        write_side_by_side(out / "report.html", _ended(folders))
    return write_side_by_side(out / "report.html", folders)


def _asked(points: Sequence[GridPoint], experiments: Mapping[str, Experiment]) -> dict[str, _Kept]:
    dumped = {
        name: one.model_dump(mode="json", exclude_none=True, exclude=_CHANGES_NO_RESULT)
        | ({"runtime": rounding(one.runtime)} if rounding(one.runtime) else {})
        for name, one in experiments.items()
    }
    asked: dict[str, _Kept] = {
        point.name: {"folder": point.folder, "experiment": dumped[point.name]} for point in points
    }
    return asked


def _kept(out: Path) -> dict[str, _Kept]:
    """Return the points of the sweep in a folder, none if there is no sweep yet.

    Raises:
        ExperimentError: there is something else in the folder, or the sweep's file is damaged.
    """
    RunFolder.check_free(out)
    path = out / "sweep.json"
    try:
        kept: dict[str, _Kept] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ExperimentError(f"{path}: cannot be read ({error}); choose another folder with --out") from None
    return kept


def _check_same(out: Path, kept: Mapping[str, _Kept], asked: Mapping[str, _Kept]) -> None:
    changed = [
        (name, key)
        for name, point in asked.items()
        if name in kept
        for key in sorted({*point["experiment"], *kept[name]["experiment"]})
        if point["experiment"].get(key) != kept[name]["experiment"].get(key)
    ]
    if changed:
        name, keys = changed[0][0], ", ".join(dict.fromkeys(key for _, key in changed))
        raise ExperimentError(
            f"{out} holds another sweep, whose point {name} differs in {keys}: choose another folder with"
            " --out"
        )


def _examine(experiments: Mapping[str, Experiment], out: Path, watcher: Watcher) -> None:
    """Check all points; what is found at some of them alone names them.

    Raises:
        ExperimentError: one of them cannot run.
    """
    having: dict[Finding, list[str]] = {}
    for name, experiment in experiments.items():
        try:
            _, found = examine_seeds(experiment, out=out)
        except ExperimentError as error:
            raise ExperimentError(f"{name}: {error}") from None
        for finding in found:
            having.setdefault(finding, []).append(name)
    findings = [
        finding
        if len(names) == len(experiments)
        else replace(finding, where=f"{'; '.join(names)}: {finding.where}")
        for finding, names in having.items()
    ]
    watcher.findings(findings)
    raise_errors(findings)


def _is_complete(folder: Path, experiment: Experiment) -> bool:
    """Whether each arm is done, or has failed, with each seed."""
    if not RunFolder(folder).has_results:
        return False
    seeds = [of_seeds(arm) for arm in read_results(folder)["arms"]]
    return all(
        len(each) == len(experiment.all_seeds) and all(one["status"] != "stopped" for one in each)
        for each in seeds
    )


def _ended(folders: Mapping[str, Path]) -> dict[str, Path]:
    return {name: folder for name, folder in folders.items() if RunFolder(folder).has_results}

"""The command ``fedistill tune``: options, what it shows, and how it ends."""

import shlex
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from fedistill.cli.complete import complete_arm, complete_view
from fedistill.cli.console import (
    ExperimentPath,
    Json,
    Quiet,
    Set,
    aside,
    console,
    print_json,
    print_list,
    say,
    typed_command,
)
from fedistill.errors import ExperimentError, RuntimeFailure, nearest

if TYPE_CHECKING:
    from fedistill.studies.goal import Goal, TunedArm
    from fedistill.studies.search_space import Values
    from fedistill.studies.tuning_folder import Trial


def tune_command(
    experiment: ExperimentPath,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of an arm to tune. May be repeated. Default: all arms.", autocompletion=complete_arm
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option(min=1, help="Trials of each arm; the first one has the arm's own settings.")
    ] = 12,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Rounds of each trial. Default: 8, or those of the experiment if fewer."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="The best trial is that with the fewest bytes, both ways, until it reaches this accuracy, or"
            " value of --metric. Default: that with the best one after its last round.",
        ),
    ] = None,
    view: Annotated[
        str | None,
        typer.Option(
            help="The view that counts. Default, and for arms without it: server@global, or"
            " client@global for arms without a model at the server.",
            autocompletion=complete_view,
        ),
    ] = None,
    metric: Annotated[
        str, typer.Option(help="The metric that counts, as in evaluate.metrics; measured if it is not there.")
    ] = "accuracy",
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="Vary this setting, and only those named so: KEY for its usual values, or KEY=[VALUES],"
            " such as codec.levels=[1,3]. May be repeated. Default: all settings with usual values."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search, not of the experiment.")] = 0,
    set: Set = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder; one that holds the same tuning continues it. Default: runs/EXPERIMENT-tuning-TIME."
        ),
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Tune the arms of an experiment by the same number of trials, without reading its test set."""
    from fedistill.config.toml import load
    from fedistill.experiment.measure import Measure
    from fedistill.experiment.progress import shown
    from fedistill.experiment.run_folder import default_folder
    from fedistill.federation.evaluation import VIEWS
    from fedistill.federation.metrics import find_metrics
    from fedistill.studies.goal import Goal
    from fedistill.studies.tune import Plan, tune

    if view is not None and view not in VIEWS:
        raise ExperimentError(f"--view {view}: must be one of {', '.join(VIEWS)}.{nearest(view, VIEWS)}")
    loaded = load(experiment, set or [])
    measure = Measure()
    if metric != measure.name:
        if metric not in loaded.evaluate.metrics:
            evaluate = loaded.evaluate.model_copy(update={"metrics": [*loaded.evaluate.metrics, metric]})
            loaded = loaded.model_copy(update={"evaluate": evaluate})
        found = find_metrics([metric])
        if not found:
            raise ExperimentError(f"--metric {metric}: is a matrix, by which no trial is better than another")
        measure = Measure.of(found[0])
    goal = Goal(None if target is None else measure.read_target("--target", target), view, measure)
    plan = Plan(trials, rounds, seed, goal, arm or [], _read_vary(vary or []))
    folder = out or default_folder(f"{experiment.stem}-tuning")
    command = shlex.join(["fedistill", *sys.argv[1:], *([] if out else ["--out", str(folder)])])

    def show(trial: "Trial", count: int) -> None:
        if not quiet:
            say(_line(trial, count, goal))

    try:
        with shown(aside, quiet) as watcher:
            arms = tune(loaded, plan, folder, typed_command(), watcher, show)
    except KeyboardInterrupt as stopped:
        _give_up(str(stopped) or "stopped", folder, command)
    except (RuntimeFailure, OSError) as error:
        _give_up(str(error), folder, command)
    _print_tuned(arms, goal, folder, json)
    failed = [tuned.name for tuned in arms if tuned.best is None]
    if failed:
        say(f"fedistill: all trials failed of {', '.join(failed)}: trials.jsonl has the errors")
        sys.exit(1)


def _read_vary(given: Sequence[str]) -> "dict[str, Values | None]":
    """Read settings to vary, each ``KEY`` or ``KEY=[VALUES]``.

    Raises:
        ExperimentError: the values are not a list as TOML has it, or one setting is inside another.
    """
    found: dict[str, Values | None] = {}
    for text in given:
        key, equals, written = (part.strip() for part in text.partition("="))
        try:
            values = tomllib.loads(f"values = {written}")["values"] if equals else None
        except tomllib.TOMLDecodeError:
            values = written
        if not key or not (values is None or (isinstance(values, list) and values)):
            raise ExperimentError(
                f"--vary {text}: write KEY=[VALUES], for example train.epochs=[1, 3] or"
                ' codec=["fp16", "int8"]'
            )
        found[key] = None if values is None else tuple(values)
    for key in found:
        inside = [other for other in found if other.startswith(f"{key}.")]
        if inside:
            raise ExperimentError(
                f"--vary {inside[0]}: is inside {key}, which is varied as well; leave out one"
            )
    return found


def _line(trial: "Trial", count: int, goal: "Goal") -> str:
    """Return a finished trial in one line."""
    settings = ", ".join(f"{key} = {value}" for key, value in trial["settings"].items()) or "its own settings"
    result = trial["result"]
    found = f"failed: {result['error']}" if result["status"] == "failed" else goal.describe(trial)
    return f"{trial['arm']} {trial['trial']}/{count}: {found}, {trial['seconds']:.0f} s: {settings}"


def _give_up(what: str, folder: Path, command: str) -> NoReturn:
    """End with what happened and how to continue."""
    started = (folder / "tuning.json").exists()
    say(
        f"fedistill: {what}; "
        + (f"finished trials are kept; continue with: {command}" if started else "nothing was started yet")
    )
    sys.exit(1)


def _print_tuned(arms: "Sequence[TunedArm]", goal: "Goal", folder: Path, as_json: bool) -> None:
    from fedistill.studies.tuned_file import outcome_text, settings_text

    if as_json:
        print_json(
            {
                "folder": str(folder),
                "tuned": str(folder / "tuned.toml"),
                "arms": [
                    {
                        "name": tuned.name,
                        "trials": len(tuned.trials),
                        "best": tuned.best and tuned.best["trial"],
                        "settings": tuned.best and tuned.best["settings"],
                        goal.measure.name: tuned.best and goal.value(tuned.best),
                        "bytes_to_target": tuned.best and goal.bytes_to_target(tuned.best),
                    }
                    for tuned in arms
                ],
            }
        )
        return
    rows = [
        (tuned.name, len(tuned.trials), outcome_text(tuned, goal), settings_text(tuned)) for tuned in arms
    ]
    print_list(("arm", "trials", "best", "settings"), rows, as_json=False)
    console.print(f"tuned: {folder / 'tuned.toml'}", markup=False, soft_wrap=True, highlight=False)

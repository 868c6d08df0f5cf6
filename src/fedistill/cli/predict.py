"""The command ``fedistill predict``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedistill.cli.console import Json, Quiet, print_json, say
from fedistill.errors import ExperimentError

if TYPE_CHECKING:
    from fedistill.deployment.predictions import Summary


def predict_command(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a saved model.")],
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="A table (CSV, JSON, Parquet), a folder of images, or an image."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Write here: .csv, .parquet or .json. Default: CSV on stdout."),
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="How FILE is read, as in an experiment: task.input=COLUMN, task.label, task.separator,"
            " task.encoding, task.format and others. May be repeated.",
        ),
    ] = None,
    modules: Annotated[
        str, typer.Option(help="Modules that a model of your own may be imported from, separated by commas.")
    ] = "",
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Classify samples by a saved model: the class of each and the probabilities of all classes."""
    from fedistill.config.toml import settings_of
    from fedistill.deployment.classifier import load_model
    from fedistill.deployment.predictions import check_ending, predict_file

    settings = settings_of(set or [])
    task = settings.pop("task", {})
    if settings or not isinstance(task, dict):
        raise ExperimentError("--set: only settings of task can be set here, for example task.input=COLUMN")
    if out is not None:
        check_ending(out)
    loaded = load_model(model, modules=[name for name in modules.split(",") if name.strip()])
    found = predict_file(loaded, file, task)
    if not quiet:
        say(_in_words(found.summary()))
    if out is not None:
        found.write(out)
    if json:
        print_json(found.summary() if out else found.as_json())
    elif out is None:
        print(found.to_csv(), end="")


def _in_words(summary: "Summary") -> str:
    said = f"{summary['file']}: {summary['samples']:,} sample{'' if summary['samples'] == 1 else 's'}"
    if summary["accuracy"] is not None:
        right = round(summary["accuracy"] * summary["labelled"])
        said += f"; accuracy {summary['accuracy']:.2%} ({right:,} of {summary['labelled']:,} with a label)"
    if unknown := summary["unknown"]:
        names = ", ".join(map(repr, list(unknown)[:3])) + (", …" if len(unknown) > 3 else "")
        said += f"; {sum(unknown.values()):,} have labels that are not classes of the model ({names})"
    return said

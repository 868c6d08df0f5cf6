"""The commands for saved models: ``fedistill predict``, ``fedistill export`` and ``fedistill push``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedistill.cli.console import Json, Quiet, console, print_json, say
from fedistill.errors import ExperimentError

if TYPE_CHECKING:
    from fedistill.config.section import RawTable
    from fedistill.deployment.predictions import Summary


Model = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a saved model.")]
SetRead = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="How FILE is read, as in an experiment: task.input=COLUMN, task.label, task.separator,"
        " task.encoding, task.format and others. May be repeated.",
    ),
]
Modules = Annotated[
    str, typer.Option(help="Modules that a model of your own may be imported from, separated by commas.")
]
_SAMPLES = "A table (CSV, JSON, Parquet), a folder of images, or an image"


def predict_command(
    model: Model,
    file: Annotated[str, typer.Argument(metavar="FILE", help=f"{_SAMPLES}.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Write here: .csv, .parquet or .json. Default: CSV on stdout."),
    ] = None,
    set: SetRead = None,
    modules: Modules = "",
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Classify samples by a saved model: the class of each and the probabilities of all classes."""
    from fedistill.deployment.classifier import load_model
    from fedistill.deployment.predictions import check_ending, predict_file

    settings = _settings(set)
    if out is not None:
        check_ending(out)
    found = predict_file(load_model(model, modules=_names(modules)), file, settings)
    if not quiet:
        say(_in_words(found.summary()))
    if out is not None:
        found.write(out)
    if json:
        print_json(found.summary() if out else found.as_json())
    elif out is None:
        print(found.to_csv(), end="")


def export_command(
    model: Model,
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help=f"{_SAMPLES}, on which outputs are compared before it is done."),
    ],
    torch_export: Annotated[
        bool, typer.Option("--torch-export", help="Write model.pt2, a program of torch.export.")
    ] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write model.onnx; needs the extra `export`.")] = False,
    hf: Annotated[
        Path | None,
        typer.Option(
            help="Write a model of transformers to a folder from which its from_pretrained loads it.",
            metavar="FOLDER",
        ),
    ] = None,
    set: SetRead = None,
    modules: Modules = "",
) -> None:
    """Write a saved model as what needs no fedistill: a program, or a folder of transformers."""
    from fedistill.deployment.classifier import load_model
    from fedistill.deployment.export import FILES, export_model
    from fedistill.deployment.predictions import read_samples

    asked = {"torch-export": torch_export, "onnx": onnx}
    if not any(asked.values()) and hf is None:
        raise ExperimentError("name at least one form: --torch-export, --onnx or --hf FOLDER")
    loaded = load_model(model, modules=_names(modules))
    samples = read_samples(loaded, file, _settings(set))
    count = len(samples.inputs)
    where = f"{count:,} sample{'' if count == 1 else 's'} of {samples.where}"
    compared = f"on {where}, probabilities differ from the model's by at most"
    if hf is not None:
        from fedistill.deployment.export_hf import export_hf

        difference = export_hf(loaded, model, samples.inputs, hf)
        _tell(f"{hf}: from_pretrained of transformers loads it; {compared} {difference:.1e}")
    takes = {"image": "uint8 pixels", "text": "int64 token ids", "table": "encoded rows, float32"}[
        loaded.signature.kind
    ]
    shape = ", ".join(map(str, loaded.signature.shape))
    for form in FILES:
        if asked[form]:
            path, difference = export_model(loaded, samples.inputs, form, model)
            _tell(
                f"{path}: takes {takes} (n, {shape}), returns probabilities (n, {len(loaded.classes)});"
                f" {compared} {difference:.1e}"
            )


def _tell(line: str) -> None:
    console.print(line, markup=False, soft_wrap=True, highlight=False)


def push_command(
    model: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder of a saved model, or one of export --hf.")
    ],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="A model's repository on the hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make a repository that only you see.")] = False,
    revision: Annotated[str | None, typer.Option(help="The branch. Default: main.")] = None,
) -> None:
    """Upload a model with its card to the Hugging Face hub, by the token of `hf auth login` or HF_TOKEN."""
    from fedistill.deployment.push import push

    _tell(push(model, repository, private=private, revision=revision))


def _settings(overrides: list[str] | None) -> "RawTable":
    """Return the settings of `[task]` that say how a file is read."""
    from fedistill.config.toml import settings_of

    tables = settings_of(overrides or [])
    task: RawTable = tables.pop("task", {})
    if tables or not isinstance(task, dict):
        raise ExperimentError("--set: only settings of task can be set here, for example task.input=COLUMN")
    return task


def _names(modules: str) -> list[str]:
    return [name.strip() for name in modules.split(",") if name.strip()]


def _in_words(summary: "Summary") -> str:
    said = f"{summary['file']}: {summary['samples']:,} sample{'' if summary['samples'] == 1 else 's'}"
    if summary["accuracy"] is not None:
        right = round(summary["accuracy"] * summary["labelled"])
        said += f"; accuracy {summary['accuracy']:.2%} ({right:,} of {summary['labelled']:,} with a label)"
    if unknown := summary["unknown"]:
        names = ", ".join(map(repr, list(unknown)[:3])) + (", …" if len(unknown) > 3 else "")
        said += f"; {sum(unknown.values()):,} have labels that are not classes of the model ({names})"
    return said

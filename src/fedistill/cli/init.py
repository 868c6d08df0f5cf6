"""``fedistill init``: from data, or from an example, to an experiment file."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedistill.cli.complete import complete_example
from fedistill.cli.console import Json, console, print_json
from fedistill.config.inputs import COUNTED
from fedistill.errors import ExperimentError

if TYPE_CHECKING:
    from fedistill.config.section import RawTable
    from fedistill.experiment.starter.start import Started
    from fedistill.experiment.starter.survey import Survey

_MOST_SHOWN = 12


def init_command(
    data: Annotated[
        list[str] | None,
        typer.Argument(
            help="A file, a folder, a pattern such as 'sites/*.csv', several files, or hf:OWNER/NAME."
        ),
    ] = None,
    public: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Unlabelled data of the same kind that everyone may see."),
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of labels. Default: found.")
    ] = None,
    input: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of images or texts. Default: found, if there is one."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write. Default: named after the data, here.")
    ] = None,
    example: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="In place of data: write an example, such as digits.",
            autocompletion=complete_example,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Look at data, say what they hold, and write an experiment that learns from them."""
    if example is not None:
        if data or public or label or input:
            raise ExperimentError(
                "--example takes the place of data: leave out DATA, --public, --label and --input"
            )
        _write_example(example, out, json)
        return
    if not data:
        raise ExperimentError(
            "init needs DATA, such as texts.csv or a folder of images; or, without any, --example digits"
        )
    from fedistill.experiment.starter.start import start

    started = start(data, public, label, input, out)
    if json:
        print_json(_as_json(started))
        return
    for line in (*_found(started.survey), *_doubts(started)):
        _print(line)
    _print_next(started.path)


def _write_example(name: str, out: Path | None, json: bool) -> None:
    from fedistill.experiment.starter.examples import write_example

    path = write_example(name, out)
    if json:
        print_json({"file": str(path)})
    else:
        _print_next(path)


def _print_next(path: Path) -> None:
    name = shlex.quote(str(path))
    _print(f"wrote {path}; next: fedistill doctor {name}, then fedistill compare {name}")


def _print(line: str) -> None:
    console.print(line, markup=False, soft_wrap=True, highlight=False)


def _found(survey: "Survey") -> Iterator[str]:
    """Yield what there is, one line each."""
    tests = "" if survey.tests is None else f", and {survey.tests:,} to test on"
    yield (
        f"{survey.title}: {survey.samples:,} {COUNTED[survey.kind]} in {len(survey.classes)} classes"
        f" ({survey.form}){tests}"
    )
    if survey.features is None:
        inputs = f"{survey.columns.input!r} has the {COUNTED[survey.kind]}"
        yield f"columns: {inputs}, {survey.columns.label!r} the labels"
    else:
        yield f"columns: {survey.columns.label!r} has the labels"
        yield f"numeric: {', '.join(survey.features.numeric) or 'none'}"
        yield f"categorical: {', '.join(survey.features.categorical) or 'none'}"
        for name, reason in survey.left_out.items():
            yield f"left out: {name!r} ({reason})"
    yield f"classes: {_counted(survey.classes)}"
    if survey.sites:
        where = f"column {survey.columns.site!r}" if survey.columns.site else "a file each"
        yield f"sites: {len(survey.sites):,} ({where}): {_counted(survey.sites)}"
    if survey.sizes:
        yield f"height x width: {_counted({f'{high}x{wide}': n for (high, wide), n in survey.sizes.items()})}"
    if survey.words is not None:
        half, most = survey.words.median, survey.words.most
        yield f"words: half of the texts have at most {half:,}, nine of ten have at most {most:,}"


def _counted(counts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:_MOST_SHOWN])
    more = len(counts) - _MOST_SHOWN
    return shown + (f" and {more:,} more" if more > 0 else "")


def _doubts(started: "Started") -> Iterator[str]:
    """Yield what is doubtful, and how many words are unknown."""
    for finding in started.findings:
        if finding.level == "warning" or finding.where == "task.text":
            yield f"{finding.level}: {finding}"


def _as_json(started: "Started") -> "RawTable":
    survey = started.survey
    return {
        "file": str(started.path),
        "title": survey.title,
        "format": survey.form,
        "kind": survey.kind,
        "samples": survey.samples,
        "test_samples": survey.tests,
        "missing": survey.missing,
        "columns": asdict(survey.columns),
        "classes": survey.classes,
        "sites": survey.sites,
        "sizes": [{"height": high, "width": wide, "images": n} for (high, wide), n in survey.sizes.items()],
        "words": None if survey.words is None else asdict(survey.words),
        "features": None if survey.features is None else asdict(survey.features),
        "left_out": dict(survey.left_out),
        "findings": [asdict(finding) for finding in started.findings],
    }

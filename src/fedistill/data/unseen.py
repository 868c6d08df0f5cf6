"""Samples that a trained model is to classify: read as training data are, but labels may be missing."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from fedistill.config.inputs import SAMPLES, InputKind
from fedistill.config.messages import explain_errors
from fedistill.config.section import RawTable
from fedistill.config.task import Source
from fedistill.data import image
from fedistill.data.columns import INPUT_NAMES, LABEL_NAMES, choose_column, kind_of, label_values
from fedistill.data.files import read_split
from fedistill.data.formats import format_of, is_image, visible_files
from fedistill.data.missing import complete, encoded_images, image_cells, is_missing
from fedistill.data.record_columns import read_records
from fedistill.data.records import Features
from fedistill.data.table import Inputs, Rows, Split
from fedistill.errors import ExperimentError, nearest

_SPLITS = ("", "test", "validation", "train")
"""Of data that have splits, the first of these is taken."""
_SETTINGS = (
    *("format", "input", "label", "separator", "encoding", "column_names", "missing", "relabel"),
    *("drop_missing", "background", "white_level"),
)
"""Settings of `[task]` that say how a file is read."""

Decode = Callable[[Iterable[image.Cell | None], Rows, str, image.Rendering], NDArray[np.uint8]]
"""Returns uint8 images of cells, given their rows and the file's name for messages, and the settings that say
how they are rendered."""


@dataclass(frozen=True)
class Unseen:
    """Samples to classify.

    Attributes:
        where: what was read, for people.
        inputs: uint8 images (n, channels, height, width), n texts, or n records.
        rows: their places in the file, int64 (n,), from 0.
        labels: the label of each as text, None where it is missing; or None if there is no column of labels.
        files: the path of each image, below the folder that was read; None if they are no files of their own.
    """

    where: str
    inputs: Inputs
    rows: Rows
    labels: list[str | None] | None
    files: list[str] | None


def read_unseen(
    path: str,
    settings: RawTable,
    kind: InputKind,
    usual: tuple[str | None, str | None],
    features: Features | None,
    layout: RawTable,
    decode: Decode,
) -> Unseen:
    """Read a table, a folder or an image.

    Args:
        settings: of `[task]`, such as ``separator``; without ``format``, names of files tell it.
        usual: the columns of input and label in the training data, if they were named; those in the settings
            come first.
        features: the columns that a model of tables reads.
        layout: settings of how CSV files were read in training; those in ``settings`` come first.

    Raises:
        ExperimentError: it cannot be read, has no inputs of this kind, or lacks values.
    """
    unsorted = "format" not in settings and _is_unsorted(Path(path))
    source = _source(path, {"format": "imagefolder", **settings} if unsorted else settings, layout)
    if unsorted:
        split, where = _pictures(Path(path)), path
    else:
        found = read_split(source, _SPLITS, "FILE")
        assert found is not None  # each split is one of `_SPLITS`
        split, where = found
    if len(split) == 0:
        raise ExperimentError(f"{where}: has no rows")
    if features is not None:
        return _rows(split, source, features, usual[1], where)
    samples = _samples(split, source, kind, usual, where, decode)
    files = samples.files and [_below(Path(path).resolve(), Path(file).resolve()) for file in samples.files]
    return replace(samples, files=files)


def input_column(columns: list[str], usual: str | None, key: str, where: str) -> str:
    """Return the column of the inputs: one with a usual name, or the only one; ``key`` is the setting.

    Raises:
        ExperimentError: it cannot be told.
    """
    if len(columns) == 1:
        return columns[0]
    return choose_column(None, columns, [name for name in (usual, *INPUT_NAMES) if name], key, where)


def _source(path: str, settings: RawTable, layout: RawTable) -> Source:
    """Return how a file or folder is read; the layout is that of CSV files."""
    for key in settings:
        if key not in _SETTINGS:
            raise ExperimentError(
                f"--set task.{key}: only settings that say how a file is read can be set here:"
                f" {', '.join(_SETTINGS)}.{nearest(key, _SETTINGS)}"
            )
    if "format" not in settings:
        try:
            settings = {**settings, "format": format_of(Path(path))}
        except ExperimentError as error:
            raise ExperimentError(f"FILE = {path}: {error}") from None
    if settings["format"] == "csv":
        settings = layout | settings
    try:
        return Source.model_validate({**settings, "train": path})
    except ValidationError as error:
        raise ExperimentError(explain_errors(error, "--set task", Source)) from None


def _is_unsorted(path: Path) -> bool:
    """Whether a path is an image, or a folder with images and neither subfolders of them nor a table."""
    if path.is_file():
        return is_image(path)
    if not path.is_dir() or any(path.glob("metadata.*")):
        return False
    images = [file for file in visible_files(path) if is_image(file)]
    return bool(images) and all(file.parent == path for file in images)


def _below(folder: Path, file: Path) -> str:
    return file.relative_to(folder).as_posix() if folder in file.parents else file.name


def _pictures(path: Path) -> Split:
    files = [path] if path.is_file() else [file for file in visible_files(path) if is_image(file)]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    return datasets.Dataset.from_dict({"image": list(map(str, files))}, features=features)


def _rows(split: Split, source: Source, features: Features, usual: str | None, where: str) -> Unseen:
    label = _label_column(split, source, usual, features.names, where)
    labels = None if label is None else _labels(split, label, where, source)
    return Unseen(where, read_records(split, features, where), np.arange(len(split)), labels, None)


def _label_column(
    split: Split, source: Source, usual: str | None, taken: Sequence[str], where: str
) -> str | None:
    """Return the column of labels that the settings name, or else one with a usual name, if there is one."""
    columns = list(split.column_names)
    if source.label is not None:
        return choose_column(source.label, columns, (), "task.label", where)
    return next((name for name in (usual, *LABEL_NAMES) if name in columns and name not in taken), None)


def _samples(
    split: Split,
    source: Source,
    kind: InputKind,
    usual: tuple[str | None, str | None],
    where: str,
    decode: Decode,
) -> Unseen:
    columns = list(split.column_names)
    label = _label_column(split, source, usual[1], (), where)
    others = [column for column in columns if column != label]
    inputs = source.input or input_column(others, usual[0], "task.input", where)
    choose_column(inputs, columns, (), "task.input", where)
    found = kind_of(split, where, inputs, "task")
    if found != kind:
        raise ExperimentError(
            f"{where}: column {inputs!r} holds {SAMPLES[found]}, but the model reads {SAMPLES[kind]}"
        )
    split, rows = complete(split, {inputs: kind}, source.drop_missing, where, "task")
    labels = None if label is None else _labels(split, label, where, source)
    if kind == "text":
        return Unseen(where, list(split[inputs]), rows, labels, None)
    cells = list(image_cells(encoded_images(split, inputs)))
    given = image.Rendering(source.background, source.white_level)
    paths = [str(cell["path"]) for cell in cells if cell is not None and cell["bytes"] is None]
    files = paths if len(paths) == len(cells) else None
    return Unseen(where, decode(cells, rows, where, given), rows, labels, files)


def _labels(split: Split, column: str, where: str, source: Source) -> list[str | None]:
    """Return labels as text, None for those that are missing."""
    there = np.flatnonzero(~is_missing(split, column, "label"))
    labels: list[str | None] = [None] * len(split)
    for row, value in zip(
        there.tolist(), label_values(split.select(there), column, where, None), strict=True
    ):
        labels[row] = source.relabel.get(str(value), str(value))
    return labels

"""Converts columns of a Hugging Face data set to tables: which column is what, and what labels mean."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import datasets
import numpy as np
from numpy.typing import NDArray

from fedistill.config.inputs import InputKind
from fedistill.config.task import PublicSource, Source, TaskConfig
from fedistill.data import image, task_kinds
from fedistill.data.missing import Content, complete, encoded_images, image_cells
from fedistill.data.record_columns import choose_features, records_table
from fedistill.data.records import NUMBER, Features, Value
from fedistill.data.table import Column, Inputs, Loaded, Rows, Split, Table, digest, place_of
from fedistill.errors import ExperimentError, nearest

Feature = Any
"""What `datasets` declares of a column: a `Value`, `ClassLabel`, `Image`, or a list or table of these."""

_Part = tuple[Split, Rows, str]
"""Rows of a split, their places in the file, and the split's name for messages."""
_BATCH = 1000
_IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp")
INPUT_NAMES = ("image", "img", "text", "sentence", "content", "document", "article")
LABEL_NAMES = ("label", "labels", "class", "category", "target", "coarse_label", "fine_label")


def from_hugging_face(
    train: Split,
    test: Split | None,
    source: Source,
    wheres: tuple[str, str],
    image_size: tuple[int, int] | None,
    features: Features | None = None,
) -> Loaded:
    """Open splits that have been read; ``wheres`` names both in error messages.

    Args:
        features: the inputs of a task of tables whose columns have been chosen before.

    Raises:
        ExperimentError: columns or labels are missing, ambiguous or unusable.
    """
    columns = list(train.column_names)
    place = place_of(source)
    where, where_test = wheres
    if len(train) == 0:
        raise ExperimentError(f"{where}: has no rows")
    if isinstance(source, PublicSource):
        return _unlabelled(train, source, where, image_size, features)
    label = choose_column(source.label, columns, LABEL_NAMES, f"{place}.label", where)
    owner = getattr(source.partition, "column", None) if isinstance(source, TaskConfig) else None
    owners: dict[str, Content] = {owner: "label"} if owner is not None and owner in columns else {}
    chosen = _chosen(train, source, features, [label, *owners], where)
    needed: dict[str, Content] = {label: "label", **chosen.content()}
    train, numbers = complete(train, needed | owners, source.drop_missing, where, place)
    names = getattr(train.features[label], "names", None)
    given = _relabelled(label_values(train, label, where, names), source)
    if names:
        classes = list(dict.fromkeys(_relabelled(names, source)))
    else:
        classes = sorted(set(given), key=_place_among(given))
    if isinstance(source, TaskConfig) and len(set(given)) < 2:  # a site may have a single class
        folders = " (put the images of each class into a folder of their own)"
        raise ExperimentError(
            f"{where}: column {label!r} has only one value, so there is nothing to learn"
            + (folders if source.format == "imagefolder" else "")
        )
    if chosen.kind == "table" and task_kinds.is_quantity(classes, len(given)):
        raise ExperimentError(
            f"{where}: column {label!r} holds {len(classes):,} different numbers such as {classes[0]}, but"
            " labels must be classes (regression is not supported)"
        )
    index = {value: number for number, value in enumerate(classes)}
    if strange := _strange(given, index):
        raise ExperimentError(f"{where}: labels {strange} in column {label!r} have no class name")

    def opened(part: _Part, labels: Column, rendering: Callable[[], image.Rendering]) -> Table:
        codes = np.array([index[value] for value in labels], dtype=np.int64)
        return _columns(part, chosen, codes, image_size, rendering)

    part = (train, numbers, where)
    loaded = partial(
        Loaded,
        chosen.kind,
        tuple(map(str, classes)),
        features=chosen.features,
        left_out=chosen.left_out,
    )
    if test is None:
        rendering = _rendering(source, chosen, [part])
        return loaded(opened(part, given, rendering), None, rendering=rendering)
    wanted = [label, *chosen.names]
    if not set(wanted) <= set(test.column_names):
        raise ExperimentError(
            f"{where_test}: the test data need the columns {' and '.join(map(repr, wanted))} of the training"
            f" data; they have {', '.join(test.column_names)}"
        )
    if len(test) == 0:
        raise ExperimentError(f"{where_test}: has no rows")
    if chosen.column and kind_of(test, where_test, chosen.column, place) != chosen.kind:
        raise ExperimentError(
            f"{where_test}: column {chosen.column!r} must hold {chosen.kind}s, as in the training data"
        )
    test, test_numbers = complete(test, needed, source.drop_missing, where_test, place)
    tested = _relabelled(label_values(test, label, where_test, names), source)
    if strange := _strange(tested, index):
        known = ", ".join(map(repr, classes[:5])) + (", …" if len(classes) > 5 else "")
        raise ExperimentError(
            f"{where_test}: labels {strange} do not occur in the training data, which have {known}; both"
            " parts need the same classes: drop those rows or map their labels"
        )
    test_part = (test, test_numbers, where_test)
    rendering = _rendering(source, chosen, [part, test_part])
    ready, held = opened(part, given, rendering), opened(test_part, tested, rendering)
    return loaded(ready, held, rendering=rendering)


@dataclass(frozen=True)
class _Inputs:
    """What a task's inputs are: one column of images or texts, or the features of a table."""

    kind: InputKind
    features: Features | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    column: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return (self.column,) if self.features is None else self.features.names

    def content(self) -> dict[str, Content]:
        """Return the column without which a row cannot be used; a table's values may be missing."""
        return {} if self.kind == "table" else {self.column: self.kind}


def _chosen(
    split: Split, source: Source, features: Features | None, others: Sequence[str], where: str
) -> _Inputs:
    """Return the inputs: features that were chosen before, or what the settings name or lead to."""
    if features is not None:
        return _Inputs("table", features)
    table = source.table if isinstance(source, TaskConfig) else None
    if table is None:
        place, label = place_of(source), others[:1]
        columns = [column for column in split.column_names if column not in label]
        column = choose_column(source.input, columns, INPUT_NAMES, f"{place}.input", where)
        return _Inputs(kind_of(split, where, column, place), column=column)
    found = choose_features(split, table, others, where)
    if others[0] in found.features.names:
        raise ExperimentError(f"{where}: task.table names the column of labels, {others[0]!r}, as an input")
    return _Inputs("table", found.features, found.left_out)


def _unlabelled(
    split: Split,
    source: Source,
    where: str,
    image_size: tuple[int, int] | None,
    features: Features | None,
) -> Loaded:
    chosen = _chosen(split, source, features, [], where)
    split, numbers = complete(split, chosen.content(), source.drop_missing, where, place_of(source))
    part = (split, numbers, where)
    nothing = np.zeros(len(split), dtype=np.int64)
    table = _columns(part, chosen, nothing, image_size, _rendering(source, chosen, [part]))
    return Loaded(chosen.kind, (), table, None, features=features)


def _relabelled(labels: Column, source: Source) -> Column:
    """Return labels with the names that the settings give them; if they give any, all are texts."""
    if not source.relabel:
        return labels
    return [source.relabel.get(text, text) for text in map(str, labels)]


def _place_among(labels: Column) -> Callable[[Value], Value] | None:
    """Return the sort key of labels: texts that are all numbers, such as "9" and "10", in the order of these.

    Numbers that differ as texts, such as "7" and "007", stay different labels.
    """
    if all(isinstance(label, str) and label.isascii() and label.isdigit() for label in labels):
        return lambda label: (int(label), label)
    return None


def _rendering(source: Source, inputs: _Inputs, parts: Sequence[_Part]) -> image.RenderingChoice:
    """Return what chooses how pictures are rendered, by those of all parts."""

    def choose() -> image.Rendering:
        splits = [
            (image_cells(encoded_images(split, inputs.column)), numbers, where)
            for split, numbers, where in parts
        ]
        return image.choose_rendering(splits, source.background, source.white_level)

    return image.RenderingChoice(choose)


def _strange(labels: Column, index: Mapping[Hashable, int]) -> Column:
    """Return up to five labels that are not among the classes."""
    return [label for label in dict.fromkeys(labels) if label not in index][:5]


def label_values(split: Split, column: str, where: str, names: list[str] | None) -> Column:
    """Return the values of the label column, by name if the column or ``names`` has names for its numbers."""
    feature = split.features[column]
    if not isinstance(feature, datasets.Value | datasets.ClassLabel):
        raise ExperimentError(f"{where}: column {column!r} {task_kinds.of_label(feature, column)}")
    values = _values(split, column)
    own = getattr(feature, "names", None) or names
    if own:
        # A number is a position in the split's own list of names, which another split may order differently.
        return [own[value] if value in range(len(own)) else value for value in values]
    if feature.dtype.startswith("float"):
        broken = [value for value in values if value != int(value)] if np.isfinite(values).all() else values
        if broken:
            raise ExperimentError(
                f"{where}: column {column!r} holds fractional numbers such as {broken[0]}, but labels must be"
                " classes (regression is not supported)"
            )
        return [int(value) for value in values]
    if feature.dtype in ("binary", "large_binary"):
        return [value.decode("utf-8", errors="backslashreplace") for value in values]
    return values


def choose_column(given: str | None, columns: list[str], usual: Sequence[str], key: str, where: str) -> str:
    """Return the column that the setting ``key`` names, or the first one with a usual name."""
    if given is not None:
        if given not in columns:
            raise ExperimentError(
                f"{where}: {key} = {given!r} is not a column; there are"
                f" {', '.join(columns)}.{nearest(given, columns)}"
            )
        return given
    found = [column for column in usual if column in columns]
    if not found:
        what = key.rsplit(".", 1)[1]
        other = task_kinds.without_label(columns) if what == "label" else ""
        if key == "task.input":
            other = ", or, if each row is a sample and its columns are the inputs, write [task.table]"
        raise ExperimentError(
            f"{where}: cannot tell which column is the {what}; set {key} to one of"
            f" {', '.join(columns)}{other}"
        )
    return found[0]


def kind_of(split: Split, where: str, column: str, place: str) -> Literal["image", "text"]:
    feature = split.features[column]
    dtype = getattr(feature, "dtype", None)
    encoded = dtype in ("binary", "large_binary", "binary_view")
    if encoded or isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature):
        return "image"
    if dtype in ("string", "large_string", "string_view"):
        if all(NUMBER.fullmatch(str(value)) for value in split[column]):
            raise ExperimentError(
                f"{where}: column {column!r} holds numbers, neither images nor texts; set {place}.input"
            )
        if all(str(value).lower().endswith(_IMAGE_ENDINGS) for value in split[column]):
            raise ExperimentError(
                f"{where}: column {column!r} holds paths of images, not texts: use format ="
                ' "imagefolder" and, in that folder, a metadata.csv with the columns file_name and label'
            )
        return "text"
    raise ExperimentError(
        f"{where}: column {column!r} holds {_in_words(feature)}, neither images nor texts; set {place}.input"
    )


def _in_words(feature: Feature) -> str:
    if isinstance(feature, datasets.Value | datasets.ClassLabel):
        return f"values of type {feature.dtype}"
    return "images" if isinstance(feature, datasets.Image) else "lists or tables"


def _values(split: Split, column: str) -> Column:
    return list(split[column][:])  # all at once: row by row takes forty times as long


def _columns(
    part: _Part,
    inputs: _Inputs,
    labels: NDArray[np.int64],
    image_size: tuple[int, int] | None,
    rendering: Callable[[], image.Rendering],
) -> Table:
    split, numbers, where = part

    def column(name: str) -> Column:
        if name not in split.column_names:
            raise ExperimentError(
                f"task.partition.column = {name!r} is not a column; there are"
                f" {', '.join(split.column_names)}.{nearest(name, split.column_names)}"
            )
        return _values(split, name)

    if inputs.features is not None:
        return records_table(split, inputs.features, labels, column, where)
    if inputs.kind == "text":
        name = inputs.column

        def texts(rows: Rows) -> Inputs:
            return _values(split.select(rows), name)

        def digests() -> list[bytes]:
            batches = split.select_columns([name]).iter(_BATCH)
            return [digest(text.encode()) for batch in batches for text in batch[name]]

        return Table(labels, texts, digests, column)
    encoded = encoded_images(split, inputs.column)

    def read(rows: Rows) -> Inputs:
        return image.decode(image_cells(encoded.select(rows)), numbers[rows], where, image_size, rendering)

    def keys() -> list[bytes]:
        cells = zip(numbers, image_cells(encoded), strict=True)
        return [digest(image.content(cell, row, where)) for row, cell in cells]

    return Table(labels, read, keys, column)

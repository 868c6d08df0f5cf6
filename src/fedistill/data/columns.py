"""Converts columns of a Hugging Face data set to tables: which column is what, and what labels mean."""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal

import datasets
import numpy as np
from numpy.typing import NDArray

from fedistill.config.task import PublicSource, Source, TaskConfig
from fedistill.data import image, task_kinds
from fedistill.data.missing import Content, complete, encoded_images, image_cells
from fedistill.data.table import Column, Inputs, Loaded, Rows, Split, Table, digest, place_of, texts_table
from fedistill.errors import ExperimentError, nearest

Feature = Any
"""What `datasets` declares of a column: a `Value`, `ClassLabel`, `Image`, or a list or table of these."""

_Part = tuple[Split, Rows, str]
"""Rows of a split, their places in the file, and the split's name for messages."""
NUMBER = re.compile(r"[-+]?[0-9]+([.,][0-9]+)?([eE][-+]?[0-9]+)?")
_IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp")
INPUT_NAMES = ("image", "img", "text", "sentence", "content", "document", "article")
LABEL_NAMES = ("label", "labels", "class", "category", "target", "coarse_label", "fine_label")


def from_hugging_face(
    train: Split,
    test: Split | None,
    source: Source,
    wheres: tuple[str, str],
    image_size: tuple[int, int] | None,
) -> Loaded:
    """Open splits that have been read; ``wheres`` names both in error messages.

    Raises:
        ExperimentError: columns or labels are missing, ambiguous or unusable.
    """
    columns = list(train.column_names)
    place = place_of(source)
    where, where_test = wheres
    if len(train) == 0:
        raise ExperimentError(f"{where}: has no rows")
    if isinstance(source, PublicSource):
        inputs = choose_column(source.input, columns, INPUT_NAMES, f"{place}.input", where)
        kind = kind_of(train, where, inputs, place)
        train, numbers = complete(train, {inputs: kind}, source.drop_missing, where, place)
        rendering = _rendering(source, inputs, [(train, numbers, where)])
        unknown = np.zeros(len(train), dtype=np.int64)
        unlabelled = _columns(train, kind, inputs, unknown, where, image_size, numbers, rendering)
        return Loaded(kind, (), unlabelled, None)
    label = choose_column(source.label, columns, LABEL_NAMES, f"{place}.label", where)
    others = [column for column in columns if column != label]
    inputs = choose_column(source.input, others, INPUT_NAMES, f"{place}.input", where)
    kind = kind_of(train, where, inputs, place)
    needed: dict[str, Content] = {label: "label", inputs: kind}
    owner = getattr(source.partition, "column", None) if isinstance(source, TaskConfig) else None
    owners: dict[str, Content] = {owner: "label"} if owner is not None and owner in columns else {}
    train, numbers = complete(train, needed | owners, source.drop_missing, where, place)
    names = getattr(train.features[label], "names", None)
    given = label_values(train, label, where, names)
    classes = names or sorted(set(given), key=_place_among(given))
    if isinstance(source, TaskConfig) and len(set(given)) < 2:  # a site may have a single class
        folders = " (put the images of each class into a folder of their own)"
        raise ExperimentError(
            f"{where}: column {label!r} has only one value, so there is nothing to learn"
            + (folders if source.format == "imagefolder" else "")
        )
    index = {value: number for number, value in enumerate(classes)}
    if strange := _strange(given, index):
        raise ExperimentError(f"{where}: labels {strange} in column {label!r} have no class name")

    def table(part: _Part, labels: Column, rendering: Callable[[], image.Rendering]) -> Table:
        split, rows, name = part
        codes = np.array([index[value] for value in labels], dtype=np.int64)
        return _columns(split, kind, inputs, codes, name, image_size, rows, rendering)

    part = (train, numbers, where)
    if test is None:
        rendering = _rendering(source, inputs, [part])
        ready = table(part, given, rendering)
        return Loaded(kind, tuple(map(str, classes)), ready, None, rendering=rendering)
    if not {label, inputs} <= set(test.column_names):
        raise ExperimentError(
            f"{where_test}: the test data need the columns {label!r} and {inputs!r} of the training data;"
            f" they have {', '.join(test.column_names)}"
        )
    if len(test) == 0:
        raise ExperimentError(f"{where_test}: has no rows")
    if kind_of(test, where_test, inputs, place) != kind:
        raise ExperimentError(f"{where_test}: column {inputs!r} must hold {kind}s, as in the training data")
    test, test_numbers = complete(test, needed, source.drop_missing, where_test, place)
    tested = label_values(test, label, where_test, names)
    if strange := _strange(tested, index):
        known = ", ".join(map(repr, classes[:5])) + (", …" if len(classes) > 5 else "")
        raise ExperimentError(
            f"{where_test}: labels {strange} do not occur in the training data, which have {known}; both"
            " parts need the same classes: drop those rows or map their labels"
        )
    test_part = (test, test_numbers, where_test)
    rendering = _rendering(source, inputs, [part, test_part])
    ready, held = table(part, given, rendering), table(test_part, tested, rendering)
    return Loaded(kind, tuple(map(str, classes)), ready, held, rendering=rendering)


def _place_among(labels: Column) -> Callable[[Any], Any] | None:
    """Return the sort key of labels: texts that are all numbers, such as "9" and "10", in the order of these.

    Numbers that differ as texts, such as "7" and "007", stay different labels.
    """
    if all(isinstance(label, str) and label.isascii() and label.isdigit() for label in labels):
        return lambda label: (int(label), label)
    return None


def _rendering(source: Source, inputs: str, parts: Sequence[_Part]) -> image.RenderingChoice:
    """Return what chooses how pictures are rendered, by those of all parts."""

    def choose() -> image.Rendering:
        splits = [
            (image_cells(encoded_images(split, inputs)), numbers, where) for split, numbers, where in parts
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
    split: Split,
    kind: Literal["image", "text"],
    inputs: str,
    labels: NDArray[np.int64],
    where: str,
    image_size: tuple[int, int] | None,
    numbers: Rows,
    rendering: Callable[[], image.Rendering],
) -> Table:
    """Return a table; ``numbers`` are the rows' places in the file, for messages."""

    def column(name: str) -> Column:
        if name not in split.column_names:
            raise ExperimentError(
                f"task.partition.column = {name!r} is not a column; there are"
                f" {', '.join(split.column_names)}.{nearest(name, split.column_names)}"
            )
        return _values(split, name)

    if kind == "text":
        texts = _values(split, inputs)
        return texts_table(texts, labels, column)
    encoded = encoded_images(split, inputs)

    def read(rows: Rows) -> Inputs:
        return image.decode(image_cells(encoded.select(rows)), numbers[rows], where, image_size, rendering)

    def keys() -> list[bytes]:
        cells = zip(numbers, image_cells(encoded), strict=True)
        return [digest(image.content(cell, row, where)) for row, cell in cells]

    return Table(labels, read, keys, column)

"""Which column of a data set is the input, which the label, and which one names sites."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import datasets

from fedistill.data.columns import INPUT_NAMES, LABEL_NAMES, Feature
from fedistill.data.record_columns import kind_of_column
from fedistill.data.records import NUMBER
from fedistill.data.table import FILE_COLUMN, Split
from fedistill.errors import ExperimentError, nearest

MOST_CLASSES = 100
"""Different values up to which a column without a usual name may hold labels."""
_SITES = re.compile(
    r"(site|client|hospital|cent(re|er)|clinic|institution|organi[sz]ation|bank|branch|node|party|device|sensor"
    r"|user|writer|speaker|subject|patient)([-_ ]?(id|name))?",
    re.IGNORECASE,
)
"""What columns of sites are called."""
_LABELS_OF_TABLES = (*LABEL_NAMES, "outcome", "diagnosis", "y")
_WORDS_OF_TEXT = 8
"""Mean number of words from which texts are more than names and titles."""
_LOOKED_AT = 200
"""Rows from which the mean length of a column's texts is estimated."""


@dataclass(frozen=True)
class Columns:
    """Names of columns; ``input`` is None if rows are samples, ``site`` if no column looks like sites."""

    input: str | None
    label: str
    site: str | None


def find_columns(split: Split, where: str, given_input: str | None, given_label: str | None) -> Columns:
    """Return the columns that are given, and choose the others by their names, or else by what they hold.

    Raises:
        ExperimentError: there is no such column, or it cannot be told which is meant.
    """
    _check_given(split, where, {"--input": given_input, "--label": given_label})
    usual = _by_name(split, LABEL_NAMES, [given_input or ""])
    if given_input is None and _is_table(split, given_label or usual):
        label = given_label or _by_name(split, _LABELS_OF_TABLES, []) or _label(split, where, "")
        return Columns(None, label, _site(split, [label]))
    inputs = given_input or _input(split, where, [given_label or usual or ""])
    label = given_label or _by_name(split, LABEL_NAMES, [inputs]) or _label(split, where, inputs)
    return Columns(inputs, label, _site(split, [inputs, label]))


def _is_table(split: Split, label: str | None) -> bool:
    """Whether rows are samples: there are numbers and categories, and neither images nor longer texts.

    The name of a person or the title of a film is no text to learn from.
    """
    columns = [name for name in _names(split) if name != label]
    pictures = any(_holds_images(split.features[name]) for name in columns)
    if pictures or _by_name(split, INPUT_NAMES, [label or ""]):
        return False
    kinds = {name: kind_of_column(split, name) for name in columns if not _SITES.fullmatch(name)}
    features = [name for name, kind in kinds.items() if kind in ("numeric", "categorical")]
    others = [name for name in kinds if name not in features and _dtype(split, name) == "string"]
    wanted = len(features) - (0 if label else 1)  # one of them may be the label
    if not others:
        return wanted > 0
    return wanted > 1 and _most_words(split, others) < _WORDS_OF_TEXT


def _most_words(split: Split, columns: Sequence[str]) -> float:
    """Return the mean number of words in the column with the longest texts."""
    rows = split[: min(_LOOKED_AT, len(split))]
    lengths = {name: sum(len((text or "").split()) for text in rows[name]) for name in columns}
    return max(lengths.values()) / min(_LOOKED_AT, len(split))


def find_public_input(split: Split, where: str, private: str) -> str:
    """Return the column of public inputs: the one called as in the private data, or else the most likely one.

    Raises:
        ExperimentError: it cannot be told which is meant.
    """
    return private if private in split.column_names else _input(split, where, [])


def _check_given(split: Split, where: str, given: dict[str, str | None]) -> None:
    columns = _names(split)
    for option, name in given.items():
        if name is not None and name not in columns:
            raise ExperimentError(
                f"{option} {name}: is no column of {where}; there are {', '.join(columns)}."
                f"{nearest(name, columns)}"
            )
    if given["--input"] is not None and given["--input"] == given["--label"]:
        raise ExperimentError(f"--input and --label both name the column {given['--input']!r}")


def _names(split: Split) -> list[str]:
    return [str(name) for name in split.column_names if name != FILE_COLUMN]


def _by_name(split: Split, usual: Sequence[str], taken: Sequence[str]) -> str | None:
    """Return the first column with a usual name, upper and lower case being the same."""
    columns = {name.lower(): name for name in reversed(_names(split)) if name not in taken}
    return next((columns[name] for name in usual if name in columns), None)


def _input(split: Split, where: str, taken: Sequence[str]) -> str:
    named = _by_name(split, INPUT_NAMES, taken)
    if named is not None:
        return named
    free = [name for name in _names(split) if name not in taken]
    for name in free:
        if _holds_images(split.features[name]):
            return name
    rows = split[: min(_LOOKED_AT, len(split))]
    texts = {name: [text or "" for text in rows[name]] for name in free if _dtype(split, name) == "string"}
    lengths = {name: sum(map(len, found)) for name, found in texts.items() if not all(map(_is_number, found))}
    if not lengths:
        raise ExperimentError(
            f"{where}: has neither images nor texts in its columns, {', '.join(_names(split))};"
            " and no numbers or categories besides the label: fedistill learns from these alone"
        )
    return max(lengths, key=lambda name: lengths[name])


def _is_number(text: str) -> bool:
    return not text or NUMBER.fullmatch(text) is not None


def _holds_images(feature: Feature) -> bool:
    return (
        isinstance(feature, datasets.Image)
        or (isinstance(feature, dict) and "bytes" in feature)
        or getattr(feature, "dtype", None) in ("binary", "large_binary", "binary_view")
    )


def _dtype(split: Split, name: str) -> str:
    """Return ``"string"``, ``"integer"``, or an empty text for what can be neither a label nor a site."""
    feature = split.features[name]
    if isinstance(feature, datasets.ClassLabel):
        return "integer"
    dtype = feature.dtype if isinstance(feature, datasets.Value) else ""
    if dtype in ("string", "large_string", "string_view"):
        return "string"
    return "integer" if dtype.startswith(("int", "uint", "bool")) else ""


def _label(split: Split, where: str, inputs: str) -> str:
    """Return the only column that has few different values."""
    few = dict(_of_few_values(split, [inputs]))
    if len(few) == 1:
        return next(iter(few))
    if not few:
        raise ExperimentError(
            f"{where}: cannot tell which column is the label: name one of"
            f" {', '.join(_names(split))} with --label"
        )
    shown = ", ".join(f"{name!r} ({count} different values)" for name, count in few.items())
    raise ExperimentError(
        f"{where}: cannot tell which column is the label: name it with --label; there are {shown}"
    )


def _of_few_values(split: Split, taken: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield the columns that may hold labels, with the number of their different values."""
    for name in _names(split):
        if name in taken or not _dtype(split, name) or _SITES.fullmatch(name):
            continue
        values = len(set(split[name]) - {None, ""})
        if 2 <= values <= min(MOST_CLASSES, len(split) // 2):
            yield name, values


def _site(split: Split, taken: Sequence[str]) -> str | None:
    """Return the first column that is named for sites, and has two of them at least, and rows for each."""
    for name in _names(split):
        if name in taken or not _dtype(split, name) or not _SITES.fullmatch(name):
            continue
        if 2 <= len(set(split[name])) <= len(split) // 2:
            return name
    return None

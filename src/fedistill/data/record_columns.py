"""Which columns of a table are inputs, and of which kind: as the settings say, or else by what they hold.

Left to themselves, numbers are numeric; texts, booleans, and whole numbers with few different values are
categorical. Left out are columns of one value, of texts that are nearly all different, and what only numbers
or names the rows.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from fedistill.config.task import TableConfig
from fedistill.data.records import Features, Records, category, is_empty, number, records_of
from fedistill.data.table import FILE_COLUMN, Split, Table, records_as_table
from fedistill.errors import ExperimentError, nearest

FEW_NUMBERS, ROWS_PER_NUMBER = 10, 5
"""Different whole numbers up to which they are categories, and rows that there must be for each of them."""
FEW_TEXTS = 50
"""Different texts up to which they are categories."""
_FEWEST_ROWS = 10
"""Rows from which numbers in sequence are no chance."""
_NAMES_ROWS = re.compile(r"(?i:(.*[-_ .])?(id|index|uuid|key))|.*[a-z]I[dD]")
"""What columns are called that tell rows apart."""
_MOSTLY = 0.5
_MOST_SHOWN = 3


@dataclass(frozen=True)
class ChosenFeatures:
    """The columns that are inputs, and why others are not, by name."""

    features: Features
    left_out: dict[str, str]


def choose_features(split: Split, settings: TableConfig, others: Sequence[str], where: str) -> ChosenFeatures:
    """Return the columns that the settings name as inputs, or else those that the rule of this module finds.

    Args:
        others: columns that the rule leaves out, such as the label.
        where: the table's name for messages.

    Raises:
        ExperimentError: there is no such column, or none is an input.
    """
    columns = [name for name in split.column_names if name != FILE_COLUMN]
    if settings.names_columns:
        numeric, categorical = settings.numeric or [], settings.categorical or []
        for key, names in (("numeric", numeric), ("categorical", categorical)):
            for name in names:
                if name not in columns:
                    raise ExperimentError(
                        f"{where}: task.table.{key} has {name!r}, which is not a column; there are"
                        f" {', '.join(columns)}.{nearest(name, columns)}"
                    )
        left_out = {name: "not named" for name in columns if name not in {*numeric, *categorical, *others}}
        return ChosenFeatures(Features(tuple(numeric), tuple(categorical)), left_out)
    kinds = {name: kind_of_column(split, name) for name in columns if name not in others}
    features = Features(
        tuple(name for name, kind in kinds.items() if kind == "numeric"),
        tuple(name for name, kind in kinds.items() if kind == "categorical"),
    )
    left_out = {name: kind for name, kind in kinds.items() if name not in features.names}
    if not features.names:
        reasons = "; ".join(f"{name!r}: {reason}" for name, reason in left_out.items()) or "there are none"
        raise ExperimentError(
            f"{where}: no column can be an input ({reasons}): name some in task.table.numeric or"
            " task.table.categorical"
        )
    return ChosenFeatures(features, left_out)


def kind_of_column(split: Split, name: str) -> str:
    """Return ``numeric`` or ``categorical``, or else why a column is no input."""
    feature = split.features[name]
    if not isinstance(feature, datasets.Value | datasets.ClassLabel):
        return "neither numbers nor texts"
    dtype = feature.dtype
    present = [value for value in split[name] if not is_empty(value)]
    if not present:
        return "no values"
    distinct = {category(value) for value in present}
    if len(distinct) == 1 and len(present) == len(split):
        return "one value in all rows"
    if dtype == "bool" or isinstance(feature, datasets.ClassLabel):
        return "categorical"
    if not dtype.startswith(("int", "uint", "float", "string", "large_string", "decimal")):
        return f"of type {dtype}"
    if dtype.endswith("string"):
        words = [value for value in present if number(value) is None]
        if words:
            return _kind_of_texts(words, present, distinct, name)
    return _kind_of_numbers([float(number(value) or 0.0) for value in present], name, len(split))


def _kind_of_texts(words: list[str], present: list[str], distinct: set[str | None], name: str) -> str:
    if len(words) < _MOSTLY * len(present) and len(distinct) > FEW_NUMBERS:
        shown = ", ".join(repr(word) for word in list(dict.fromkeys(words))[:_MOST_SHOWN])
        return f"numbers, but also {shown}; if that means that a value is missing, list it in task.missing"
    if len(distinct) > min(FEW_TEXTS, len(present) // 2):
        return f"texts of which {len(distinct):,} are different"
    return "categorical"


def _kind_of_numbers(values: list[float], name: str, rows: int) -> str:
    different = set(values)
    whole = all(value.is_integer() for value in different)
    each_its_own = whole and len(different) == rows
    if each_its_own and _NAMES_ROWS.fullmatch(name):
        return "another number in each row, as its name says"
    if each_its_own and rows >= _FEWEST_ROWS and max(different) - min(different) == rows - 1:
        return "numbers of the rows"
    few = min(FEW_NUMBERS, rows // ROWS_PER_NUMBER)
    return "categorical" if whole and len(different) <= few else "numeric"


def records_table(
    split: Split,
    features: Features,
    labels: NDArray[np.int64],
    column: Callable[[str], list[Any]],
    where: str,
) -> Table:
    """Return the rows of a split, which has these columns, with a label each; ``column`` is `Table.column`.

    Raises:
        ExperimentError: a numeric column has something else in it.
    """
    return records_as_table(read_records(split, features, where), labels, column)


def read_records(split: Split, features: Features, where: str) -> Records:
    """Return all rows of a split.

    Raises:
        ExperimentError: a column is missing, or a numeric one has something else in it.
    """
    if lacking := [name for name in features.names if name not in split.column_names]:
        raise ExperimentError(
            f"{where}: has no column {', '.join(map(repr, lacking[:5]))}{' …' if lacking[5:] else ''}, which"
            f" is an input of this task's models; there are {', '.join(split.column_names)}"
        )
    values = {name: _values(split, name) for name in features.names}
    return records_of(values, features, len(split), where)


def _values(split: Split, name: str) -> list[Any]:
    """Return a column's values, class labels by name."""
    names = getattr(split.features[name], "names", None)
    values = list(split[name])
    return [names[value] if value in range(len(names)) else None for value in values] if names else values

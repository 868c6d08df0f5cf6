"""Several files of one split, such as one for each site: which there are, their names, and their rows."""

import glob
import os
from pathlib import Path, PurePath
from typing import Any

from fedistill.data.table import FILE_COLUMN
from fedistill.errors import ExperimentError

_Split = Any
"""A `datasets.Dataset`; the library has no types to check."""


def title(paths: str | list[str] | None) -> str:
    """Return a name for a path or several ones, for people to read."""
    if isinstance(paths, list):
        return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    return str(paths)


def short_title(paths: str | list[str] | None) -> str:
    """Return a name for results, which others read: that of `title` without the folders of this machine.

    Examples:
        >>> short_title("/home/ann/texts.csv"), short_title("/a/sites/*.csv"), short_title(["/a/b.csv", "c"])
        ('texts.csv', 'sites/*.csv', 'b.csv and 1 more')
    """
    if isinstance(paths, list):
        return title([short_title(path) for path in paths])
    path = PurePath(str(paths))
    depth = next((depth for depth, part in enumerate(path.parts) if glob.has_magic(part)), len(path.parts))
    return "/".join(path.parts[max(0, depth - 1) :]) or str(path)


def find_files(paths: str | list[str], place: str) -> dict[str, str]:
    """Return the paths that a path, a pattern or a list of these stands for, by name.

    Names are the paths below the folder that all have in common, without the suffix. A pattern stands for its
    matches in alphabetical order; ``**`` stands for folders at any depth.

    Raises:
        ExperimentError: a pattern matches nothing, or a path is there twice; ``place`` is the setting.
    """
    found: list[str] = []
    for path in [paths] if isinstance(paths, str) else paths:
        if not glob.has_magic(path) or Path(path).exists():
            found.append(path)
            continue
        matches = sorted(glob.glob(path, recursive=True))
        if not matches:
            raise ExperimentError(f"{place} = {path}: no file matches this pattern")
        found += matches
    if twice := [path for path in dict.fromkeys(found) if found.count(path) > 1]:
        raise ExperimentError(f"{place}: {twice[0]} is named twice; take one of them away")
    if len(found) == 1:
        return {Path(found[0]).stem: found[0]}
    shared = os.path.commonpath([Path(path).parent for path in found])
    names = [Path(path).relative_to(shared) for path in found]
    short = [name.with_suffix("").as_posix() for name in names]
    unique = len(set(short)) == len(short)
    return dict(zip(short if unique else [name.as_posix() for name in names], found, strict=True))


def join_files(splits: dict[str, _Split], place: str) -> _Split:
    """Return the rows of all files, with the name of each row's file in the column `FILE_COLUMN`.

    Columns that not all files have are left out. Class labels that not all files number alike become names.

    Raises:
        ExperimentError: the files have no column in common, or a column of another type.
    """
    import datasets  # takes as long as torch, and other users of this file need none

    kept = [name for name in next(iter(splits.values())).column_names if _everywhere(name, splits)]
    if not kept:
        raise ExperimentError(f"{place}: {', '.join(splits)} have no column in common")
    parts = {name: split.select_columns(kept) for name, split in splits.items()}
    for column in kept:
        features = {name: split.features[column] for name, split in parts.items()}
        first = next(iter(features.values()))
        if any(feature != first for feature in features.values()):
            parts = {name: _with_names(split, column) for name, split in parts.items()}
            _check_types(column, parts, place)
    named = [
        split.add_column(FILE_COLUMN, [name] * len(split), feature=datasets.Value("string"))
        for name, split in parts.items()
    ]
    return datasets.concatenate_datasets(named)


def _everywhere(column: str, splits: dict[str, _Split]) -> bool:
    return all(column in split.column_names for split in splits.values())


def _with_names(split: _Split, column: str) -> _Split:
    """Return a split whose class labels are texts; other columns stay as they are."""
    import datasets

    feature = split.features[column]
    if not isinstance(feature, datasets.ClassLabel):
        return split
    names = [feature.names[value] if value in range(feature.num_classes) else None for value in split[column]]
    texts = split.remove_columns(column).add_column(column, names, feature=datasets.Value("string"))
    return texts.select_columns(split.column_names)


def _check_types(column: str, parts: dict[str, _Split], place: str) -> None:
    by_type: dict[str, str] = {}
    for name, split in parts.items():
        by_type.setdefault(str(getattr(split.features[column], "dtype", split.features[column])), name)
    by_type.pop("null", None)  # a file in which the column is empty
    if len(by_type) > 1:
        shown = ", ".join(f"{kind} in {name}" for kind, name in by_type.items())
        raise ExperimentError(f"{place}: column {column!r} is {shown}; write it alike in all files")

"""Local files and folders: tables in CSV, JSON and Parquet, image folders, and what `datasets` has saved.

A folder may hold a training and a test split. They are recognized as in `datasets`, by the names of folders
and files: the words in `SPLIT_WORDS`, alone or set off by spaces, digits, ``-``, ``_`` or ``.``.
"""

import functools
import glob
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets

from fedistill.config.task import Source
from fedistill.data.formats import endings, is_image, visible_files
from fedistill.data.quiet import first_line, quietly
from fedistill.data.several_files import find_files, join_files, title
from fedistill.data.table import Split, place_of
from fedistill.data.tables import read_csv, read_json
from fedistill.errors import ExperimentError, RuntimeFailure

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""The words by which `datasets` recognizes splits; here, upper and lower case are the same."""
_FOLDERS = {
    "imagefolder": "a folder with one subfolder of images for each class",
    "save_to_disk": "a folder that `save_to_disk` of `datasets` has written",
}
_EMPTY = (
    "corresponds to no data",
    "BatchSize must be greater than 0",
    "Empty CSV file",
    "data_files are invalid",
)
"""Parts of the readers' error messages for a file without rows or a folder without files."""

_TEST_SPLITS = ("test", "validation")
"""What training folders are tested on, the first choice first."""

_Parts = dict[str, Callable[[], Split]]
"""What reads each split of a path; under the empty name alone if the path has no splits."""
_Opened = dict[str, tuple[str, _Parts]]
"""Paths of one setting with what reads them, by name."""


def read_files(source: Source, *, test: bool = True) -> tuple[Split, Split | None, tuple[str, str]]:
    """Read the training data of a source with a ``format`` and, unless ``test`` is false, its test data.

    Returns both, and their names for messages. Several files of one split have the column `FILE_COLUMN`, with
    the name of each row's file.

    The test data are those of ``source.test``; if it is not given, they are the test splits of the training
    folders, or else their validation splits. They are None if there are none of these, or not to be read.

    Raises:
        ExperimentError: a path does not exist, cannot be read, or lacks the split that is needed; or several
            files do not fit together.
    """
    assert source.train is not None
    place = place_of(source)
    paths = _open(source, source.train, f"{place}.train")
    train = _read(source, source.train, f"{place}.train", paths, ("", "train"))
    if train is None:
        splits = ", ".join(dict.fromkeys(split for _, parts in paths.values() for split in parts))
        raise ExperimentError(
            f"{place}.train = {title(source.train)}: its splits are {splits}, and none is for training: name"
            f" the training data with {place}.train and the test data with {place}.test"
        )
    if not test:
        return train[0], None, (train[1], "")
    if source.test is None:
        found = _read(source, source.train, f"{place}.train", paths, _TEST_SPLITS)
    else:
        paths = _open(source, source.test, f"{place}.test")
        found = _read(source, source.test, f"{place}.test", paths, ("", *_TEST_SPLITS))
        if found is None:
            raise ExperimentError(
                f"{place}.test = {title(source.test)}: it has a training split, but no test split"
            )
    held, name = (None, "") if found is None else found
    return train[0], held, (train[1], name)


def read_split(source: Source, wanted: tuple[str, ...], key: str) -> tuple[Split, str] | None:
    """Read the first of the wanted splits that ``source.train`` has; "" stands for data without splits.

    Returns it and its name for messages, in which ``key`` stands for the setting, or None if it has none of
    these.

    Raises:
        ExperimentError: as `read_files`.
    """
    assert source.train is not None
    return _read(source, source.train, key, _open(source, source.train, key), wanted)


def has_test_split(source: Source) -> bool:
    """Return whether a source with a ``format`` has test data of its own, without reading any.

    Raises:
        ExperimentError: a path of the training data does not exist.
    """
    assert source.train is not None
    opened = _open(source, source.train, f"{place_of(source)}.train").values()
    return source.test is not None or any(_first(parts, _TEST_SPLITS) for _, parts in opened)


def read_table(path: str, form: str, key: str) -> Split:
    """Read one file of a format; ``key`` is the setting that names it.

    Raises:
        ExperimentError: it does not exist or cannot be read.
    """
    source = Source.model_validate({"format": form, "train": path})
    return _load(source, path, _parts(source, path, key), key, "")[0]


def split_of(name: str) -> str | None:
    """Return the split that the name of a file or folder stands for, or None."""
    for split, words in SPLIT_WORDS.items():
        if re.search(rf"(^|[-._ 0-9])({'|'.join(words)})([-._ 0-9]|$)", name, re.IGNORECASE):
            return split
    return None


def _first(parts: _Parts, wanted: tuple[str, ...]) -> str | None:
    return next((split for split in wanted if split in parts), None)


def _open(source: Source, paths: str | list[str], key: str) -> _Opened:
    return {name: (path, _parts(source, path, key)) for name, path in find_files(paths, key).items()}


def _read(
    source: Source, paths: str | list[str], key: str, opened: _Opened, wanted: tuple[str, ...]
) -> tuple[Split, str] | None:
    """Read the first wanted split of each path; return all rows and a name for messages.

    None stands for paths of which none has such a split.
    """
    chosen = {name: _first(parts, wanted) for name, (_, parts) in opened.items()}
    lacking = [opened[name][0] for name, split in chosen.items() if split is None]
    if len(lacking) == len(opened):
        return None
    if lacking:
        raise ExperimentError(
            f"{key}: {lacking[0]} has no {wanted[-1]} split, but others have: name the files of each split"
        )
    loaded = {
        name: _load(source, *opened[name], key, split) for name, split in chosen.items() if split is not None
    }
    if len(loaded) == 1:
        return loaded.popitem()[1]
    return join_files({name: split for name, (split, _) in loaded.items()}, key), title(paths)


def _load(source: Source, path: str, parts: _Parts, key: str, split: str) -> tuple[Split, str]:
    """Read one split; return it and its name for messages."""
    try:
        with quietly():
            return parts[split](), f"{path}, split {split}" if split else path
    except ExperimentError as error:
        raise ExperimentError(f"{key} = {path}: {error}") from None
    except RuntimeFailure:
        raise
    except Exception as error:  # each reader raises errors of its own
        cause = error.__cause__ or error
        if any(words in str(cause) for words in _EMPTY):
            raise ExperimentError(f"{key} = {path}: has no rows") from None
        raise ExperimentError(
            f"{key} = {path}: cannot be read as {source.format} ({first_line(cause)})"
        ) from None


def _parts(source: Source, path: str, key: str) -> _Parts:
    """Return what reads each split of a path; nothing is read before a split is asked for."""
    form, found = source.format or "", Path(path)
    if not found.exists():
        raise ExperimentError(f"{key} = {path}: there is no such {'folder' if form in _FOLDERS else 'file'}")
    if form in _FOLDERS and not found.is_dir():
        raise ExperimentError(f"{key} = {path}: format {form!r} needs {_FOLDERS[form]}")
    try:
        if form == "save_to_disk":
            return _parts_of_saved(found)
        if form == "imagefolder":
            return _parts_of_images(found)
        files = _splits_of_tables(found, form) if found.is_dir() else {"": [found]}
    except ExperimentError as error:
        raise ExperimentError(f"{key} = {path}: {error}") from None
    return {split: functools.partial(_read_tables, source, paths) for split, paths in files.items()}


def _parts_of_saved(folder: Path) -> _Parts:
    try:
        with quietly():
            saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # the library raises errors of many kinds
        raise ExperimentError(f"cannot be read as save_to_disk ({first_line(error)})") from None

    def part(split: str) -> Callable[[], Split]:
        return lambda: saved[split]

    if isinstance(saved, datasets.Dataset):
        return {"": lambda: saved}
    return {split: part(split) for split in saved}


def _parts_of_images(folder: Path) -> _Parts:
    images = [path for path in visible_files(folder) if is_image(path)]
    if not images:
        raise ExperimentError("there are no images in it")
    tables = any(folder.rglob("metadata.*"))
    splits: dict[str, dict[Path, None]] = {}
    outside: list[Path] = []
    for image in images:
        # Without a table of labels, the innermost folder names the class, even a class called "train".
        names = image.relative_to(folder).parts[: -1 if tables else -2]
        depth = next((depth for depth, name in enumerate(names) if split_of(name)), None)
        if depth is None:
            outside.append(image)
        else:
            split = split_of(names[depth])
            assert split is not None
            splits.setdefault(split, {})[folder.joinpath(*names[: depth + 1])] = None
    if not splits:
        if not tables and all(split_of(image.parent.name) for image in images):
            named = ", ".join(dict.fromkeys(image.parent.name for image in images))
            raise ExperimentError(
                f"its images lie in folders named for splits ({named}), not for classes: inside of each,"
                " make one subfolder for each class"
            )
        return {"": functools.partial(_read_images, [folder], tables)}
    if outside:
        raise ExperimentError(
            f"{len(outside)} of its images, such as {outside[0].relative_to(folder)}, belong to none of its"
            f" splits ({', '.join(splits)}): name the folders to use with task.train and task.test"
        )
    return {
        split: functools.partial(_read_images, list(folders), tables) for split, folders in splits.items()
    }


def _read_images(folders: list[Path], tables: bool) -> Split:
    # By default, the reader drops the labels of a folder with a single class.
    options = {} if tables else {"drop_labels": False}
    # With the reader's own pattern, a file called test_1.png would become part of the test set.
    patterns = [f"{glob.escape(str(folder))}/**" for folder in folders]
    return datasets.load_dataset("imagefolder", data_files={"train": patterns}, split="train", **options)


def _splits_of_tables(folder: Path, form: str) -> dict[str, list[Path]]:
    """Return the files of each split; all of them under the empty name if nothing names a split.

    As in `datasets`, names of folders come before names of files, and files that no split names are left out.
    """
    files = [path for path in visible_files(folder) if path.name.lower().endswith(tuple(endings(form)))]
    if not files:
        raise ExperimentError(f"there are no {form} files in it")
    by_folder = {path: [split_of(name) for name in path.relative_to(folder).parts[:-1]] for path in files}
    by_name = {path: [split_of(path.name)] for path in files}
    for found in (by_folder, by_name):
        parts: dict[str, list[Path]] = {}
        for path, splits in found.items():
            if split := next(filter(None, splits), None):
                parts.setdefault(split, []).append(path)
        if parts:
            return parts
    return {"": files}


def _read_tables(source: Source, paths: list[Path]) -> Split:
    if source.format == "parquet":
        patterns = [glob.escape(str(path)) for path in paths]
        return datasets.load_dataset("parquet", data_files={"train": patterns}, split="train")
    read: Any = {"csv": read_csv, "json": read_json}[source.format or ""]
    return datasets.concatenate_datasets([read(path, source) for path in paths])

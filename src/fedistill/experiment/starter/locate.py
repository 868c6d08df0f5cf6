"""Where data are, and of which format: what an experiment's table of a source says of them."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

from fedistill.config.section import RawTable
from fedistill.data.files import split_of
from fedistill.data.formats import endings, format_of, is_image, visible_files
from fedistill.data.several_files import find_files, short_title
from fedistill.data.sources import NAMES
from fedistill.errors import ExperimentError, nearest

_HUB = "hf:"
_PART = re.compile(r"(part|parts|shard|chunk|batch|data|file)?[-_ .]?\d+([-_ .]of[-_ .]\d+)?", re.IGNORECASE)
"""Names of files that are one data set, cut by size; others are taken for names of sites."""

Paths = str | list[str]


@dataclass(frozen=True)
class Located:
    """Data that exist, by their names alone; nothing has been read.

    Attributes:
        source: ``name``, or ``format``, ``train`` and perhaps ``test``, with paths as they were typed.
        stem: what a file about these data may be called.
        parts: whether several files are parts of one data set, and not a site each.
    """

    source: RawTable
    stem: str
    parts: bool = False

    @property
    def title(self) -> str:
        """What the data are called, without the folders above them."""
        if "name" in self.source:
            return str(self.source["name"])
        train = self.source["train"]
        return short_title(train if isinstance(train, list) else os.path.abspath(train))

    def seen_from(self, folder: Path) -> RawTable:
        """Return the source with paths that are relative to a folder, as a file in it names them."""
        return {
            key: _seen_from(value, folder) if key in ("train", "test") else value
            for key, value in self.source.items()
        }


def locate(data: Sequence[str]) -> Located:
    """Return where data are.

    Args:
        data: a file, a folder, a pattern, several of these, or ``hf:OWNER/NAME``.

    Raises:
        ExperimentError: they do not exist, or are of no format that can be read, or of several.
    """
    first = data[0]
    if first.startswith(_HUB):
        if len(data) > 1:
            raise ExperimentError(f"{first}: name one data set of the hub, or files alone")
        return Located({"name": first}, _stem(first.removeprefix(_HUB).partition("@")[0]))
    if first in NAMES and not Path(first).exists():
        raise ExperimentError(
            f"{first} is a data set that fedistill has by name, and no file here: write an example with"
            f" fedistill init --example digits, and set name = {first!r} in its table [task]"
        )
    found = find_files(list(data), "DATA")
    forms = {path: _format_of(path) for path in found.values()}
    if len(set(forms.values())) > 1:
        examples = " and ".join(
            f"{path} ({form})" for form, path in {forms[path]: path for path in forms}.items()
        )
        raise ExperimentError(f"DATA: {examples} are of several formats: name data of one")
    form = next(iter(forms.values()))
    if len(found) == 1:
        return _one(form, next(iter(found.values())))
    return _several(form, data, found)


def _format_of(path: str) -> str:
    try:
        return format_of(Path(path))
    except ExperimentError as error:
        guess = _neighbour(Path(path))
        raise ExperimentError(f"{path}: {error}{guess and '.'}{guess}") from None


def _neighbour(path: Path) -> str:
    if path.exists() or not path.parent.is_dir():
        return ""
    return nearest(path.name, sorted(other.name for other in path.parent.iterdir()))


def _one(form: str, path: str) -> Located:
    """Return one file or folder; a folder that has a file or folder for each site becomes these."""
    folder = Path(path)
    sites = _sites_in(form, folder) if folder.is_dir() else []
    if not sites:
        return Located({"format": form, "train": path}, _stem(path))
    pattern = folder / f"*{sites[0].suffix if sites[0].is_file() else ''}"
    exact = sorted(glob(str(pattern))) == sorted(map(str, sites))
    return Located({"format": form, "train": str(pattern) if exact else list(map(str, sites))}, _stem(path))


def _sites_in(form: str, folder: Path) -> list[Path]:
    """Return the files or folders in a folder that have one site's data each, or none."""
    files = visible_files(folder)
    if form == "save_to_disk" or any(
        split_of(part) for file in files for part in file.relative_to(folder).parts
    ):
        return []
    if form == "imagefolder":
        return _sites_of_images(folder, files)
    tables = [file for file in files if file.name.lower().endswith(tuple(endings(form)))]
    alone = all(file.parent == folder and file.suffix == tables[0].suffix for file in tables)
    return tables if alone and len(tables) > 1 and not _are_parts(tables) else []


def _sites_of_images(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Return the folders two levels above all images, if several of them have a folder of the same class."""
    images = [file.relative_to(folder).parts for file in files if is_image(file)]
    if len(images) < len(files) or any(len(parts) != 3 for parts in images):
        return []
    classes = {parts[:2] for parts in images}
    several = len({name for _, name in classes}) < len(classes)
    return [folder / site for site in dict.fromkeys(parts[0] for parts in images)] if several else []


def _several(form: str, data: Sequence[str], found: dict[str, str]) -> Located:
    splits = {path: split_of(Path(path).stem) for path in found.values()}
    train = [path for path, split in splits.items() if split == "train"]
    tested = [path for split in ("test", "validation") for path in splits if splits[path] == split]
    stem = _stem(os.path.commonpath([Path(path).absolute().parent for path in found.values()]))
    if train and len(train) < len(splits) and all(splits.values()):
        test = [path for path in tested if splits[path] == splits[tested[0]]]
        return Located({"format": form, "train": _plain(train), "test": _plain(test)}, stem, len(train) > 1)
    typed = data[0] if len(data) == 1 and has_magic(data[0]) else list(found.values())
    return Located(
        {"format": form, "train": typed}, stem, _are_parts([Path(path) for path in found.values()])
    )


def _are_parts(files: Sequence[Path]) -> bool:
    return all(_PART.fullmatch(file.name.partition(".")[0]) for file in files)


def _plain(paths: list[str]) -> Paths:
    return paths[0] if len(paths) == 1 else paths


def _stem(path: str) -> str:
    name = Path(path).absolute().name.partition(".")[0]
    return re.sub(r"[^\w-]+", "-", name).strip("-") or "experiment"


def _seen_from(paths: Paths, folder: Path) -> Paths:
    if isinstance(paths, list):
        return [str(_seen_from(path, folder)) for path in paths]
    if Path(paths).is_absolute() and not Path(paths).is_relative_to(folder.absolute()):
        return Path(paths).as_posix()
    return Path(os.path.relpath(paths, folder)).as_posix()

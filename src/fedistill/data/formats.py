"""Formats of local files: how each is recognised, and which files of a folder belong to it."""

from collections.abc import Iterator
from pathlib import Path

from fedistill.errors import ExperimentError

ENDINGS = {"csv": (".csv", ".tsv", ".txt"), "json": (".json", ".jsonl", ".ndjson"), "parquet": (".parquet",)}
_PACKED = (".gz", ".bz2", ".zst", ".lz4")
_OF_SAVED = ("dataset_info.json", "dataset_dict.json")
"""A folder that `save_to_disk` has written holds one of these."""


def endings(form: str) -> Iterator[str]:
    """Yield the endings that the names of files of a table's format may have, in lower case."""
    for ending in ENDINGS[form]:
        yield from (ending, *(ending + packed for packed in _PACKED))


def visible_files(folder: Path) -> list[Path]:
    """Return the files in a folder and its subfolders, in order, without hidden ones."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)
    ]


def is_image(path: Path) -> bool:
    """Whether the name of a file ends like that of an image."""
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder  # takes as long as torch

    return path.suffix.lower() in ImageFolder.EXTENSIONS


def format_of(path: Path) -> str:
    """Return the ``format`` of a file or folder, by names alone.

    Raises:
        ExperimentError: it does not exist, or is of no format that can be read; the message continues the
            path.
    """
    if not path.exists():
        raise ExperimentError("there is no such file or folder")
    if not path.is_dir():
        return _of_file(path)
    if any((path / name).is_file() for name in _OF_SAVED):
        return "save_to_disk"
    files = visible_files(path)
    if any(map(is_image, files)):
        return "imagefolder"
    found = {form for form in ENDINGS for file in files if file.name.lower().endswith(tuple(endings(form)))}
    if len(found) > 1:
        raise ExperimentError(
            f"it holds files of several formats ({', '.join(sorted(found))}): name one of them"
        )
    if not found:
        raise ExperimentError(f"it holds neither images nor tables: {_known()}")
    return found.pop()


def _of_file(path: Path) -> str:
    name = path.name.lower()
    for form in ENDINGS:
        if name.endswith(tuple(endings(form))):
            return form
    if is_image(path):
        raise ExperimentError("it is one image: name the folder that has one subfolder for each class")
    raise ExperimentError(f"its ending tells no format that can be read: {_known()}")


def _known() -> str:
    known = ", ".join(ending for endings in ENDINGS.values() for ending in endings)
    return f"save a table as one of {known}, or put the images of each class into a folder of their own"

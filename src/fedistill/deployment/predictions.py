"""What a model makes of a file: a class and probabilities per sample, and accuracy where there are labels."""

import csv
import io
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from fedistill.config.section import RawTable
from fedistill.data.unseen import Unseen, read_unseen
from fedistill.deployment.classifier import Classifier
from fedistill.deployment.inputs import decoded
from fedistill.errors import ExperimentError
from fedistill.state import write_file

_DIGITS = 6
"""Significant digits of probabilities in text."""
Cells = list[int] | list[float] | list[str] | list[str | None]
"""A column of what is written."""


class Summary(TypedDict):
    """What is known of predictions together.

    Attributes:
        file: what was classified.
        labelled: how many samples have a label that the model knows; ``accuracy``: of these, or None if
            there are none.
        unknown: how many have each other label.
    """

    file: str
    samples: int
    classes: list[str]
    labelled: int
    accuracy: float | None
    unknown: dict[str, int]


@dataclass(frozen=True)
class Predictions:
    """The answers of a model for the samples of a file.

    Attributes:
        probabilities: float64 (n, C).
        samples: what was classified; its inputs are not needed any more.
    """

    classes: tuple[str, ...]
    probabilities: Tensor
    samples: Unseen

    @property
    def predicted(self) -> list[str]:
        """The most probable class of each sample."""
        return [self.classes[place] for place in self.probabilities.argmax(dim=1).tolist()]

    def summary(self) -> Summary:
        labels = self.samples.labels or []
        known = [
            (label, guess)
            for label, guess in zip(labels, self.predicted, strict=False)
            if label in self.classes
        ]
        others = Counter(label for label in labels if label is not None and label not in self.classes)
        right = sum(label == guess for label, guess in known)
        return {
            "file": self.samples.where,
            "samples": len(self.probabilities),
            "classes": list(self.classes),
            "labelled": len(known),
            "accuracy": right / len(known) if known else None,
            "unknown": dict(others.most_common()),
        }

    def columns(self) -> dict[str, Cells]:
        """Return what is written: where each sample is, its class, its label if known, and probabilities."""
        found: dict[str, Cells] = {}
        if self.samples.files is None:
            found["row"] = self.samples.rows.tolist()
        else:
            found["file"] = self.samples.files
        found["predicted"] = self.predicted
        if self.samples.labels is not None:
            found["label"] = self.samples.labels
        for place, name in enumerate(self.classes):
            found[f"p({name})"] = self.probabilities[:, place].tolist()
        return found

    def to_csv(self) -> str:
        """Return a table with a header; probabilities have six significant digits."""
        columns = self.columns()
        sink = io.StringIO(newline="")
        writer = csv.writer(sink, lineterminator="\n")
        writer.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            writer.writerow(f"{cell:.{_DIGITS}g}" if isinstance(cell, float) else cell for cell in row)
        return sink.getvalue()

    def as_json(self) -> RawTable:
        """Return the summary with the key ``predictions``: one object per sample."""
        columns = self.columns()
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return {**self.summary(), "predictions": rows}

    def write(self, path: Path) -> None:
        """Write a file in the format that its ending names: ``.csv``, ``.parquet`` or ``.json``.

        Raises:
            ExperimentError: it ends otherwise, or cannot be written.
        """
        check_ending(path)
        if path.suffix.lower() == ".parquet":
            sink = io.BytesIO()
            pq.write_table(pa.table(self.columns()), sink)
            content = sink.getvalue()
        else:
            as_csv = path.suffix.lower() == ".csv"
            text = self.to_csv() if as_csv else json.dumps(self.as_json(), ensure_ascii=False)
            content = text.encode()
        try:
            write_file(path, content)
        except OSError as error:
            raise ExperimentError(f"--out {path}: cannot be written ({error})") from None


def check_ending(path: Path) -> None:
    """Raise `ExperimentError` if no format of predictions has this ending."""
    if path.suffix.lower() not in (".csv", ".parquet", ".json"):
        raise ExperimentError(f"--out {path}: must end in .csv, .parquet or .json, which tells the format")


def predict_file(model: Classifier, path: str, settings: RawTable) -> Predictions:
    """Classify the samples of a table (CSV, JSON, Parquet), a folder of images or of `datasets`, or an image.

    Args:
        settings: of ``[task]``, that say how the file is read; see `fedistill.data.unseen`.

    Raises:
        ExperimentError: the file cannot be read, or has no samples such as the model was trained on.
    """
    samples = read_samples(model, path, settings)
    return Predictions(model.classes, model.predict_prepared(samples.inputs), samples)


def read_samples(model: Classifier, path: str, settings: RawTable) -> Unseen:
    """Read the samples of a file as this model takes them; see `predict_file`."""
    usual = model.description.columns
    return read_unseen(
        path,
        settings,
        model.signature.kind,
        (usual.input, usual.label),
        model.features,
        {
            "column_names": None if usual.names is None else list(usual.names),
            "missing": list(usual.missing),
            "relabel": usual.relabel,
        },
        lambda cells, rows, where, given: decoded(cells, rows, where, given, model.description),
    )

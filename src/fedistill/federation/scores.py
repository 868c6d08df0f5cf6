"""What a model has scored on some samples: numbers alone, computed where the samples are.

From a client nothing else returns of an evaluation. It crosses as JSON, and nothing in it is trusted.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from fedistill.config.section import Raw, RawTable
from fedistill.errors import FrameError
from fedistill.federation.metrics import ACCURACY, Metric
from fedistill.training.loop import predict

Values = dict[str, float | None]
"""A value by metric; None where it is undefined for the samples."""
_PLACES = {"everywhere", "own"}
Matrix = list[list[int]]
"""A confusion matrix: for each true class (C,), samples by the class that the model names (C,)."""


@dataclass(frozen=True)
class Scores:
    """The scores of one model, at a client or at the server.

    Attributes:
        correct: right answers on the global test set by class (C,); empty if it was not asked about it.
        everywhere: metrics on the global test set, accuracy not among them.
        own: metrics on the samples that the client has held out, accuracy among them; or, if nobody holds out
            any, on the global test set, its classes weighted as in the client's private data.
        confusion: confusion matrices on ``everywhere`` and ``own`` samples, if they are asked for.
    """

    correct: list[int] = field(default_factory=list)
    everywhere: Values = field(default_factory=dict)
    own: Values = field(default_factory=dict)
    confusion: dict[str, Matrix] = field(default_factory=dict)

    def beyond_counts(self) -> RawTable:
        """Return all but ``correct`` for JSON, without what is empty."""
        parts = {"everywhere": self.everywhere, "own": self.own, "confusion": self.confusion}
        return {key: part for key, part in parts.items() if part}

    @classmethod
    def of_json(cls, correct: Sequence[int], beyond: RawTable) -> "Scores":
        """Return the scores of which these are the counts, and what `beyond_counts` returned."""
        return cls(list(correct), **beyond)

    def encode(self) -> bytes:
        """Return all but ``correct`` as the bytes that cross."""
        return json.dumps(self.beyond_counts(), separators=(",", ":")).encode()


@dataclass(frozen=True)
class Asked:
    """What an evaluation asks for, against which its answer is checked.

    Attributes:
        tested: samples of the global test set by class (C,), or empty if they are not asked about.
        metrics: besides accuracy.
        confusion: whether confusion matrices are asked for.
    """

    tested: Sequence[int]
    classes: int
    metrics: Sequence[Metric]
    confusion: bool

    def longest(self) -> int:
        """Return how many characters no scores reach, or numbers no counts: more than they need."""
        matrices = len(_PLACES) * 20 * self.classes**2 if self.confusion else 0
        return 1_000 + 12 * self.classes + len(_PLACES) * 100 * (1 + len(self.metrics)) + matrices

    def scores(self, counts: Raw, beyond: Raw) -> Scores:
        """Return the scores that a client has sent.

        Args:
            counts: right answers by class.
            beyond: what `Scores.encode` wrote, as bytes or a string; empty for nothing.

        Raises:
            FrameError: they are not scores, or impossible ones.
        """
        if not (isinstance(counts, list) and len(counts) == len(self.tested)) or not all(
            type(right) is int and 0 <= right <= samples
            for right, samples in zip(counts, self.tested, strict=True)
        ):
            raise FrameError(f"{counts!r} of {list(self.tested)} samples right")
        if not isinstance(beyond, str | bytes) or len(beyond) > self.longest():
            raise FrameError("scores that are not JSON, or too long")
        try:
            found = json.loads(beyond) if beyond else {}
        except (ValueError, RecursionError):
            raise FrameError("scores that are not JSON") from None
        if not isinstance(found, dict) or found.keys() - {*_PLACES, "confusion"}:
            raise FrameError("scores without the parts of scores")
        for part in _PLACES:
            self._check_values(part, found.get(part, {}))
        self._check_confusion(found.get("confusion", {}))
        return Scores.of_json(counts, found)

    def _check_values(self, part: str, values: Raw) -> None:
        bounds = {metric.name: (metric.least, metric.most) for metric in self.metrics}
        if part == "own":
            bounds[ACCURACY] = 0.0, 1.0
        if not isinstance(values, dict) or values.keys() - bounds.keys():
            raise FrameError("scores by metrics that were not asked for")
        for name, value in values.items():
            least, most = bounds[name]
            number = isinstance(value, float) and np.isfinite(value)
            if value is not None and not (number and least <= value <= most):
                raise FrameError(f"{name} = {value!r}")

    def _check_confusion(self, matrices: Raw) -> None:
        if not isinstance(matrices, dict) or matrices.keys() - (_PLACES if self.confusion else set()):
            raise FrameError("confusion matrices that were not asked for")
        for matrix in matrices.values():
            rows = matrix if isinstance(matrix, list) else []
            square = len(rows) == self.classes and all(
                isinstance(row, list) and len(row) == self.classes for row in rows
            )
            if not square or not all(
                type(count) is int and 0 <= count < 2**53 for row in rows for count in row
            ):
                raise FrameError("a confusion matrix that is none")


@dataclass(frozen=True)
class Answers:
    """A model's answers to some samples.

    Attributes:
        logits: (n, C).
        labels: the true classes (n,).
    """

    logits: Tensor
    labels: Tensor

    @classmethod
    def of(cls, model: nn.Module, inputs: Tensor, labels: Tensor, batch_size: int) -> "Answers":
        """Ask a model about samples (n, ...) with these labels (n,).

        Raises:
            TrainingError: an answer is NaN or infinite.
        """
        return cls(predict(model, inputs, batch_size), labels)

    def correct_by_class(self) -> Tensor:
        """Count the samples of each class that are answered rightly, int64 (C,)."""
        right = self.logits.argmax(dim=1) == self.labels
        return torch.bincount(self.labels[right], minlength=self.logits.shape[1])

    def accuracy(self) -> float:
        return float(self.correct_by_class().sum()) / len(self.labels)

    def confusion(self) -> Matrix:
        """Count the samples of each class by the class that the model names."""
        classes = self.logits.shape[1]
        places = self.labels * classes + self.logits.argmax(dim=1)
        matrix: Matrix = torch.bincount(places, minlength=classes**2).view(classes, classes).tolist()
        return matrix

    def values(self, metrics: Sequence[Metric], weights: Tensor | None = None) -> Values:
        """Return the value of each metric; samples of weight 0 do not count.

        Args:
            weights: of the samples, float64 (n,), or None if all count alike.
        """
        counting = torch.ones(len(self.labels), dtype=torch.bool) if weights is None else weights > 0
        if not metrics or not counting.any():
            return {metric.name: None for metric in metrics}
        probabilities = self.logits[counting].double().softmax(dim=1).numpy()
        labels = self.labels[counting].numpy()
        given = None if weights is None else weights[counting].numpy()
        return {metric.name: metric.measure(probabilities, labels, given) for metric in metrics}

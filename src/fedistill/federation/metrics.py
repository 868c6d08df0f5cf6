"""Metrics besides accuracy, from a model's probabilities and the true labels of some samples.

All but the calibration error are scikit-learn's, which fedistill needs anyway: exact, and for samples of
unequal weight. It is imported once one is computed. Where a class is absent, each says what it does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedistill.config.plugins import named
from fedistill.errors import ExperimentError, TrainingError, nearest

Probabilities = NDArray[np.float64]
"""(n, C); each row adds up to 1."""
Labels = NDArray[np.int64]
Weights = NDArray[np.float64] | None
Better = Literal["higher", "lower"]

ACCURACY, CONFUSION = "accuracy", "confusion"
"""Of the choices of `evaluate.metrics`, one that is always there, and one that is no number."""
BINS = 15
"""Of confidence, in the expected calibration error."""


@dataclass(frozen=True)
class Metric:
    """A number that says how well a model's probabilities fit the labels.

    Attributes:
        measure: returns it, or None where it is undefined, from probabilities (n, C), labels (n,) and weights
            (n,) of at least one sample.
        better: which of two values is the better one.
        least, most: the values between which it lies.
    """

    name: str
    measure: Callable[[Probabilities, Labels, Weights], float | None]
    better: Better = "higher"
    least: float = 0.0
    most: float = 1.0


def balanced_accuracy(probabilities: Probabilities, labels: Labels, weights: Weights = None) -> float:
    """Return the mean share of right answers over the classes that the labels have."""
    from sklearn.metrics import recall_score

    present, right = np.unique(labels), probabilities.argmax(axis=1)
    return float(recall_score(labels, right, labels=present, average="macro", sample_weight=weights))


def macro_f1(probabilities: Probabilities, labels: Labels, weights: Weights = None) -> float:
    """Return the mean F1 over the classes that labels or answers have; 0 for a class in only one of them."""
    from sklearn.metrics import f1_score

    right = probabilities.argmax(axis=1)
    return float(f1_score(labels, right, average="macro", sample_weight=weights, zero_division=0))


def auroc(probabilities: Probabilities, labels: Labels, weights: Weights = None) -> float | None:
    """Return the area under the ROC curve of one class against the others, the mean over classes.

    A class that no label has, or that all have, has no curve and is left out; None if that leaves none.
    """
    from sklearn.metrics import roc_auc_score

    present = np.unique(labels)
    if len(present) < 2:
        return None
    areas = [
        roc_auc_score(labels == one, probabilities[:, one], sample_weight=weights) for one in present.tolist()
    ]
    return float(np.mean(areas))


def calibration_error(probabilities: Probabilities, labels: Labels, weights: Weights = None) -> float:
    """Return the expected calibration error: how far confidence is from the share of right answers.

    Samples are put into 15 bins of equal width by the probability of their most likely class; it is the mean
    over bins of the absolute difference of the two, weighted by samples (Guo et al. 2017, arXiv 1706.04599).
    """
    confidence = probabilities.max(axis=1)
    surplus = confidence - (probabilities.argmax(axis=1) == labels)
    weight = np.ones(len(labels)) if weights is None else weights
    place = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    return float(np.abs(np.bincount(place, weight * surplus)).sum() / weight.sum())


def log_loss(probabilities: Probabilities, labels: Labels, weights: Weights = None) -> float:
    """Return the mean negative logarithm (base e) of the probability of the true class, at most 36.05."""
    from sklearn import metrics

    classes = np.arange(probabilities.shape[1])
    return float(metrics.log_loss(labels, probabilities, labels=classes, sample_weight=weights))


METRICS = {
    metric.name: metric
    for metric in (
        Metric("balanced-accuracy", balanced_accuracy),
        Metric("macro-f1", macro_f1),
        Metric("auroc", auroc),
        Metric("ece", calibration_error, "lower"),
        Metric("log-loss", log_loss, "lower", most=np.inf),
    )
}


def find_metrics(names: Sequence[str]) -> tuple[Metric, ...]:
    """Return the metrics with these names, without accuracy and confusion, which are counts.

    Raises:
        ExperimentError: there is no such metric, or a function of the user's own cannot be used.
    """
    known = [ACCURACY, *METRICS, CONFUSION]
    for name in names:
        if ":" not in name and name not in known:
            raise ExperimentError(
                f"evaluate.metrics: {name!r} is not one of {', '.join(known)} or"
                f" module:function.{nearest(name, known)}"
            )
    return tuple(
        METRICS[name] if name in METRICS else _own(name)
        for name in names
        if name not in (ACCURACY, CONFUSION)
    )


def _own(name: str) -> Metric:
    """Return the metric that a function of the user's own computes."""
    function = named("metric", name, "function")
    better: Better = getattr(function, "better", "higher")
    if better not in ("higher", "lower"):
        raise ExperimentError(f'metric {name!r}: its attribute `better` must be "higher" or "lower"')
    return Metric(name, partial(_measured_by, name, function), better, -np.inf, np.inf)


def _measured_by(
    name: str,
    function: Callable[[Probabilities, Labels], float | None],
    probabilities: Probabilities,
    labels: Labels,
    weights: Weights = None,
) -> float | None:
    """Return what a user's own function does; None if samples have weights, of which it knows nothing."""
    if weights is not None:
        return None
    found = function(probabilities.copy(), labels.copy())
    try:
        value = None if found is None else float(found)
    except (TypeError, ValueError):
        value = np.inf
    if value is not None and np.isinf(value):
        raise TrainingError(
            f"metric {name!r} returned {found!r}, but must return a number, or None where it has none"
        )
    return None if value is None or np.isnan(value) else value

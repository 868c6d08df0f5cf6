"""Each metric by hand, and against scikit-learn and torchmetrics on drawn answers."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics
from torchmetrics.functional.classification import (
    multiclass_auroc,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_recall,
)

from fedistill.errors import ExperimentError, TrainingError
from fedistill.federation.metrics import METRICS, find_metrics
from fedistill.federation.scores import Answers

# Three classes, of which the last never occurs: 3 of 4 right, one of class 0 taken for the last.
LABELS = np.array([0, 0, 0, 1])
PROBABILITIES = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.3, 0.2, 0.5], [0.1, 0.7, 0.2]])


def value(
    name: str,
    probabilities: np.ndarray = PROBABILITIES,
    labels: np.ndarray = LABELS,
    weights: np.ndarray | None = None,
) -> float | None:
    return METRICS[name].measure(probabilities, labels, weights)


def test_by_hand() -> None:
    assert value("balanced-accuracy") == pytest.approx((2 / 3 + 1) / 2)
    # F1 of class 0: precision 1, recall 2/3; of class 1: 1; of class 2, which is only named: 0.
    assert value("macro-f1") == pytest.approx((0.8 + 1 + 0) / 3)
    # Class 0 before the others: all three pairs; class 1: all three; class 2 has no curve.
    assert value("auroc") == 1.0
    assert value("log-loss") == pytest.approx(-np.log([0.8, 0.6, 0.3, 0.7]).mean())
    # Four bins of one sample each.
    assert value("ece") == pytest.approx((0.2 + 0.4 + 0.5 + 0.3) / 4)


def test_samples_in_one_bin_make_up_for_each_other() -> None:
    same = np.array([[0.75, 0.25]] * 4)
    assert value("ece", same, np.array([0, 0, 0, 1])) == pytest.approx(0)
    assert value("ece", same, np.array([0, 0, 1, 1])) == pytest.approx(0.25)


def test_a_sample_of_weight_two_is_two_samples() -> None:
    twice = np.array([0, 1, 1, 2, 3])
    for name in METRICS:
        weighted = value(name, weights=np.array([1.0, 2.0, 1.0, 1.0]))
        assert weighted == pytest.approx(value(name, PROBABILITIES[twice], LABELS[twice])), name


def test_without_two_classes_there_is_no_curve() -> None:
    assert value("auroc", PROBABILITIES[:3], LABELS[:3]) is None
    assert value("balanced-accuracy", PROBABILITIES[:3], LABELS[:3]) == pytest.approx(2 / 3)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 5), st.integers(20, 60), st.integers(0, 2**32 - 1))
def test_against_scikit_learn_and_torchmetrics(classes: int, samples: int, seed: int) -> None:
    """On drawn logits; the labels have each class, as torchmetrics counts absent ones otherwise."""
    drawn = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), drawn.integers(classes, size=samples - classes)])
    logits = torch.from_numpy(drawn.normal(size=(samples, classes)).astype(np.float32) * 2)
    answers = Answers(logits, torch.from_numpy(labels))
    found = answers.values(list(METRICS.values()))
    soft, truth = logits.double().softmax(dim=1), torch.from_numpy(labels)
    expected = {
        "balanced-accuracy": float(multiclass_recall(soft, truth, classes, average="macro")),
        "macro-f1": float(multiclass_f1_score(soft, truth, classes, average="macro")),
        "auroc": float(multiclass_auroc(soft, truth, classes, average="macro")),
        "ece": float(multiclass_calibration_error(soft, truth, classes, n_bins=15, norm="l1")),
        "log-loss": float(torch.nn.functional.cross_entropy(logits.double(), truth)),
    }
    assert found == pytest.approx(expected, abs=1e-6)
    assert answers.confusion() == multiclass_confusion_matrix(soft, truth, classes).tolist()
    assert answers.accuracy() == pytest.approx(sklearn_metrics.accuracy_score(labels, soft.argmax(dim=1)))
    assert found["balanced-accuracy"] == pytest.approx(
        sklearn_metrics.balanced_accuracy_score(labels, soft.argmax(dim=1))
    )


def test_samples_of_weight_nought_are_not_there() -> None:
    answers = Answers(torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1, 0]))
    few = Answers(answers.logits[:2], answers.labels[:2])
    metrics = list(METRICS.values())
    assert answers.values(metrics, torch.tensor([1.0, 1.0, 0.0]).double()) == few.values(metrics)
    assert set(answers.values(metrics, torch.zeros(3).double()).values()) == {None}


OWN = """
def margin(probabilities, labels):
    chosen = probabilities[range(len(labels)), labels]
    probabilities[:] = 0
    return chosen.min()

def brier(probabilities, labels):
    return 0.5
brier.better = "lower"

def sometimes(probabilities, labels):
    return float("nan")

def wrong(probabilities, labels):
    return "much"

def sideways(probabilities, labels):
    return 0.5
sideways.better = "left"
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "measures.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("measures", None)


@pytest.mark.usefixtures("own")
def test_own_functions() -> None:
    margin, brier, sometimes, wrong = find_metrics(
        ["accuracy", *(f"measures:{name}" for name in ("margin", "brier", "sometimes", "wrong"))]
    )
    answers = Answers(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    assert answers.values([margin, METRICS["log-loss"]]) == {
        "measures:margin": pytest.approx(1 / (1 + np.exp(-1))),
        "log-loss": pytest.approx(np.log1p(np.exp([-2, -1])).mean()),
    }
    assert (margin.better, brier.better) == ("higher", "lower")
    assert answers.values([sometimes]) == {"measures:sometimes": None}
    # Of weights they know nothing.
    assert answers.values([margin], torch.tensor([1.0, 2.0]).double()) == {"measures:margin": None}
    with pytest.raises(
        TrainingError, match="metric 'measures:wrong' returned 'much', but must return a number"
    ):
        answers.values([wrong])
    with pytest.raises(ExperimentError, match='its attribute `better` must be "higher" or "lower"'):
        find_metrics(["measures:sideways"])
    with pytest.raises(ExperimentError, match=r"measures has no function 'magrin'\. Did you mean 'margin'"):
        find_metrics(["measures:magrin"])


def test_unknown_metrics_are_refused() -> None:
    with pytest.raises(
        ExperimentError,
        match=r"evaluate\.metrics: 'macro-f2' is not one of accuracy, .* Did you mean 'macro-f1'",
    ):
        find_metrics(["accuracy", "macro-f2"])

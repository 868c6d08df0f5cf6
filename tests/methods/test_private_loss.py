"""The loss on private labels against plain formulas, and that every method trains by it."""

import math
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedistill.config.schema import Experiment
from fedistill.config.training import NotTrue, Train
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client import client_state
from fedistill.methods.registry import METHODS
from fedistill.methods.shared.private_loss import private_loss
from fedistill.training.loop import predict
from fedistill.training.losses import label_loss, not_true
from helpers.runs import ready, run_serially

CLASSES = 4


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, other logits (b, C), and labels (b,)."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**30)))
    size = draw(st.integers(1, 6))
    logits, start = torch.randn(2, size, CLASSES, generator=generator) * draw(st.floats(0.1, 5))
    return logits, start, torch.randint(CLASSES, (size,), generator=generator)


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value - max(values)) for value in values]
    return [power / math.fsum(powers) for power in powers]


def loss_of(train: Train, logits: Tensor, labels: Tensor) -> float:
    return label_loss(train, labels, CLASSES)(logits, torch.arange(len(labels))).item()


@given(batches(), st.floats(0, 0.9))
def test_label_smoothing_against_a_plain_loop(batch: tuple[Tensor, Tensor, Tensor], share: float) -> None:
    logits, _, labels = batch
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        for place, p in enumerate(softmax(row)):
            target = share / CLASSES + (1 - share) * (place == label)
            total -= target * math.log(p)
    found = loss_of(Train(label_smoothing=share), logits, labels)
    assert found == pytest.approx(total / len(labels), rel=1e-3, abs=1e-5)


@given(batches())
def test_balanced_softmax_against_a_plain_loop(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    """``-log(n_y e^z_y / sum_c n_c e^z_c)`` (arXiv 2007.10740, equation 4)."""
    logits, _, labels = batch
    counts = [max(1, labels.tolist().count(label)) for label in range(CLASSES)]
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        terms = [count * math.exp(z) for count, z in zip(counts, row, strict=True)]
        total -= math.log(terms[label] / math.fsum(terms))
    found = loss_of(Train(loss="balanced-softmax"), logits, labels)
    assert found == pytest.approx(total / len(labels), rel=1e-3, abs=1e-5)


def test_balanced_softmax_by_hand() -> None:
    """Three samples of class 0 and one of 1: at equal logits, class 0 has 3/6 and the others 1/6 each."""
    loss = label_loss(Train(loss="balanced-softmax"), torch.tensor([0, 0, 0, 1]), CLASSES)
    zeros = torch.zeros(1, CLASSES)
    assert loss(zeros, torch.tensor([0])).item() == pytest.approx(math.log(2))
    assert loss(zeros, torch.tensor([3])).item() == pytest.approx(math.log(6))


def test_even_counts_make_it_cross_entropy() -> None:
    labels = torch.arange(CLASSES).repeat(3)
    logits = torch.randn(len(labels), CLASSES, generator=torch.Generator().manual_seed(0))
    plain, balanced = (loss_of(train, logits, labels) for train in (Train(), Train(loss="balanced-softmax")))
    assert plain == pytest.approx(balanced, rel=1e-6)


@given(batches(), st.floats(0.1, 3), st.floats(0.5, 4))
def test_not_true_against_a_plain_loop(
    batch: tuple[Tensor, Tensor, Tensor], beta: float, temperature: float
) -> None:
    logits, start, labels = batch
    total = 0.0
    for student, teacher, label in zip(logits.tolist(), start.tolist(), labels.tolist(), strict=True):
        others = [place for place in range(CLASSES) if place != label]
        p = softmax([student[place] / temperature for place in others])
        q = softmax([teacher[place] / temperature for place in others])
        total += sum(b * math.log(b / a) for a, b in zip(p, q, strict=True) if b > 0)
    settings = NotTrue(beta=beta, temperature=temperature)
    expected = beta * temperature**2 * total / len(labels)
    assert not_true(logits, start, labels, settings).item() == pytest.approx(expected, rel=2e-3, abs=1e-4)


@given(batches())
def test_not_true_leaves_the_true_class_alone(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, start, labels = batch
    logits = logits.clone().requires_grad_()
    not_true(logits, start, labels, NotTrue()).backward()  # type: ignore[no-untyped-call]  # in torch
    assert logits.grad is not None
    assert logits.grad.gather(1, labels[:, None]).eq(0).all()


def test_with_two_classes_there_is_nothing_to_preserve() -> None:
    logits = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    assert not_true(logits, -logits, torch.tensor([0, 1, 1]), NotTrue()).item() == 0


# --- in methods ---

OPTIONS: list[dict[str, Any]] = [
    {"loss": "balanced-softmax"},
    {"label_smoothing": 0.2},
    {"not_true": {"beta": 2.0, "temperature": 2.0}},
    {"loss": "balanced-softmax", "label_smoothing": 0.1, "not_true": {}},
]
TRAINED = (
    *("local", "server-alone", "fedavg", "fedprox", "fd", "fedmd"),
    *("dsfl", "cfd", "scarlet", "voting", "feddf"),
)


def arm_of(method: str, train: dict[str, Any], **changes: Any) -> tuple[Experiment, ReadyArm]:
    return ready(
        {
            "rounds": 2,
            "task": {
                "name": "digits",
                "clients": 3,
                "limit": 90,
                "public": 40,
                "partition": {"kind": "dirichlet", "alpha": 0.3},
            },
            "models": {"clients": ["mlp-s"], "server": "mlp-s"},
            "train": {"batch_size": 16, **train},
            "arms": [{"method": method}],
            **changes,
        }
    )


@cache
def plain_models(method: str) -> list[Tensor]:
    return models(method, {})


def models(method: str, train: dict[str, Any]) -> list[Tensor]:
    """The weights of all models after the last round."""
    wanted, arm = arm_of(method, train)
    run = run_serially(wanted, arm)
    views = run.records[-1].views
    assert all(math.isfinite(value) for value in views.values())
    states = [run.server, *(client_state(arm, client, saved) for client, saved in run.clients.items())]
    return [state.model.weights for state in states if hasattr(state, "model")]


@pytest.mark.parametrize(
    ("method", "option"),
    [
        pytest.param(
            *(method, option),
            id=f"{method}-{'+'.join(option)}",
            marks=[] if method in ("fedavg", "dsfl") or option is OPTIONS[-1] else [pytest.mark.long],
        )
        for method in TRAINED
        for option in OPTIONS
    ],
)
def test_every_method_trains_by_the_setting(method: str, option: dict[str, Any]) -> None:
    plain, other = plain_models(method), models(method, option)
    assert plain
    same = [torch.equal(one, two) for one, two in zip(plain, other, strict=True)]
    if method == "server-alone" and set(option) == {"not_true"}:
        assert all(same), "the control has nobody else's knowledge to keep"
    else:
        assert not any(same)


@pytest.mark.parametrize("method", TRAINED)
def test_beta_0_is_without_the_term(method: str) -> None:
    for one, two in zip(plain_models(method), models(method, {"not_true": {"beta": 0.0}}), strict=True):
        assert torch.equal(one, two)


def test_private_loss_is_its_parts_from_where_training_starts() -> None:
    option = {
        "loss": "balanced-softmax",
        "label_smoothing": 0.1,
        "not_true": {"beta": 0.5, "temperature": 3.0},
    }
    _, arm = arm_of("fedavg", option)
    client = arm.client(1, round=1)
    model: nn.Module = client.load(client.common_model())
    loss = private_loss(client, model)
    start = predict(model, client.inputs())
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    at = torch.tensor([3, 0, 5])
    logits = predict(model, client.inputs())[at]
    labels = client.data.labels
    counts = torch.bincount(labels, minlength=10).clamp(min=1)
    adjusted = (logits + counts.log()).log_softmax(dim=1)
    hot = torch.nn.functional.one_hot(labels[at], 10) * 0.9 + 0.01
    expected = -(hot * adjusted).sum(dim=1).mean()
    assert client.train.not_true is not None
    expected = expected + not_true(logits, start[at], labels[at], client.train.not_true)
    torch.testing.assert_close(loss(logits, at), expected)


def test_what_is_sent_is_the_models_own_softmax() -> None:
    """Balanced softmax is of training alone: predictions are not adjusted."""
    _, arm = arm_of("dsfl", {"loss": "balanced-softmax"})
    client = arm.client(0, round=1)
    state, sent = arm.method.client_step(arm.method.start_client(client), client, None)
    expected = predict(client.load(state.model), client.public_inputs()).softmax(dim=1)
    torch.testing.assert_close(sent.probs, expected)  # type: ignore[attr-defined,union-attr]  # as sent


def test_fd_sends_softmax_outputs_of_training_without_adjustment() -> None:
    """With a rate of nearly zero the model stays as it began, so the means are those of its own softmax."""
    _, arm = arm_of("fd", {"loss": "balanced-softmax", "optimizer": {"lr": 1e-12}})
    client = arm.client(0, round=1)
    begun = arm.method.start_client(client)
    _, sent = arm.method.client_step(begun, client, None)
    probs = predict(client.load(begun.model), client.inputs()).softmax(dim=1)
    for label in client.data.labels.unique():
        expected = probs[client.data.labels == label].mean(dim=0)
        torch.testing.assert_close(sent.means[label], expected)  # type: ignore[attr-defined,union-attr]  # as sent


def test_balanced_softmax_helps_under_strong_skew() -> None:
    """The server's labels are better by far where clients' outputs do not repeat their class shares."""
    found = {}
    for loss in ("cross-entropy", "balanced-softmax"):
        task = {"name": "digits", "clients": 10, "public": 400}
        wanted, arm = arm_of(
            "dsfl",
            {"loss": loss, "optimizer": {"lr": 0.05, "momentum": 0.9}},
            rounds=4,
            task={**task, "partition": {"kind": "dirichlet", "alpha": 0.1}},
            models={"clients": ["cnn-s"], "server": "cnn-s"},
            evaluate={"every": 4},
            arms=[{"method": "dsfl", "aggregation": "dawid-skene", "distill_epochs": 2}],
        )
        found[loss] = run_serially(wanted, arm).records[-1].views["server@global"]
    assert found["balanced-softmax"] > found["cross-entropy"] + 0.2


def test_the_methods_tested_are_all_that_were_there() -> None:
    assert set(TRAINED) <= set(METHODS)

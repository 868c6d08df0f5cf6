"""Models that are trained together against the same ones trained one by one."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedistill.config.training import ResolvedTrain, Train
from fedistill.models.registry import build_model, model_names
from fedistill.models.signature import Signature
from fedistill.training.cost import Cost, counting
from fedistill.training.loop import fit
from fedistill.training.losses import label_loss
from fedistill.training.model_state import flatten, unflatten
from fedistill.training.optimizers import make_optimizer
from fedistill.training.stacked import Trainee, fit_together, is_stackable, not_stacked

DIGITS = Signature("image", (1, 8, 8), 10, 0)
COLOURS = Signature("image", (3, 5, 4), 4, 0)
TEXTS = Signature("text", (12,), 5, 30)
ROWS = Signature("table", (6,), 5, 0)
STACKABLE = [
    ("mlp-s", DIGITS),
    ("mlp-s@9", COLOURS),
    ("logistic", ROWS),
    ("mlp-tab", ROWS),
    ("mlp-tab@7", ROWS),
]


def trainees(name: str, signature: Signature, sizes: list[int]) -> list[Trainee]:
    """Models with starts and samples of their own; classes of some samples are rare."""
    found = []
    for client, size in enumerate(sizes):
        random = torch.Generator().manual_seed(client)
        if signature.kind == "image":
            inputs = torch.randint(0, 256, (size, *signature.shape), generator=random).to(torch.uint8)
        else:
            inputs = torch.randn(size, *signature.shape, generator=random)
        labels = torch.randint(0, signature.classes, (size,), generator=random).clamp(max=client + 1)
        model = build_model(name, signature, 0, client)
        found.append(Trainee(flatten(model), inputs, labels, torch.Generator().manual_seed(100 + client)))
    return found


def alone(name: str, signature: Signature, one: Trainee, train: ResolvedTrain) -> tuple[Tensor, Cost]:
    model = unflatten(build_model(name, signature, 0, 0), one.weights)
    with counting() as counter:
        fit(
            model,
            make_optimizer(train.optimizer, model),
            one.inputs,
            label_loss(train, one.labels, signature.classes),
            epochs=train.epochs,
            batch_size=train.batch_size,
            generator=one.generator,
            steps=train.steps,
        )
    return flatten(model), counter.cost


def compare(name: str, signature: Signature, sizes: list[int], table: dict[str, Any]) -> None:
    """Train both ways; weights must agree but for rounding, what it costs to the number."""
    train = Train.model_validate(table).resolved(signature.kind)
    model = build_model(name, signature, 0, 0)
    together = fit_together(model, trainees(name, signature, sizes), train, signature.classes)
    for one, found in zip(trainees(name, signature, sizes), together, strict=True):
        weights, cost = alone(name, signature, one, train)
        assert found.weights is not None
        torch.testing.assert_close(found.weights, weights, rtol=1e-4, atol=2e-6)
        assert (weights - one.weights).abs().max() > 1e-4
        assert found.cost == cost


SGD = {"name": "sgd", "lr": 0.05}
COSINE = {"name": "cosine", "over": "steps", "warm_up": 1}
TABLE: list[dict[str, Any]] = [
    {"optimizer": SGD},
    {"optimizer": {**SGD, "momentum": 0.9}},
    {"optimizer": {**SGD, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}},
    {"optimizer": {**SGD, "weight_decay": 0.3, "decay": "matrices"}},
    {"optimizer": {**SGD, "clip_norm": 0.2}},
    {"optimizer": {**SGD, "momentum": 0.5, "schedule": COSINE}},
    {"optimizer": {"name": "adam", "weight_decay": 0.1}},
    {"optimizer": {"name": "adamw", "decay": "matrices", "weight_decay": 0.5}},
    {"optimizer": {"name": "adamw", "schedule": COSINE, "clip_norm": 0.5}},
    {"optimizer": SGD, "label_smoothing": 0.2},
    {"optimizer": SGD, "loss": "balanced-softmax"},
    {"optimizer": SGD, "loss": "balanced-softmax", "label_smoothing": 0.1, "steps": 5},
]


@pytest.mark.parametrize("table", TABLE, ids=str)
def test_settings(table: dict[str, Any]) -> None:
    compare("mlp-s", DIGITS, [7, 20, 8, 1], {"epochs": 2, "batch_size": 8, **table})


@pytest.mark.parametrize(("name", "signature"), STACKABLE)
def test_models(name: str, signature: Signature) -> None:
    compare(
        name, signature, [9, 4, 13], {"epochs": 2, "batch_size": 4, "optimizer": {**SGD, "momentum": 0.9}}
    )


@settings(max_examples=15)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    batch_size=st.integers(1, 12),
    epochs=st.integers(1, 3),
    steps=st.none() | st.integers(1, 8),
)
def test_any_numbers_of_samples(sizes: list[int], batch_size: int, epochs: int, steps: int | None) -> None:
    table = {
        "epochs": epochs,
        "batch_size": batch_size,
        "steps": steps,
        "optimizer": {**SGD, "momentum": 0.9},
    }
    compare("logistic", ROWS, sizes, table)


def test_a_model_does_not_depend_on_those_that_it_is_trained_with() -> None:
    """Not in its bits alone, which products of other sizes may round otherwise."""
    train = Train(epochs=2).resolved("image")
    model = build_model("mlp-s", DIGITS, 0, 0)
    many = fit_together(model, trainees("mlp-s", DIGITS, [30, 50, 10]), train, 10)
    (first,) = fit_together(model, trainees("mlp-s", DIGITS, [30]), train, 10)
    assert many[0].weights is not None
    assert first.weights is not None
    torch.testing.assert_close(many[0].weights, first.weights, rtol=1e-4, atol=2e-6)


def test_a_loss_that_is_not_finite_is_told_of_its_model_alone() -> None:
    train = Train().resolved("table")
    several = trainees("logistic", ROWS, [6, 6, 6])
    several[1].inputs[2, 0] = torch.inf
    found = fit_together(build_model("logistic", ROWS, 0, 0), several, train, 5)
    assert [one.weights is None for one in found] == [False, True, False]


def test_which_models_of_the_ladder_can_be_stacked() -> None:
    found = {
        name
        for signature in (DIGITS, TEXTS, ROWS)
        for name in model_names(signature.kind)
        if is_stackable(build_model(name, signature, 0, 0))
    }
    assert found == {"mlp-s", "logistic", "mlp-tab"}
    assert not is_stackable(build_model("cnn-s@16", DIGITS, 0, 0))
    assert not is_stackable(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"loss": "mine:loss"}, "loss mine:loss"),
        ({"optimizer": {"name": "mine:adam", "lr": 0.1}}, "optimizer mine:adam"),
        ({"not_true": {"beta": 0.5}}, "train.not_true"),
        ({"not_true": {"beta": 0}}, None),
        ({"early_stopping": {}}, "train.early_stopping"),
        ({"augment": {"flip": True}}, "train.augment"),
        ({"loss": "balanced-softmax", "label_smoothing": 0.1}, None),
    ],
)
def test_settings_that_are_for_one_model_at_a_time(table: dict[str, Any], named: str | None) -> None:
    assert not_stacked(Train.model_validate(table).resolved("image")) == named

"""Losses against plain Python, and losses of the user's own."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn.functional import cross_entropy, one_hot

from fedistill.config.training import Train
from fedistill.errors import ExperimentError
from fedistill.training.losses import kl, label_loss, logit_mae, soft_cross_entropy
from fedistill.training.own_functions import check_loss

batches = st.integers(1, 4).flatmap(
    lambda size: st.tuples(
        *[
            st.lists(
                st.lists(st.floats(-8, 8, width=32), min_size=3, max_size=3), min_size=size, max_size=size
            )
        ]
        * 2
    )
)


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(x - max(row)) for x in row]
    return [power / sum(powers) for power in powers]


@given(batches)
def test_against_plain_loops(pair: tuple[list[list[float]], list[list[float]]]) -> None:
    logits, others = pair
    targets = [softmax(row) for row in others]
    student = [softmax(row) for row in logits]
    both = list(zip(targets, student, strict=True))
    size = len(logits)
    cross = sum(-q * math.log(p) for t, s in both for q, p in zip(t, s, strict=True)) / size
    entropy = sum(-q * math.log(q) for t in targets for q in t) / size
    error = sum(abs(a - b) for x, y in zip(logits, others, strict=True) for a, b in zip(x, y, strict=True))
    left, right = torch.tensor(logits), torch.tensor(targets)
    assert soft_cross_entropy(left, right).item() == pytest.approx(cross, abs=1e-4)
    assert kl(left, right).item() == pytest.approx(cross - entropy, abs=1e-4)
    assert logit_mae(left, torch.tensor(others)).item() == pytest.approx(error / size / 3, abs=1e-5)


@given(batches)
def test_kl_is_zero_for_equals_and_never_negative(pair: tuple[list[list[float]], list[list[float]]]) -> None:
    logits, others = (torch.tensor(rows) for rows in pair)
    assert kl(logits, logits.softmax(dim=1)).item() == pytest.approx(0, abs=1e-5)
    assert kl(logits, others.softmax(dim=1)).item() >= -1e-5


def test_kl_by_hand_and_in_its_direction() -> None:
    """KL(q || p) with q = (1, 0) and p = (1/4, 3/4) is log 4; a zero in the target adds nothing."""
    logits = torch.tensor([[0.25, 0.75]]).log()
    assert kl(logits, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(math.log(4), rel=1e-6)
    # A mean over the batch, not over all numbers.
    twice = kl(logits.repeat(2, 1), torch.tensor([[1.0, 0.0]] * 2))
    assert twice.item() == pytest.approx(math.log(4), rel=1e-6)


def test_soft_cross_entropy_is_cross_entropy_for_one_hot_targets() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 5, generator=generator)
    labels = torch.randint(0, 5, (20,), generator=generator)
    found = soft_cross_entropy(logits, one_hot(labels, 5).float())
    assert found.item() == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-6)


def test_the_gradient_is_student_minus_teacher() -> None:
    """The known gradient of both losses in the logits: (p - q) / batch."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.randn(4, 3, generator=generator).softmax(dim=1)
    for loss in (kl, soft_cross_entropy):
        logits = torch.randn(4, 3, generator=generator).requires_grad_()
        loss(logits, targets).backward()
        assert logits.grad is not None
        torch.testing.assert_close(logits.grad, (logits.detach().softmax(dim=1) - targets) / 4)


def test_logit_mae_by_hand() -> None:
    assert logit_mae(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 1.0]])).item() == 2.0


@pytest.mark.parametrize("name", ["focal", "brier"])
def test_an_own_loss_is_taken_as_it_is_and_its_mean_over_samples(name: str) -> None:
    labels, at = torch.tensor([0, 2, 1, 1]), torch.tensor([3, 1])
    logits = torch.tensor([[0.0, 1.0, 0.0], [2.0, 0.0, 1.0]])
    found = label_loss(Train(loss=f"helpers.own_training:{name}"), labels, 3)(logits, at)
    p = logits.softmax(dim=1)
    right = [p[0, 1], p[1, 2]]
    if name == "focal":
        expected = sum(-((1 - one) ** 2) * one.log() for one in right) / 2
    else:
        expected = sum((row.square().sum() - 2 * one + 1) for row, one in zip(p, right, strict=True)) / 2
    assert float(found) == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        (
            "per_class",
            "returns (3, 10) for 3 samples: it must return a tensor, a scalar or one value for each",
        ),
        ("a_number", "returns a float for 3 samples: it must return"),
        ("constant", "has no gradient: RuntimeError"),
        ("fails", "called with logits (3, 10) and labels (3,), raised"),
        ("focall", "has no function 'focall'. Did you mean 'focal'?"),
        ("steep", "has a gradient that is NaN or infinite"),
    ],
)
def test_an_own_loss_that_cannot_be_used_is_named_before_round_1(name: str, what: str) -> None:
    train = Train(loss=f"helpers.own_training:{name}").resolved("image")
    with pytest.raises(ExperimentError) as caught:
        check_loss(train, 10)
    assert str(caught.value).startswith(f"loss 'helpers.own_training:{name}'")
    assert what in str(caught.value)


def test_a_sound_own_loss_and_the_built_in_ones_pass() -> None:
    for loss in ("helpers.own_training:focal", "helpers.own_training:brier", "balanced-softmax"):
        check_loss(Train(loss=loss).resolved("text"), 4)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        (
            {"loss": "cross-entrpy"},
            "'cross-entrpy' must be one of cross-entropy, balanced-softmax, or module:",
        ),
        ({"loss": "a:b", "label_smoothing": 0.1}, "set it to 0, and smooth in 'a:b'"),
    ],
)
def test_losses_that_cannot_be_meant(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        Train(**settings)


def test_a_loss_is_named_as_a_function_of_a_module() -> None:
    with pytest.raises(ExperimentError, match="for example my_losses:focal"):
        check_loss(Train(loss="losses.py/x:focal").resolved("image"), 3)


@pytest.mark.parametrize("name", ["cross-entropy", "balanced-softmax"])
def test_logits_of_half_precision_have_the_loss_of_whole_numbers(name: str) -> None:
    labels = torch.tensor([0, 1, 2, 2])
    logits = torch.tensor([[3.25, -1.5, 0.125], [0.5, 2.0, 1.0], [1.0, 1.0, 4.0], [0.0, 0.25, 0.5]])
    loss = label_loss(Train(loss=name), labels, 3)
    found = loss(logits.bfloat16(), torch.arange(4))
    assert found.dtype == torch.float32
    assert found == loss(logits, torch.arange(4))

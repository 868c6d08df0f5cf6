"""Aggregation against plain Python."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedistill.aggregation.functional import enhanced_era, entropy_reduced, majority, mean, weighted_mean

values = st.lists(st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3), min_size=1, max_size=6)
rows = st.lists(st.lists(st.floats(0.0078125, 1, width=32), min_size=4, max_size=4), min_size=1, max_size=5)


@given(values, st.data())
def test_weighted_mean_against_a_plain_loop(lists: list[list[float]], data: st.DataObject) -> None:
    weights = [data.draw(st.integers(1, 1000)) for _ in lists]
    found = weighted_mean((torch.tensor(one), weight) for one, weight in zip(lists, weights, strict=True))
    assert found is not None
    assert found.dtype == torch.float32
    columns = list(zip(*lists, strict=True))
    expected = [
        math.fsum(w * x for w, x in zip(weights, column, strict=True)) / sum(weights) for column in columns
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-5)


def test_weighted_mean_by_hand() -> None:
    found = weighted_mean([(torch.tensor([1.0, 0.0]), 3), (torch.tensor([5.0, 8.0]), 1)])
    assert found is not None
    assert found.tolist() == [2.0, 2.0]


def test_mean_by_hand() -> None:
    found = mean(torch.full((2, 2), float(x)) for x in (1, 2, 6))
    assert found is not None
    assert found.tolist() == [[3.0, 3.0], [3.0, 3.0]]


def test_nothing_has_no_mean() -> None:
    assert weighted_mean([]) is None
    assert mean(iter(())) is None


def test_one_value_is_its_own_mean_and_is_not_changed() -> None:
    value = torch.tensor([0.1, 0.2])
    found = weighted_mean([(value, 7)])
    assert found is not None
    assert torch.equal(found, value)
    found += 1
    assert value.tolist() == pytest.approx([0.1, 0.2])


def test_small_values_are_not_lost_beside_large_ones() -> None:
    """In float32 the running sum would swallow each 1."""
    found = mean([torch.tensor([2.0**25]), *[torch.tensor([1.0])] * 100, torch.tensor([-(2.0**25)])])
    assert found is not None
    assert found.item() == pytest.approx(100 / 102)


@given(rows, st.floats(0.05, 2))
def test_entropy_reduced_against_a_plain_loop(weights: list[list[float]], temperature: float) -> None:
    probs = [[x / sum(row) for x in row] for row in weights]
    found = entropy_reduced(torch.tensor(probs), temperature)
    for row, out in zip(probs, found.tolist(), strict=True):
        powers = [math.exp((x - max(row)) / temperature) for x in row]
        assert out == pytest.approx([power / sum(powers) for power in powers], abs=1e-5)


@given(st.integers(2, 20), st.floats(0.05, 5))
def test_uniform_stays_uniform(classes: int, temperature: float) -> None:
    found = entropy_reduced(torch.full((2, classes), 1 / classes), temperature)
    assert found.flatten().tolist() == pytest.approx([1 / classes] * 2 * classes)


@given(rows, st.floats(0.1, 2))
def test_odds_are_capped_and_the_order_kept(weights: list[list[float]], temperature: float) -> None:
    probs = torch.tensor([[x / sum(row) for x in row] for row in weights])
    found = entropy_reduced(probs, temperature)
    assert found.sum(dim=1).tolist() == pytest.approx([1] * len(probs), abs=1e-5)
    odds = found.max(dim=1).values / found.min(dim=1).values
    assert (odds <= math.exp(1 / temperature) * 1.001).all()
    assert torch.equal(found.argmax(dim=1), probs.argmax(dim=1)) or torch.allclose(
        probs.gather(1, found.argmax(dim=1)[:, None]), probs.max(dim=1, keepdim=True).values, atol=1e-6
    )


def test_the_cap_is_reached_by_a_sure_row() -> None:
    (row,) = entropy_reduced(torch.tensor([[1.0, 0.0, 0.0]]), 0.5).tolist()
    assert row[0] / row[1] == pytest.approx(math.exp(2), rel=1e-5)
    assert row[1] == row[2]


def test_low_temperatures_sharpen() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.2]])
    top = [entropy_reduced(probs, temperature).max().item() for temperature in (2.0, 1.0, 0.5, 0.1, 0.02)]
    assert top == sorted(top)
    assert top[0] < 0.4
    assert top[-1] > 0.999


@given(rows, st.floats(0.25, 4))
def test_enhanced_era_against_plain_powers(lists: list[list[float]], beta: float) -> None:
    found = enhanced_era(torch.tensor(lists), beta)
    for row, expected in zip(found.tolist(), lists, strict=True):
        powers = [x**beta for x in expected]
        assert row == pytest.approx([power / sum(powers) for power in powers], rel=1e-4)


def test_enhanced_era_by_hand() -> None:
    found = enhanced_era(torch.tensor([[0.6, 0.3, 0.1]]), 2.0)
    assert found.tolist()[0] == pytest.approx([36 / 46, 9 / 46, 1 / 46])
    assert enhanced_era(torch.tensor([[0.25] * 4]), 3.0).tolist() == [[0.25] * 4]


def counted(*votes: int) -> torch.Tensor:
    """Vote shares of one sample with three classes."""
    return mean(torch.eye(3)[[vote]] for vote in votes)  # type: ignore[return-value]  # never None


def test_majority_and_ties() -> None:
    draws = torch.Generator().manual_seed(0)
    assert majority(counted(2, 2, 0), None, draws).tolist() == [[0, 0, 1]]
    # The class that had the majority before wins a tie, but not against more votes.
    assert majority(counted(2, 0), torch.tensor([[1.0, 0, 0]]), draws).tolist() == [[1, 0, 0]]
    assert majority(counted(2, 0), torch.tensor([[0, 0, 1.0]]), draws).tolist() == [[0, 0, 1]]
    assert majority(counted(2, 2, 0), torch.tensor([[1.0, 0, 0]]), draws).tolist() == [[0, 0, 1]]
    assert majority(counted(1, 1, 2, 2), torch.tensor([[1.0, 0, 0]]), draws)[0, 0] == 0


def test_other_ties_are_drawn() -> None:
    shares = counted(0, 2).expand(2000, 3)
    won = majority(shares, None, torch.Generator().manual_seed(0)).sum(dim=0)
    assert won[1] == 0
    assert 900 < won[0] < 1100

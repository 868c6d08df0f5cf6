"""Who takes part, and whose reply is lost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedistill.config.schema import Sampling
from fedistill.federation.client_sampling import sample_clients, sample_dropouts


@pytest.mark.parametrize(
    ("fraction", "clients", "count"),
    [
        (1.0, 10, 10),
        (0.999, 10, 10),
        (0.5, 10, 5),
        (0.35, 10, 4),
        (0.25, 10, 3),
        (0.24, 10, 2),
        (0.1, 10, 1),
        (0.01, 10, 1),
        (0.5, 1, 1),
        (0.001, 2000, 2),
    ],
)
def test_how_many(fraction: float, clients: int, count: int) -> None:
    """The share rounded half up, at least one."""
    for round in range(1, 20):
        assert len(sample_clients(Sampling(fraction=fraction), clients, 0, round)) == count


@given(st.floats(0.001, 1), st.integers(1, 200), st.integers(0, 2**40), st.integers(1, 1000))
def test_clients_are_distinct_ordered_and_there(fraction: float, clients: int, seed: int, round: int) -> None:
    found = sample_clients(Sampling(fraction=fraction), clients, seed, round)
    assert found
    assert found == sorted(set(found))
    assert set(found) <= set(range(clients))
    assert all(type(client) is int for client in found)
    assert sample_clients(Sampling(fraction=fraction), clients, seed, round) == found


def test_seed_and_round_change_the_choice() -> None:
    settings = Sampling(fraction=0.2)
    found = [tuple(sample_clients(settings, 50, seed, round)) for seed in (0, 1) for round in (1, 2, 3)]
    assert len(set(found)) == 6


def test_dropout_does_not_change_the_choice() -> None:
    assert sample_clients(Sampling(fraction=0.2), 50, 0, 1) == sample_clients(
        Sampling(fraction=0.2, dropout=0.9), 50, 0, 1
    )


def test_all_clients_get_their_turn() -> None:
    """500 rounds of 4 in 20: each is drawn 100 times on average, with a deviation of 9."""
    counts = np.zeros(20)
    for round in range(1, 501):
        counts[sample_clients(Sampling(fraction=0.2), 20, 7, round)] += 1
    assert counts.sum() == 2000
    assert counts.min() > 100 - 5 * 9
    assert counts.max() < 100 + 5 * 9


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_share_of_lost_replies(share: float) -> None:
    """2,000 draws: five deviations of a binomial."""
    settings = Sampling(dropout=share)
    gone = [len(sample_dropouts(settings, list(range(20)), 3, round)) for round in range(1, 101)]
    assert abs(sum(gone) - 2000 * share) < 5 * (2000 * share * (1 - share)) ** 0.5
    assert len(set(gone)) > 1


def test_lost_are_among_the_chosen_and_in_order() -> None:
    settings = Sampling(fraction=0.5, dropout=0.5)
    for round in range(1, 50):
        there = sample_clients(settings, 20, 0, round)
        gone = sample_dropouts(settings, there, 0, round)
        assert set(gone) <= set(there)
        assert gone == sorted(gone)
        assert sample_dropouts(settings, there, 0, round) == gone


def test_without_dropout_nobody_is_lost() -> None:
    assert sample_dropouts(Sampling(), list(range(1000)), 0, 1) == []


def test_whether_a_client_is_lost_does_not_depend_on_the_others() -> None:
    settings = Sampling(dropout=0.5)
    together = sample_dropouts(settings, list(range(40)), 0, 1)
    alone = [client for client in range(40) if sample_dropouts(settings, [client], 0, 1)]
    assert together == alone
    assert 0 < len(alone) < 40

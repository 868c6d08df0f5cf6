import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedistill.methods.shared.expertise import class_levels, expert_votes, pool_votes, sizes, thresholds

ABSTAIN = 3


def test_levels_are_half_powers_of_two() -> None:
    labels = torch.tensor([0] * 1 + [1] * 3 + [2] * 1000)
    assert class_levels(labels, 4).tolist() == [2, 4, 20, 0]
    assert sizes(torch.tensor([2, 4, 0])).tolist() == [1, 3, 0]


@given(st.integers(0, 10**6))
def test_a_level_says_the_number_of_samples_within_a_fifth(count: int) -> None:
    level = (2 * torch.tensor(1.0 + count).double().log2()).round().long()
    assert abs(float(sizes(level)) - count) <= 0.2 * (count + 1)


def levels_of(*counts: list[int]) -> Tensor:
    return torch.stack(
        [
            class_levels(torch.tensor([label for label, many in enumerate(row) for _ in range(many)]), 3)
            for row in counts
        ]
    )


def test_experts_hold_the_share_that_is_asked_for_and_are_two_at_least() -> None:
    levels = levels_of([127, 3, 0], [15, 3, 0], [3, 3, 7], [1, 127, 0])
    least = thresholds(levels, 0.9)
    # Class 0: 127 of 146 samples are not nine tenths, with the next client's 15 they are. Class 1: one
    # client would do, but there must be two, and the others have as many as the second. Class 2: nobody but
    # one has any, and no client may vote who has none.
    assert least.tolist() == [int(levels[1, 0]), int(levels[0, 1]), 1]
    assert (levels >= least).sum(dim=0).tolist() == [2, 4, 1]


def test_with_full_coverage_everybody_votes_who_has_any() -> None:
    levels = levels_of([5, 1, 0], [1, 0, 9])
    assert ((levels >= thresholds(levels, 1.0)) == (levels > 0)).all()


def test_a_client_abstains_on_classes_it_does_not_know_well() -> None:
    votes = expert_votes(torch.tensor([0, 1, 2, 1]), torch.tensor([9, 2, 6]), torch.tensor([8, 3, 6]))
    assert votes.tolist() == [0, ABSTAIN, 2, ABSTAIN]


def test_a_vote_counts_as_many_times_as_its_client_has_samples_of_the_class() -> None:
    levels = levels_of([31, 0, 0], [3, 15, 0], [0, 15, 1])
    votes = torch.tensor(
        [
            [0, 0, ABSTAIN, -1],
            [1, 1, ABSTAIN, -1],
            [ABSTAIN, 1, ABSTAIN, 2],
        ]
    )
    # 31 against 15; 31 against 30; nobody; one vote.
    assert pool_votes(votes, sizes(levels)).tolist() == [0, 0, ABSTAIN, 2]


@given(st.integers(0, 2**32 - 1))
def test_pooling_is_a_plain_count(seed: int) -> None:
    drawn = torch.Generator().manual_seed(seed)
    votes = torch.randint(-1, 4, (5, 20), generator=drawn)
    levels = torch.randint(0, 20, (5, 3), generator=drawn)
    pooled = pool_votes(votes, sizes(levels))
    for sample in range(20):
        support = dict.fromkeys(range(3), 0.0)
        for client in range(5):
            label = int(votes[client, sample])
            if 0 <= label < 3:
                support[label] += 2 ** (int(levels[client, label]) / 2) - 1
        found, most = int(pooled[sample]), max(support.values())
        # Sums that are equal may be rounded otherwise.
        assert found == ABSTAIN if most == 0 else support[found] == pytest.approx(most, rel=1e-12)

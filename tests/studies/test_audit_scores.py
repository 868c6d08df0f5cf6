"""The arithmetic of an audit: by hand, against scikit-learn, and on scores that say nothing."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from fedistill.studies.audit.label_inference import divergence, stationary, total_variation
from fedistill.studies.audit.membership import (
    calibrated,
    confidence,
    log_probability,
    mean_of_usable,
    negative_entropy,
    trace,
    unseen_words,
)
from fedistill.studies.audit.reconstruction import (
    KNOWN,
    ClassMeans,
    class_means,
    compare,
    decode,
    within_covariance,
)
from fedistill.studies.audit.replay import spread
from fedistill.studies.audit.roc import Scored, auc, roc, tpr_at

scores = st.lists(st.integers(-3, 3), min_size=1, max_size=30).map(lambda found: np.array(found, float))


def scored(members: np.ndarray, others: np.ndarray) -> Scored:
    return Scored(members, others, np.arange(len(members)), np.arange(len(others)))


@given(scores, scores)
def test_area_and_left_end_are_those_of_scikit_learn(members: np.ndarray, others: np.ndarray) -> None:
    """Its curve has a point for each threshold; ours is the highest point that is not too far right."""
    labels, values = np.r_[np.ones(len(members)), np.zeros(len(others))], np.r_[members, others]
    assert auc(members, others) == pytest.approx(roc_auc_score(labels, values))
    false, true, _ = roc_curve(labels, values, drop_intermediate=False)
    for rate in (0.0, 0.1, 0.25, 0.5, 1.0):
        assert tpr_at(members, others, rate) == pytest.approx(true[false <= rate + 1e-9].max())


def test_true_positives_at_one_percent_by_hand() -> None:
    """Of 200 non-members two may be above the threshold, so it is the third highest of them."""
    others = np.arange(200.0)
    members = np.array([197.0, 197.5, 198.0, 0.0])
    assert tpr_at(members, others, 0.01) == 0.5
    assert tpr_at(members, others, 0.0) == 0.0


def test_a_rate_that_there_are_too_few_for_is_not_given() -> None:
    generator = np.random.default_rng(0)
    found = roc(scored(generator.normal(size=300), generator.normal(size=300)), generator)
    assert found.tpr[0.01] is not None
    assert found.tpr[0.001] is None
    assert found.points[0][0] == 0
    assert found.points[-1] == (1.0, 1.0)


def test_scores_that_say_nothing_have_one_half_in_their_range() -> None:
    generator = np.random.default_rng(1)
    inside = 0
    for _ in range(20):
        found = roc(scored(generator.normal(size=150), generator.normal(size=150)), generator).auc
        inside += found.low <= 0.5 <= found.high
    assert inside >= 16, "a range of 95 % misses it in one of twenty"


def test_a_sample_that_several_clients_are_asked_about_counts_once() -> None:
    """Ten times the same non-members are no more evidence than once."""
    generator = np.random.default_rng(2)
    members, others = generator.normal(size=60), generator.normal(size=60)
    ids = np.arange(60)
    once = roc(Scored(members, others, ids, ids), np.random.default_rng(3)).auc
    often = Scored(np.tile(members, 10), np.tile(others, 10), np.tile(ids, 10), np.tile(ids, 10))
    again = roc(often, np.random.default_rng(3)).auc
    assert again.value == pytest.approx(once.value)
    assert again.high - again.low == pytest.approx(once.high - once.low, rel=0.2)


def test_scores_of_a_prediction_by_hand() -> None:
    logits, labels = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log(), torch.tensor([0, 1])
    assert confidence(logits, labels).tolist() == pytest.approx([math.log(3), 0.0], abs=1e-6)
    assert log_probability(logits, labels).tolist() == pytest.approx([math.log(0.75), math.log(0.5)])
    assert negative_entropy(logits)[1].item() == pytest.approx(-math.log(2))
    sure = confidence(torch.tensor([[200.0, 0.0]]), torch.tensor([0]))
    assert sure.tolist() == [200.0], "no precision is lost where p is 1 in float32"


def test_calibration_by_hand() -> None:
    """Means 2 and 5; the variances of the candidates are 2 (of 1, 3) and 8 (of 3, 7), and their mean 5."""
    references = torch.tensor([[1.0, 3.0], [3.0, 7.0], [99.0, 99.0]])
    usable = torch.tensor([[True, True], [True, True], [False, False]])
    found = calibrated(torch.tensor([4.0, 4.0]), references, usable)
    assert found.tolist() == pytest.approx([2 / math.sqrt(5), -1 / math.sqrt(5)])
    assert mean_of_usable(references, usable).tolist() == [2.0, 5.0]


def test_trace_is_weighted_by_precision() -> None:
    features, labels = torch.tensor([[1.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 1])
    client, usual = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.zeros(2, 2)
    assert trace(features, labels, client, usual, torch.diag(torch.tensor([3.0, 5.0]))).tolist() == [6.0, 0.0]


def test_words_that_a_client_never_had() -> None:
    tokens = torch.tensor([[1, 2, 0], [3, 3, 2], [0, 0, 0]])
    words = torch.tensor([[4, 0, 1], [0, 0, 0]])
    assert unseen_words(tokens, torch.tensor([0, 0, 1]), words).tolist() == [1, 1, 0]


@given(st.lists(st.lists(st.floats(0.05, 1), min_size=3, max_size=3), min_size=3, max_size=3))
def test_stationary_shares_are_what_a_fitted_model_returns_on_average(rows: list[list[float]]) -> None:
    table = torch.tensor(rows)
    table = table / table.sum(dim=1, keepdim=True)
    shares = stationary(table, torch.ones(3, dtype=torch.bool))
    assert shares.sum().item() == pytest.approx(1, abs=1e-5)
    assert torch.allclose(shares @ table, shares, atol=1e-5)


def test_a_class_that_the_client_lacks_has_no_share() -> None:
    table = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.0, 0.0], [0.25, 0.25, 0.5]])
    shares = stationary(table, torch.tensor([True, False, True]))
    assert shares.tolist() == pytest.approx([0.5, 0.0, 0.5])


def test_distances_of_shares() -> None:
    truth, guess = torch.tensor([0.75, 0.25]), torch.tensor([0.25, 0.75])
    assert total_variation(truth, guess) == 0.5
    assert divergence(truth, guess) == pytest.approx(0.5 * math.log(3))
    assert divergence(truth, truth) == 0
    assert math.isfinite(divergence(truth, torch.tensor([1.0, 0.0])))


def test_class_means_are_decoded_where_features_are_a_turn_of_the_inputs() -> None:
    """As many features as pixels, none lost: what the server gets is the mean itself, but for the ridge."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 6, generator=generator, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))
    labels = torch.arange(400) % 2
    usual, counts = class_means(inputs, labels, 2)
    assert counts.tolist() == [200, 200]
    assert torch.allclose(usual[1], inputs[1::2].mean(dim=0))
    shift = torch.tensor([[1.0, -2.0, 0.0, 0.5, 0.0, 3.0]], dtype=torch.float64)
    centred = inputs - usual[labels]
    found = decode(centred @ turn, centred, shift @ turn, KNOWN)
    assert torch.allclose(found, shift, atol=0.1)
    told = compare([ClassMeans(usual[:1] + found, usual[:1] + shift, usual[:1], torch.tensor([1]))])
    assert told.gain > 0.98
    assert told.direction > 0.99
    assert (told.means, told.single) == (1, 1)
    guessed = compare([ClassMeans(usual[:1], usual[:1] + shift, usual[:1], torch.tensor([5]))])
    assert (guessed.gain, guessed.direction, guessed.single) == (0, 0, 0)
    covariance = within_covariance(inputs, labels, usual)
    assert torch.allclose(covariance, centred.T @ centred / 400)


def test_rounds_that_are_kept_are_spread_over_the_run() -> None:
    assert spread(range(1, 21), 3) == [1, 11, 20]
    assert spread([4], 3) == [4]
    assert spread([], 3) == []
    assert spread([1, 2, 3], 1) == [3]

"""Pooled labels and what public samples look like: numbers by hand, and both methods that combine them."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.naive_bayes import MultinomialNB
from torch import Tensor

from fedistill import ExperimentError, parse
from fedistill.experiment.runner import prepare
from fedistill.federation.history import ArmRun
from fedistill.methods.participants import sample_public
from fedistill.methods.shared.expertise import pool_votes, sizes
from fedistill.methods.shared.label_refinement import (
    _discriminant,
    _naive_bayes,
    _out_of_fold,
    coin_evidence,
    refine,
)
from helpers.runs import finished

CLASSES = 3


def clouds(samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points (n, 4) around a centre for each class, far from those of the others, and their classes (n,)."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(samples) % CLASSES
    centres = 6 * torch.eye(4, dtype=torch.float64)[classes]
    return centres + torch.randn(samples, 4, generator=generator, dtype=torch.float64), classes


def looks(points: Tensor) -> Any:
    return lambda *asked: _discriminant(points, CLASSES, *asked)


def evidence_for(labels: Tensor, strength: float) -> Tensor:
    """Votes that say of each sample with this log-likelihood ratio that it has its label; C says nothing."""
    found = torch.zeros(len(labels), CLASSES + 1, dtype=torch.float64)
    found[torch.arange(len(labels)), labels] = strength
    return found[:, :CLASSES]


def test_a_label_is_corrected_where_votes_say_little() -> None:
    points, classes = clouds(90)
    wrong = classes.clone()
    wrong[[4, 50]] = (wrong[[4, 50]] + 1) % CLASSES
    assert torch.equal(refine(wrong, evidence_for(wrong, 1.0), looks(points)), classes)


def test_a_label_stays_where_votes_leave_no_doubt() -> None:
    points, classes = clouds(90)
    wrong = classes.clone()
    wrong[[4, 50]] = (wrong[[4, 50]] + 1) % CLASSES
    assert torch.equal(refine(wrong, evidence_for(wrong, 1e6), looks(points)), wrong)


def test_samples_that_nobody_voted_on_get_the_label_that_they_look_like() -> None:
    points, classes = clouds(90)
    sparse = torch.where(torch.arange(90) % 4 == 0, CLASSES, classes)
    assert torch.equal(refine(sparse, evidence_for(sparse, 3.0), looks(points)), classes)


def test_a_class_that_nobody_voted_for_is_not_invented() -> None:
    """Samples on which nobody voted may be of that class, and stay without a label."""
    points, classes = clouds(90)
    labels = torch.where(classes == 2, CLASSES, classes)
    labels[[0, 1, 3]] = CLASSES
    wrong = labels.clone()
    wrong[6] = 1
    assert torch.equal(refine(wrong, evidence_for(wrong, 1.0), looks(points)), labels)


@pytest.mark.parametrize("labels", [torch.full((20,), CLASSES), torch.full((20,), 1)], ids=["none", "one"])
def test_labels_of_fewer_than_two_classes_stay(labels: Tensor) -> None:
    points, _ = clouds(20)
    assert torch.equal(refine(labels, evidence_for(labels, 1.0), looks(points)), labels)


def test_samples_that_all_look_alike_keep_the_labels_of_the_votes() -> None:
    """A classifier that cannot tell them apart is not listened to, however little the votes say."""
    _, classes = clouds(90)
    alike = torch.ones(90, 4, dtype=torch.float64)
    assert torch.equal(refine(classes, evidence_for(classes, 1e-6), looks(alike)), classes)


@given(st.integers(0, 1000))
def test_a_classifier_that_is_no_better_than_frequencies_changes_nothing(seed: int) -> None:
    """It is always wrong, and would win each sample, of which votes say next to nothing."""
    labels = torch.where(torch.rand(60, generator=torch.Generator().manual_seed(seed)) < 0.7, 0, 1)

    def wrong(own: Tensor, learned: Tensor, judged: Tensor) -> Tensor:
        return 5 * torch.nn.functional.one_hot((labels[judged] + 1) % 2, CLASSES).double()

    assert torch.equal(refine(labels, evidence_for(labels, 1e-6), wrong), labels)


def test_two_labels_in_the_same_fold_are_learned_from_by_the_others_alone() -> None:
    """Places 0 and 10 of 20: where they are judged themselves, nothing has been learned."""
    points, _ = clouds(20)
    labels = torch.full((20,), CLASSES)
    labels[0], labels[10] = 0, 1
    assert torch.equal(refine(labels, evidence_for(labels, 2.0), looks(points)), labels)


@given(st.integers(2, 40), st.integers(0, 39), st.integers(0, 2))
def test_no_sample_is_judged_by_its_own_label(samples: int, which: int, other: int) -> None:
    points, classes = clouds(samples)
    place = which % samples
    changed = classes.clone()
    changed[place] = other
    before = _out_of_fold(classes, CLASSES, looks(points))
    after = _out_of_fold(changed, CLASSES, looks(points))
    assert torch.equal(before[place], after[place])
    assert torch.isfinite(after).all()


def test_the_discriminant_orders_classes_as_the_usual_one_does() -> None:
    points, classes = clouds(600)
    learned = torch.arange(600) < 500
    everything = torch.ones(600, dtype=torch.bool)
    ours = _discriminant(points, CLASSES, classes, learned, everything).log_softmax(dim=1)
    usual = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.05)
    usual.fit(points[learned].numpy(), classes[learned].numpy())
    theirs = torch.from_numpy(usual.predict_log_proba(points.numpy()))
    assert torch.equal(ours.argmax(dim=1), theirs.argmax(dim=1))
    # They differ by how much the covariance is regularised, and by the sample that draws means together.
    assert torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1] > 0.99


def test_naive_bayes_is_the_usual_one_with_one_more_text_of_each_class() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 30, (40, 12), generator=generator)  # 0 is padding
    labels = torch.arange(40) % CLASSES
    labels[7] = CLASSES  # nobody voted on it
    learned = (torch.arange(40) < 33) & (labels < CLASSES)
    counts = torch.nn.functional.one_hot(tokens, 30).sum(dim=1)[:, 1:]
    prior = (torch.bincount(labels[learned], minlength=CLASSES) + 1).double()
    usual = MultinomialNB(alpha=1.0, class_prior=(prior / prior.sum()).numpy())
    usual.fit(counts[learned].numpy(), labels[learned].numpy())
    theirs = torch.from_numpy(usual.predict_log_proba(counts.numpy()))
    ours = _naive_bayes(tokens, 30, CLASSES, labels, learned, torch.ones(40, dtype=torch.bool))
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_plain_votes_count_as_often_as_they_agree_with_the_labels() -> None:
    """Six of eight votes do: with two classes, each says ln(3 / 1) for its class."""
    counts = torch.tensor([[3.0, 1.0], [1.0, 3.0]])
    found = coin_evidence(counts, torch.tensor([0, 1]))
    assert torch.allclose(found, counts.double() * math.log(3), atol=1e-12)


def test_votes_that_all_agree_stay_finite() -> None:
    found = coin_evidence(torch.tensor([[4.0, 0.0]]), torch.tensor([0]))
    assert torch.allclose(found, torch.tensor([[4 * math.log(99), 0.0]], dtype=torch.float64))


DIGITS = {
    "name": "digits",
    "clients": 4,
    "limit": 400,
    "public": 200,
    "partition": {"kind": "dirichlet", "alpha": 0.5},
}


def played(method: str, refined: bool, rounds: int, **settings: Any) -> tuple[Any, ArmRun]:
    return finished(
        {
            "rounds": rounds,
            "task": DIGITS,
            "models": {"clients": ["cnn-s"], "server": "cnn-s"},
            "train": {"batch_size": 16, "optimizer": {"lr": 0.05, "momentum": 0.9}},
            "evaluate": {"every": rounds},
            "runtime": {"kind": "serial"},
            "arms": [{"method": method, "refine_labels": refined, **settings}],
        }
    )


def test_bridge_refines_labels_and_sends_nothing_more_for_it() -> None:
    """Labels go down in round 3, coded given votes, so that others take a few bytes more or fewer."""
    settings = {"vote_epochs": 5, "distill_epochs": 3}
    arm, plain = played("bridge", False, 3, **settings)
    _, refined = played("bridge", True, 3, **settings)
    assert torch.equal(refined.server.votes, plain.server.votes)
    counted = pool_votes(refined.server.votes, sizes(refined.server.levels))
    truth = arm.task.public_labels
    assert (refined.server.labels == truth).sum() > (counted == truth).sum()
    sent = [
        [(e.round, e.direction, e.client, e.payload) for e in run.ledger.entries] for run in (plain, refined)
    ]
    assert sent[0][:16] == sent[1][:16]  # two rounds of four clients, both ways
    assert [one[:3] for one in sent[0]] == [one[:3] for one in sent[1]]
    down = [sum(one[3] for one in each if one[:2] == (3, "down")) for each in sent]
    assert abs(down[1] - down[0]) < 0.2 * down[0]


def test_voting_refines_labels_of_the_samples_that_were_drawn() -> None:
    """Of half of the public samples, another half each round: those of the round must be looked at."""
    settings = {"samples": 100, "distill_epochs": 3, "train": {"epochs": 5}}
    (arm, plain), (_, refined) = (played("voting", wanted, 1, **settings) for wanted in (False, True))
    drawn = sample_public(0, 200, 100, 1)
    truth = arm.task.public_labels[drawn]
    right = [(run.server.labels.argmax(dim=1) == truth).sum() for run in (plain, refined)]
    assert right[1] > right[0]
    sent = [[e.payload for e in run.ledger.entries] for run in (plain, refined)]
    assert sent[0] == sent[1]


@pytest.mark.parametrize(
    ("arm", "part"),
    [
        ({"method": "bridge", "weighting": "equal"}, "weighs votes by samples"),
        (
            {"method": "voting", "aggregation": "dawid-skene"},
            "counts each vote once",
        ),
    ],
)
def test_votes_that_are_pooled_otherwise_are_not_refined(arm: dict[str, Any], part: str) -> None:
    raw = {
        "rounds": 1,
        "task": DIGITS,
        "models": {"clients": ["cnn-s"], "server": "cnn-s"},
        "arms": [{**arm, "refine_labels": True}],
    }
    with pytest.raises(ExperimentError, match=part):
        prepare(parse(raw, "test"))

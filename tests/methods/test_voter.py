"""`bridge` with a voter: votes are those of scikit-learn's naive Bayes on a client's own words."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.naive_bayes import MultinomialNB

from fedistill.errors import ExperimentError
from fedistill.experiment.preflight import examine
from fedistill.methods.shared.bridge_state import BridgeClient
from fedistill.methods.shared.expertise import class_levels, expert_votes, pool_votes, sizes, thresholds
from fedistill.models import registry as models
from fedistill.state import decode_state, from_plain
from helpers.runs import finished, ready

BUCKETS, LENGTH, ALPHA = 512, 60, 0.2
VOTER = f"naive-bayes(buckets={BUCKETS}, length={LENGTH}, alpha={ALPHA})"


def raw(**changes: Any) -> dict[str, Any]:
    return {
        "rounds": 2,
        "task": {
            "name": "bbc-news",
            "clients": 3,
            "limit": 150,
            "public": 60,
            "partition": {"kind": "dirichlet", "alpha": 0.5},
            "text": {"length": 20, "vocabulary": 300},
        },
        "models": {"clients": ["bag"], "server": "bag"},
        "train": {"batch_size": 16, "optimizer": {"name": "adam", "lr": 0.01}},
        "runtime": {"kind": "serial"},
        "arms": [{"method": "bridge", "voter": VOTER, "distill_epochs": 5}],
        **changes,
    }


def counted(tokens: torch.Tensor) -> np.ndarray[Any, Any]:
    """How often each text (n, length) has each hashed word (n, V)."""
    found = torch.zeros(len(tokens), BUCKETS + 1).scatter_add_(1, tokens.long(), torch.ones(tokens.shape))
    return found[:, 1:].numpy()  # id 0 is padding


def test_votes_are_those_of_scikit_learns_naive_bayes() -> None:
    arm, run = finished(raw())
    name = models.hashed_words(BUCKETS, LENGTH)
    levels = torch.stack([class_levels(data.labels, 5) for data in arm.task.clients])
    least, votes = thresholds(levels, coverage=0.8), []
    for number, data in enumerate(arm.task.clients):
        client = arm.client(number, round=2)
        net = MultinomialNB(alpha=ALPHA, fit_prior=False).fit(counted(client.inputs(name)), data.labels)
        named = torch.from_numpy(net.predict(counted(client.public_inputs(name))))
        votes.append(expert_votes(named, levels[number], least))
        state = from_plain(BridgeClient, decode_state(run.clients[number])["method"])
        assert torch.equal(state.votes, votes[-1])
        assert torch.equal(state.model.weights, client.initial_model().weights), "nobody trained"
    assert torch.equal(run.server.labels, pool_votes(torch.stack(votes), sizes(levels)))


def test_counted_words_label_more_texts_rightly_than_models_trained_on_as_few() -> None:
    def right(**arm: Any) -> float:
        played, run = finished(raw(arms=[{"method": "bridge", "distill_epochs": 1, "coverage": 1.0, **arm}]))
        return float((run.server.labels == played.task.public_labels).double().mean())

    assert right(voter=VOTER) > right(vote_epochs=10) + 0.1


def test_a_voter_that_counts_words_is_refused_for_images() -> None:
    images = {"name": "digits", "clients": 2, "limit": 60, "public": 20}
    used = {"clients": ["mlp-s"], "server": "mlp-s"}
    wanted, arm = ready(raw(task=images, models=used))
    said = "voter naive-bayes counts words, but the samples of this task are images: leave `voter` out"
    assert [one.what for one in examine(wanted, arm.task, [arm]) if one.level == "error"] == [said]


@pytest.mark.parametrize(
    ("voter", "said"),
    [
        ("svm", r"arm .bridge.: `voter\.name` = 'svm': must be 'naive-bayes'"),
        ("naive-bayes(", r"`voter`: .*the brackets do not enclose"),
        ("naive-bayes(alpha=0)", r"`voter\.alpha` = 0: must be greater than 0"),
    ],
)
def test_a_wrong_voter_is_named(voter: str, said: str) -> None:
    with pytest.raises(ExperimentError, match=said):
        ready(raw(arms=[{"method": "bridge", "voter": voter}]))

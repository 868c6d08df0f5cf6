"""naive-bayes against scikit-learn on pooled counts, whoever has which text and answers when."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.naive_bayes import MultinomialNB

from fedistill.federation.arm import ReadyArm
from fedistill.federation.history import ArmRun
from fedistill.models.naive_bayes import NaiveBayes
from fedistill.models.registry import preprocessing
from helpers.runs import finished

CLASSES, WORDS = 4, 30


def played(rounds: int = 1, own: dict[str, Any] | None = None, **changes: Any) -> tuple[ReadyArm, ArmRun]:
    task = {
        "name": "bbc-news",
        "clients": 4,
        "limit": 120,
        "public": 60,
        "partition": {"kind": "dirichlet", "alpha": 0.5},
        "text": {"length": 24, "vocabulary": 300},
    }
    return finished(
        {
            "rounds": rounds,
            "models": {"clients": ["bag"], "server": "bag"},
            "arms": [{"method": "naive-bayes", **(own or {})}],
            **changes,
            "task": {**task, **changes.get("task", {})},
        }
    )


def net_of(arm: ReadyArm, run: ArmRun) -> torch.nn.Module:
    found = arm.method.server_net(arm.federation)
    assert found is not None
    module: torch.nn.Module = run.server.model.load_into(found[1])
    return module


def counted(tokens: np.ndarray, words: int) -> np.ndarray:
    """How often each word is in each text, padding left out."""
    return np.stack([np.bincount(row[row > 0] - 1, minlength=words) for row in tokens])


@pytest.mark.parametrize("words", ["hashed", "tokens"])
@pytest.mark.parametrize(("alpha", "prior"), [(1.0, "texts"), (0.3, "uniform")])
def test_the_sum_over_clients_is_scikit_learns_model_of_all_texts(
    words: str, alpha: float, prior: str
) -> None:
    chosen = {"words": words, "buckets": 500, "alpha": alpha, "prior": prior}
    arm, run = played(own=chosen)
    clients = [arm.client(number, round=1) for number in range(4)]
    name = arm.method.inputs_of("bag")
    size = 500 if words == "hashed" else arm.task.signature.vocabulary - 1
    counts = np.concatenate([counted(client.inputs(name).numpy(), size) for client in clients])
    labels = np.concatenate([client.data.labels.numpy() for client in clients])
    theirs = MultinomialNB(alpha=alpha, fit_prior=prior == "texts").fit(counts, labels)
    assert len(theirs.classes_) == arm.federation.classes
    test = arm.task.test_inputs(preprocessing(name))
    with torch.no_grad():
        found = net_of(arm, run)(test.long()).double().exp().numpy()
    expected = theirs.predict_proba(counted(test.numpy(), size))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), alpha=st.floats(0.01, 10), texts=st.integers(1, 40))
def test_the_module_is_scikit_learns_model(seed: int, alpha: float, texts: int) -> None:
    """Classes without a text have a probability of 0 here, and are unknown there."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, WORDS + 1, (texts, 12))
    labels = random.integers(0, CLASSES, texts)
    counts = counted(tokens, WORDS)
    sums = torch.stack([torch.from_numpy(counts[labels == one].sum(axis=0)) for one in range(CLASSES)])
    net = NaiveBayes.of(
        sums, torch.bincount(torch.from_numpy(labels), minlength=CLASSES), alpha, uniform=False
    )
    theirs = MultinomialNB(alpha=alpha).fit(counts, labels)
    new = random.integers(0, WORDS + 1, (20, 9))
    with torch.no_grad():
        found = net(torch.from_numpy(new)).double().exp().numpy()
    expected = np.zeros((20, CLASSES))
    expected[:, theirs.classes_] = theirs.predict_proba(counted(new, WORDS))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_by_hand() -> None:
    """Two texts of class 0, one of class 1; words 1, 2, 3 occur 3, 0, 1 and 0, 2, 0 times; alpha is 1.

    P(word | 0) = 4/7, 1/7, 2/7 and P(word | 1) = 1/5, 3/5, 1/5. For the text (1, 3):
    2/3 * 4/7 * 2/7 : 1/3 * 1/5 * 1/5 = 0.10884 : 0.013333, that is 0.8909 and 0.1091.
    """
    net = NaiveBayes.of(torch.tensor([[3, 0, 1], [0, 2, 0]]), torch.tensor([2, 1]), 1.0, uniform=False)
    with torch.no_grad():
        found = net(torch.tensor([[1, 3, 0, 0], [0, 0, 0, 0]])).exp()
    torch.testing.assert_close(found, torch.tensor([[0.8909, 0.1091], [2 / 3, 1 / 3]]), rtol=0, atol=1e-4)


def test_without_counts_all_classes_are_equally_probable() -> None:
    with torch.no_grad():
        found = NaiveBayes(WORDS, CLASSES)(torch.tensor([[1, 2, 0]])).exp()
    torch.testing.assert_close(found, torch.full((1, CLASSES), 0.25))


PARTITIONS: list[dict[str, Any]] = [
    {"clients": 1, "partition": {"kind": "iid"}},
    {"clients": 6, "partition": {"kind": "dirichlet", "alpha": 0.1}},
    {"clients": 5, "partition": {"kind": "iid"}},
]


@pytest.mark.parametrize("task", PARTITIONS, ids=str)
def test_no_partition_changes_a_bit(task: dict[str, Any]) -> None:
    _, expected = played()
    _, found = played(task=task)
    assert torch.equal(found.server.model.weights, expected.server.model.weights)
    assert torch.equal(found.server.words, expected.server.words)


def test_no_order_of_arrival_changes_a_bit() -> None:
    """One client in three per round, half of the replies lost, until all have come."""
    _, expected = played()
    _, found = played(rounds=20, sampling={"fraction": 0.25, "dropout": 0.5})
    assert found.server.clients == [0, 1, 2, 3]
    assert torch.equal(found.server.model.weights, expected.server.model.weights)


def test_who_has_answered_is_sent_and_sends_nothing() -> None:
    """Before, a client is asked in each of its rounds, in 11 bytes."""
    _, run = played(rounds=20, sampling={"fraction": 0.5, "dropout": 0.5})
    arrived: set[int] = set()
    asked_again = 0
    for record in run.records:
        due = [client for client in record.clients if client not in arrived]
        down = [(entry.client, entry.bytes) for entry in record.traffic if entry.direction == "down"]
        assert down == [(client, 11) for client in due]
        assert [entry.client for entry in record.traffic if entry.direction == "up"] == due
        asked_again += len(set(due) & set(record.dropped))
        arrived |= {client for client in due if client not in record.dropped}
    assert asked_again > 0
    assert sorted(arrived) == run.server.clients == [0, 1, 2, 3]


def test_rare_words_are_left_out_per_client_and_class() -> None:
    arm, run = played(own={"least": 2, "buckets": 400})
    expected = torch.zeros(arm.federation.classes, 400, dtype=torch.int64)
    for number in range(4):
        client = arm.client(number, round=1)
        own = torch.zeros_like(expected)
        for row, label in zip(client.inputs("hashed-words@400"), client.data.labels, strict=True):
            for word in row[row > 0].tolist():
                own[label, word - 1] += 1
        expected += own * (own >= 2)
    assert torch.equal(run.server.words, expected)

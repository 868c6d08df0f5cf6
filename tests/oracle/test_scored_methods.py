"""Methods that weight each sample's labels by scores, against plain loops and hand-computed bytes."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fedistill.communication.messages.scored import ScoredWeights
from fedistill.federation.client import client_state
from fedistill.methods.base import Reply
from fedistill.methods.participants import sample_public
from fedistill.models.registry import build_model
from fedistill.rng import SERVER
from fedistill.training.model_state import flatten
from helpers.byte_formulas import payloads
from helpers.learners import CLIENTS, PUBLIC, ROUNDS, close, learners, played, public

SKEWED = {"partition": {"kind": "dirichlet", "alpha": 0.3}}


def scores_of(arm: Any, run: Any, client: int) -> Tensor:
    found: Tensor = client_state(arm, client, run.clients[client]).scores
    return found


@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_uwa_like_is_the_plain_loop(temperature: float) -> None:
    samples = 40
    arm, run = played("uwa-like", SKEWED, temperature=temperature, samples=samples)
    clients, server = learners(arm)
    weights = [torch.exp(-scores_of(arm, run, number) / 4 / temperature) for number in range(CLIENTS)]
    assert not torch.allclose(weights[0], weights[1])
    told: tuple[Tensor, Tensor] | None = None
    for round in range(1, ROUNDS + 1):
        drawn = sample_public(0, PUBLIC, samples, round)
        pooled, total = torch.zeros(samples, 10), torch.zeros(samples, 1)
        for number, client in enumerate(clients):
            if told is not None:
                client.distil(*told, number, round)
            client.train(number, round)
            weight = weights[number][drawn][:, None]
            pooled, total = pooled + weight * client.probs(public(arm)[drawn]), total + weight
        told = public(arm)[drawn], pooled / total
        server.distil(*told, SERVER, round)
    assert told is not None
    close(run.server.labels, told[1])
    close(run.server.model.weights, server.weights())


def test_fedaux_weights_logits_by_certainty(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 steps from 0 to 1, each read as its middle: 0 is 1/128 and 63 is 127/128."""
    arm, _ = played("fedaux", epochs=1, batch_size=PUBLIC)
    first, second = (build_model("cnn-s", arm.task.signature, seed, 0) for seed in (1, 2))
    scores = torch.zeros(PUBLIC, dtype=torch.int64)
    scores[: PUBLIC // 2] = 63
    replies = [
        Reply(0, ScoredWeights(flatten(first), scores, samples=10)),
        Reply(1, ScoredWeights(flatten(second), 63 - scores, samples=30)),
    ]
    with torch.no_grad():
        inputs = public(arm) / 127.5 - 1
        logits, others = first(inputs), second(inputs)
    share = torch.full((PUBLIC, 1), 1 / 128)
    share[: PUBLIC // 2] = 127 / 128
    expected = (share * logits + (1 - share) * others).softmax(dim=1)
    seen: list[Tensor] = []

    def keep(logits: Tensor, probs: Tensor) -> Tensor:
        seen.append(probs)
        return logits.sum() * 0

    monkeypatch.setattr("fedistill.training.losses.kl", keep)
    after = arm.method.server_step(arm.method.start_server(arm.server(0)), arm.server(1), replies)
    torch.testing.assert_close(seen[0].sort(dim=0).values, expected.sort(dim=0).values, rtol=1e-4, atol=1e-5)
    average = (flatten(first) * 10 + flatten(second) * 30) / 40
    torch.testing.assert_close(after.travelling["cnn-s"].weights, average)


@pytest.mark.parametrize("method", ["uwa-like", "fedaux"])
def test_scores_cross_once(method: str) -> None:
    _, run = played(method)
    first, *later = payloads(run, "up")
    assert len(set(later)) == 1
    # Without scores, a mark of one byte says that the receiver has them.
    assert 2 < first - later[0] <= PUBLIC * math.log2(64) / 8 + 4
    assert len(set(payloads(run, "down"))) == 1
    if method == "uwa-like":
        assert later[0] == 4 * PUBLIC * 10 + 1 + 1
    else:
        size = run.server.travelling["cnn-s"].weights.numel()
        assert later[0] == 4 * size + 1 + 1
        assert payloads(run, "down")[0] == 4 * size

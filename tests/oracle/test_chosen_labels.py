"""Methods that label chosen samples against the same methods written down plainly, without frames."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div

from fedistill.federation.client import client_state
from fedistill.methods.participants import sample_public
from fedistill.methods.shared.density import Centroids, Kulsif
from fedistill.rng import SERVER, stream
from helpers.learners import CLIENTS, PUBLIC, ROUNDS, Learner, close, learners, played, public

QUANTILE, SAMPLES = 0.4, 40
OWN = {
    "selective-fd": {"auxiliaries": 30, "width": 2.0, "ambiguity": 1.7},
    "edge-fd": {"clusters": 3},
}


def scored(method: str, references: Tensor, generator: torch.Generator) -> Any:
    if method == "edge-fd":
        return Centroids(references, generator, 3)
    return Kulsif(references, generator, 30, 2.0)


def known(arm: Any, method: str, client: int) -> Tensor:
    """Which public samples a client is familiar with, by half of its own samples and the other half."""
    own, other = (data.flatten(start_dim=1) / 255 for data in (arm.task.clients[client].samples, public(arm)))
    generator = stream(0, "familiar", client)
    order = torch.randperm(len(own), generator=generator)
    half = len(own) // 2
    score = scored(method, own[order[:half]], generator)
    held = score(own[order[half:]]).sort().values
    place = QUANTILE * (len(held) - 1)
    below, above = held[int(place)], held[min(int(place) + 1, len(held) - 1)]
    return score(other) > below + (place - int(place)) * (above - below)


@pytest.mark.parametrize("method", OWN)
def test_abstaining_is_the_plain_loop(method: str) -> None:
    arm, run = played(method, quantile=QUANTILE, samples=SAMPLES, **OWN[method])
    clients, server = learners(arm)
    familiar = [known(arm, method, number) for number in range(CLIENTS)]
    assert all(0 < int(mask.sum()) < PUBLIC for mask in familiar)
    told: tuple[Tensor, Tensor] | None = None
    dropped = 0
    for round in range(1, ROUNDS + 1):
        drawn = sample_public(0, PUBLIC, SAMPLES, round)
        answers: list[dict[int, Tensor]] = []
        for number, client in enumerate(clients):
            if told is not None:
                client.distil(*told, number, round)
            client.train(number, round)
            probs = client.probs(public(arm)[drawn])
            answers.append(
                {place: probs[place] for place in range(SAMPLES) if familiar[number][drawn[place]]}
            )
        kept: dict[int, Tensor] = {}
        for place in range(SAMPLES):
            said = [answer[place] for answer in answers if place in answer]
            if not said:
                continue
            mean = torch.stack(said).mean(dim=0)
            one_hot = torch.eye(10)[mean.argmax()]
            if method == "selective-fd" and float((mean - one_hot).abs().sum()) > 1.7:
                dropped += 1
                continue
            kept[place] = mean
        if kept:
            told = public(arm)[drawn[list(kept)]], torch.stack(list(kept.values()))
            server.distil(*told, SERVER, round)
    assert told is not None
    assert (dropped > 0) == (method == "selective-fd")
    close(run.server.model.weights, server.weights())
    close(run.server.labels[run.server.kept], told[1])
    for number, client in enumerate(clients):
        state = client_state(arm, number, run.clients[number])
        close(state.model.weights, client.weights())
        assert torch.equal(state.familiar, familiar[number])


def test_who_is_familiar_with_nothing_says_nothing() -> None:
    """No public sample is more like one's own than the likest of them; who hears nothing is as if alone."""
    arm, run = played("edge-fd", quantile=1.0, clusters=1, references=2)
    for number in range(CLIENTS):
        if not client_state(arm, number, run.clients[number]).familiar.any():
            payloads = {e.payload for e in run.ledger.entries if e.client == number and e.direction == "up"}
            assert payloads == {2}, "the round, and that there are none"
            return
    raise AssertionError("everybody is familiar with something")


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_fedgems_is_the_plain_loop(weight: float) -> None:
    sure_from, least = 0.13, 0.2
    settings = {"confidence": sure_from, "least_asked": least, "self_weight": weight, "samples": SAMPLES}
    arm, run = played("fedgems", aggregation="mean", **settings)
    clients, server = learners(arm)
    sent = 0
    for round in range(1, ROUNDS + 1):
        inputs = public(arm)[sample_public(0, PUBLIC, SAMPLES, round)]
        own = server.probs(inputs)
        order = torch.randperm(SAMPLES, generator=stream(0, "asked", SERVER, round))
        sure = (own.max(dim=1).values >= sure_from) & (order >= least * SAMPLES)
        asked = ~sure if round > 1 else torch.ones(SAMPLES, dtype=torch.bool)
        assert asked.sum() >= least * SAMPLES
        sent += int((~asked).sum())
        answers = []
        for number, client in enumerate(clients):
            if not asked.all():
                client.distil(inputs[~asked], own[~asked], number, round)
            client.train(number, round)
            answers.append(client.probs(inputs[asked]))
        targets = own.clone()
        targets[asked] = torch.stack(answers).mean(dim=0)
        weights = torch.where(asked, 1.0, weight)
        learn(server, inputs, targets, weights, round)
    assert sent > 0
    close(run.server.model.weights, server.weights())


def learn(server: Learner, inputs: Tensor, targets: Tensor, weights: Tensor, round: int) -> None:
    def loss(out: Tensor, at: Tensor) -> Tensor:
        rows = [
            weights[place] * kl_div(row.log_softmax(dim=0), targets[place], reduction="sum")
            for row, place in zip(out, at.tolist(), strict=True)
        ]
        return torch.stack(rows).mean()

    server.steps(inputs, loss, stream(0, "distil", SERVER, round), 32)

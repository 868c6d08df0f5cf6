"""CFD, SCARLET and voting against the same methods written down plainly, without frames or caches."""

import pytest
import torch
from torch import Tensor

from fedistill.methods.participants import sample_public
from fedistill.models.registry import build_model
from fedistill.rng import SERVER, stream
from helpers.learners import LR, MOMENTUM, PUBLIC, ROUNDS, close, learners, played, public


@pytest.mark.parametrize("afresh", [True, False])
def test_cfd_is_the_plain_loop(afresh: bool) -> None:
    arm, run = played("cfd", afresh=afresh, distill_epochs=1)
    clients, server = learners(arm)
    labels = None
    for client in clients:
        client.model = build_model("cnn-s", arm.task.signature, seed=0, client=SERVER)  # common to all
    for round in range(1, ROUNDS + 1):
        answers = []
        for number, client in enumerate(clients):
            if afresh:
                client.model = build_model("cnn-s", arm.task.signature, seed=0, client=SERVER)
            client.optimizer = torch.optim.SGD(client.model.parameters(), LR, momentum=MOMENTUM)
            if labels is not None:
                client.distil(public(arm), labels, number, round)
            client.train(number, round)
            answers.append(client.probs(public(arm)))
        server.distil(public(arm), torch.stack(answers).mean(dim=0), SERVER, round)
        labels = server.probs(public(arm))
    close(run.server.model.weights, server.weights())
    assert labels is not None
    close(run.server.labels, labels)


def test_voting_is_the_plain_loop() -> None:
    arm, run = played("voting")
    clients, server = learners(arm)
    majority: list[int] = []
    for round in range(1, ROUNDS + 1):
        votes = []
        for number, client in enumerate(clients):
            if majority:
                client.distil(public(arm), torch.eye(10)[majority], number, round)
            client.train(number, round)
            votes.append(client.probs(public(arm)).argmax(dim=1).tolist())
        noise = torch.rand(PUBLIC, 10, generator=stream(0, "ties", SERVER, round))
        majority = [
            elected([vote[sample] for vote in votes], majority[sample] if majority else None, noise[sample])
            for sample in range(PUBLIC)
        ]
        server.distil(public(arm), torch.eye(10)[majority], SERVER, round)
    assert run.server.labels.argmax(dim=1).tolist() == majority
    close(run.server.model.weights, server.weights())


def elected(votes: list[int], before: int | None, noise: Tensor) -> int:
    most = max(votes.count(label) for label in votes)
    tied = sorted({label for label in votes if votes.count(label) == most})
    return before if before in tied else max(tied, key=lambda label: float(noise[label]))


@pytest.mark.parametrize("duration", [1, 2, 50])
def test_scarlet_is_the_plain_loop(duration: int) -> None:
    samples, beta = 20, 1.5
    arm, run = played(
        "scarlet", samples=samples, duration=duration, aggregation={"name": "enhanced-era", "beta": beta}
    )
    clients, server = learners(arm)
    cache: dict[int, tuple[Tensor, int]] = {}
    drawn: list[int] = []
    for round in range(1, ROUNDS + 1):
        before, drawn = drawn, sample_public(0, PUBLIC, samples, round).tolist()
        due = [place for place in drawn if place not in cache or round - cache[place][1] >= duration]
        answers = []
        for number, client in enumerate(clients):
            if before:
                known = torch.stack([cache[place][0] for place in before])
                client.distil(public(arm)[before], known, number, round)
            client.train(number, round)
            answers.append(client.probs(public(arm)[due]) if due else torch.zeros(0, 10))
        mean = torch.stack(answers).mean(dim=0) ** beta
        for place, row in zip(due, mean / mean.sum(dim=1, keepdim=True), strict=True):
            cache[place] = (row, round)
        known = torch.stack([cache[place][0] for place in drawn])
        server.distil(public(arm)[drawn], known, SERVER, round)
    assert run.server.turn == ROUNDS
    for place, (row, _) in cache.items():
        close(run.server.cache[place], row)
    close(run.server.model.weights, server.weights())

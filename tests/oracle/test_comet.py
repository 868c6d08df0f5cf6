"""COMET against the same method written down plainly, and its clusters by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from fedistill.communication.messages.labels import SoftLabels
from fedistill.federation.client import client_state
from fedistill.methods.base import Reply
from fedistill.methods.participants import sample_public
from fedistill.methods.shared.density import kmeans
from fedistill.rng import SERVER, stream
from helpers.learners import BATCH, CLIENTS, PUBLIC, ROUNDS, Learner, close, learners, played, public

SAMPLES, WEIGHT, SIZE = 40, 0.7, 12


def public_batches(round: int, client: int, samples: int) -> Any:
    generator = stream(0, "public batches", client, round)
    while True:
        order = torch.randperm(samples, generator=generator)
        for start in range(0, samples, SIZE):
            yield order[start : start + SIZE]


def pulled(client: Learner, before: Tensor, other: Tensor | None, round: int, number: int) -> Any:
    turns = public_batches(round, number, SAMPLES)

    def loss(out: Tensor, at: Tensor) -> Tensor:
        value = cross_entropy(out, client.data.labels[at])
        if other is None:
            return value
        places = next(turns)
        now = client.model(before[places]).log_softmax(dim=1)
        return value + WEIGHT * kl_div(now, other[places], reduction="batchmean")

    return loss


@pytest.mark.parametrize("clusters", [1, 2])
def test_comet_is_the_plain_loop(clusters: int) -> None:
    settings = {"samples": SAMPLES, "weight": WEIGHT, "public_batch_size": SIZE}
    arm, run = played("comet", clusters=clusters, **settings)
    clients, _ = learners(arm)
    told: dict[int, Tensor] = {}
    member: dict[int, int] = {}
    for round in range(1, ROUNDS + 1):
        before = public(arm)[sample_public(0, PUBLIC, SAMPLES, round - 1)] / 127.5 - 1
        answers = []
        for number, client in enumerate(clients):
            loss = pulled(client, before, told.get(member.get(number, -1)), round, number)
            client.steps(client.data.samples, loss, stream(0, "private", number, round), BATCH)
            answers.append(client.probs(public(arm)[sample_public(0, PUBLIC, SAMPLES, round)]))
        rows = torch.stack(answers)
        _, found = kmeans(rows.flatten(start_dim=1), clusters, stream(0, "clusters", SERVER, round))
        member = dict(enumerate(found.tolist()))
        told = {name: rows[found == name].mean(dim=0) for name in set(member.values())}
    for number, client in enumerate(clients):
        close(client_state(arm, number, run.clients[number]).model.weights, client.weights())
        close(run.server.labels[int(run.server.clusters[number])].probs, told[member[number]])


def test_who_are_alike_are_together() -> None:
    """Four clients, two of each opinion."""
    one, other = torch.eye(10)[:6].flatten(), torch.eye(10)[4:].flatten()
    _, found = kmeans(torch.stack([one, other, one * 0.9, other * 0.9]), 2, stream(0, "test"))
    assert found[0] == found[2] != found[1] == found[3]


def test_an_absent_client_is_sent_what_its_own_cluster_last_said() -> None:
    """Others form two clusters without it, whose numbers must not become its own; nor may half of its own."""
    arm, _ = played("comet", samples=SAMPLES)
    one, other = torch.eye(10)[torch.arange(SAMPLES) % 5], torch.eye(10)[5 + torch.arange(SAMPLES) % 5]

    def after(state: Any, round: int, *came: tuple[int, Tensor]) -> Any:
        replies = [Reply(client, SoftLabels(probs, round)) for client, probs in came]
        return arm.method.server_step(state, arm.server(round), replies)

    first = after(arm.method.start_server(arm.server(0)), 1, (0, one), (1, other))
    for came in ([(1, other), (2, one * 0.9)], [(2, other), (1, one)], [(1, one), (2, one * 0.9)]):
        second = after(first, 2, *came)
        third = after(second, 3, (1, other), (2, other))
        for state in (first, second, third):
            message = arm.method.send(state, arm.server(4), 0)
            close(message.probs, one)
            assert message.sampled_round == 1
        assert len(third.labels) == 3, "of all, of clients 1 and 2, and what client 0 heard"


def test_a_client_that_was_not_heard_gets_the_mean_of_all() -> None:
    arm, run = played("comet", samples=SAMPLES)
    state = replace(run.server, clusters=torch.full((CLIENTS,), -1))
    message = arm.method.send(state, arm.server(ROUNDS + 1), 0)
    said = {number: found.probs for number, found in run.server.labels.items() if number != -1}
    sizes = [int((run.server.clusters == number).sum()) for number in said]
    close(message.probs, sum(p * s for p, s in zip(said.values(), sizes, strict=True)) / CLIENTS)

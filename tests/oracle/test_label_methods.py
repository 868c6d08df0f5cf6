"""CFD, SCARLET and voting against the same methods written down plainly, without frames or caches."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from fedistill import parse
from fedistill.experiment.runner import prepare
from fedistill.federation.arm import ReadyArm, start_run
from fedistill.federation.history import ArmRun
from fedistill.federation.local_executor import SerialExecutor
from fedistill.federation.round import play_round
from fedistill.methods.base import sample_public
from fedistill.models.registry import build_model
from fedistill.rng import SERVER, stream

CLIENTS, PUBLIC, ROUNDS = 3, 60, 4
LR, MOMENTUM, BATCH = 0.1, 0.5, 16


def played(method: str, **settings: Any) -> tuple[ReadyArm, ArmRun]:
    wanted = parse(
        {
            "rounds": ROUNDS,
            "task": {"name": "digits", "clients": CLIENTS, "limit": 120, "public": PUBLIC},
            "models": {"clients": ["cnn-s"], "server": "mlp-s"},
            "train": {"batch_size": BATCH, "optimizer": {"lr": LR, "momentum": MOMENTUM}},
            "evaluate": {"every": ROUNDS},
            "arms": [{"method": method, "codec": "fp32", **settings}],
        },
        "test",
    )
    task, (arm,) = prepare(wanted)
    run = start_run(arm)
    with SerialExecutor(wanted, task) as executor:
        while run.round < ROUNDS:
            play_round(run, arm, executor)
    return arm, run


class Learner:
    """A model with its optimiser, as one would keep them in a loop."""

    def __init__(self, arm: ReadyArm, name: str, stream_client: int, data: Any = None) -> None:
        self.model: nn.Module = build_model(name, arm.task.signature, seed=0, client=stream_client)
        self.optimizer = torch.optim.SGD(self.model.parameters(), LR, momentum=MOMENTUM)
        self.data = data

    def steps(self, inputs: Tensor, loss: Any, generator: torch.Generator, batch: int) -> None:
        self.model.train()
        for index in torch.randperm(len(inputs), generator=generator).split(batch):
            self.optimizer.zero_grad()
            loss(self.model(inputs[index] / 127.5 - 1), index).backward()
            self.optimizer.step()

    def train(self, client: int, round: int) -> None:
        labels = self.data.labels
        generator = stream(0, "private", client, round)
        self.steps(self.data.inputs, lambda out, at: cross_entropy(out, labels[at]), generator, BATCH)

    def distil(self, inputs: Tensor, probs: Tensor, client: int, round: int) -> None:
        generator = stream(0, "distil", client, round)

        def loss(out: Tensor, at: Tensor) -> Tensor:
            return kl_div(out.log_softmax(dim=1), probs[at], reduction="batchmean")

        self.steps(inputs, loss, generator, 32)

    @torch.no_grad()
    def probs(self, inputs: Tensor) -> Tensor:
        self.model.eval()
        return self.model(inputs / 127.5 - 1).softmax(dim=1)

    def weights(self) -> Tensor:
        return torch.cat([value.reshape(-1) for value in self.model.state_dict().values()])


def learners(arm: ReadyArm) -> tuple[list[Learner], Learner]:
    clients = [Learner(arm, "cnn-s", client, data) for client, data in enumerate(arm.task.clients)]
    return clients, Learner(arm, "mlp-s", SERVER)


def public(arm: ReadyArm) -> Tensor:
    assert arm.task.public is not None
    return arm.task.public.inputs


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


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
    close(run.server["model"], server.weights())
    assert labels is not None
    close(run.server["labels"], labels)


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
    assert run.server["labels"].argmax(dim=1).tolist() == majority
    close(run.server["model"], server.weights())


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
    assert run.server["turn"] == ROUNDS
    for place, (row, _) in cache.items():
        close(run.server["cache"][place], row)
    close(run.server["model"], server.weights())

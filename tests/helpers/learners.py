"""Clients and servers as plain loops keep them: what methods are compared with."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from fedistill.federation.arm import ReadyArm
from fedistill.federation.history import ArmRun
from fedistill.models.registry import build_model
from fedistill.rng import SERVER, stream
from helpers.runs import finished

CLIENTS, PUBLIC, ROUNDS = 3, 60, 4
LR, MOMENTUM, BATCH = 0.1, 0.5, 16


def played(method: str, **settings: Any) -> tuple[ReadyArm, ArmRun]:
    """An arm after `ROUNDS` rounds; ``settings`` are those of its table."""
    return finished(
        {
            "rounds": ROUNDS,
            "task": {"name": "digits", "clients": CLIENTS, "limit": 120, "public": PUBLIC},
            "models": {"clients": ["cnn-s"], "server": "mlp-s"},
            "train": {"batch_size": BATCH, "optimizer": {"lr": LR, "momentum": MOMENTUM}},
            "evaluate": {"every": ROUNDS},
            "arms": [{"method": method, "codec": "fp32", **settings}],
        }
    )


class Learner:
    """A model with its optimiser, as one would keep them in a loop."""

    def __init__(self, arm: ReadyArm, name: str, stream_client: int, data: Any = None) -> None:
        self.model: nn.Module = build_model(name, arm.task.signature, seed=0, client=stream_client)
        self.optimizer = torch.optim.SGD(self.model.parameters(), LR, momentum=MOMENTUM)
        self.data = data

    def steps(self, inputs: Tensor, loss: Any, generator: torch.Generator, batch: int) -> None:
        self.model.train()
        for index in torch.split(torch.randperm(len(inputs), generator=generator), batch):
            self.optimizer.zero_grad()
            loss(self.model(inputs[index] / 127.5 - 1), index).backward()
            self.optimizer.step()

    def train(self, client: int, round: int) -> None:
        labels = self.data.labels
        generator = stream(0, "private", client, round)
        self.steps(self.data.samples, lambda out, at: cross_entropy(out, labels[at]), generator, BATCH)

    def distil(self, inputs: Tensor, probs: Tensor, client: int, round: int) -> None:
        generator = stream(0, "distil", client, round)

        def loss(out: Tensor, at: Tensor) -> Tensor:
            return kl_div(out.log_softmax(dim=1), probs[at], reduction="batchmean")

        self.steps(inputs, loss, generator, 32)

    @torch.no_grad()
    def probs(self, inputs: Tensor) -> Tensor:
        self.model.eval()
        outputs: Tensor = self.model(inputs / 127.5 - 1)
        return outputs.softmax(dim=1)

    def weights(self) -> Tensor:
        return torch.cat([value.reshape(-1) for value in self.model.state_dict().values()])


def learners(arm: ReadyArm) -> tuple[list[Learner], Learner]:
    clients = [Learner(arm, "cnn-s", client, data) for client, data in enumerate(arm.task.clients)]
    return clients, Learner(arm, "mlp-s", SERVER)


def public(arm: ReadyArm) -> Tensor:
    assert arm.task.public is not None
    samples = arm.task.public.samples
    assert isinstance(samples, Tensor)
    return samples


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)

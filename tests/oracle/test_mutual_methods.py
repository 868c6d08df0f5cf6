"""FML and those akin to it against plain loops, in which each model has its own loss, optimiser and step."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedistill.federation.client import client_state
from fedistill.methods.weights.fedekd_like import FedeKdLike, FedeKdLikeSettings
from fedistill.methods.weights.fedkd import FedKd, FedKdSettings
from fedistill.methods.weights.fml import Fml, FmlSettings
from fedistill.rng import SERVER, stream
from helpers.learners import BATCH, LR, MOMENTUM, ROUNDS, Learner, close, played


def divergence(target: Tensor, output: Tensor) -> Tensor:
    """KL(target || output) of probabilities (b, C), by its definition."""
    return (target * (target.log() - output.log())).sum() / len(target)


def fml(own: Tensor, other: Tensor, labels: Tensor, share: float) -> Tensor:
    other = other.detach().softmax(dim=1)
    return share * cross_entropy(own, labels) + (1 - share) * divergence(other, own.softmax(dim=1))


def fedkd(own: Tensor, other: Tensor, labels: Tensor, floor: float) -> Tensor:
    both = max((cross_entropy(own, labels) + cross_entropy(other, labels)).item(), floor)
    other = other.detach().softmax(dim=1)
    return cross_entropy(own, labels) + divergence(other, own.softmax(dim=1)) / both


def gated(own: Tensor, other: Tensor, labels: Tensor, share: float, sharpness: float) -> Tensor:
    """The loss of a personal model in FedeKD-like, sample by sample."""
    guides = other.detach().softmax(dim=1)
    energies = [
        divergence(guide[None], row.softmax(dim=0)[None]) for guide, row in zip(guides, own, strict=True)
    ]
    mean = sum(energy.item() for energy in energies) / len(energies)
    taught = [energy * math.exp(-sharpness * energy.item() / mean) for energy in energies]
    return share * cross_entropy(own, labels) + (1 - share) * torch.stack(taught).mean()


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("fedekd-like", {}),
        ("fedekd-like", {"alpha": 0.2, "beta": 0.9, "sharpness": 3.0}),
        ("fml", {}),
        ("fml", {"alpha": 0.2, "beta": 0.9}),
        ("fml", {"alpha": 1.0}),
        ("fedkd", {}),
        ("fedkd", {"floor": 4.0}),
    ],
)
def test_the_run_is_the_plain_loop(method: str, settings: dict[str, Any]) -> None:
    arm, run = played(method, **settings)
    clients = [Learner(arm, "cnn-s", client, data) for client, data in enumerate(arm.task.clients)]
    shared = Learner(arm, "mlp-s", SERVER).model
    for round in range(1, ROUNDS + 1):
        trained = []
        for number, client in enumerate(clients):
            model, labels = copy.deepcopy(shared), client.data.labels
            optimizer = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM)
            order = torch.randperm(len(labels), generator=stream(0, "private", number, round))
            for index in order.split(BATCH):
                inputs, y = client.data.samples[index] / 127.5 - 1, labels[index]
                own, other = client.model(inputs), model(inputs)
                if method == "fml":
                    first = fml(own, other, y, settings.get("alpha", 0.5))
                    second = fml(other, own, y, settings.get("beta", 0.5))
                elif method == "fedekd-like":
                    first = gated(own, other, y, settings.get("alpha", 0.5), settings.get("sharpness", 1.0))
                    second = fml(other, own, y, settings.get("beta", 0.5))
                else:
                    floor = settings.get("floor", 0.0)
                    first, second = fedkd(own, other, y, floor), fedkd(other, own, y, floor)
                for loss, learns in ((first, client.optimizer), (second, optimizer)):
                    learns.zero_grad()
                    loss.backward()
                    learns.step()
            trained.append((model.state_dict(), len(labels)))
        total = sum(samples for _, samples in trained)
        shared.load_state_dict(
            {
                name: sum(weights[name] * samples / total for weights, samples in trained)
                for name in shared.state_dict()
            }
        )
    close(run.server.model.weights, torch.cat([value.reshape(-1) for value in shared.state_dict().values()]))
    for number, client in enumerate(clients):
        kept = client_state(arm, number, run.clients[number])
        close(kept.model.weights, client.weights())
        assert len(kept.optimizer) == len(list(client.model.parameters()))


def tasks(own: Tensor, other: Tensor, label: int) -> tuple[Tensor, Tensor]:
    """Cross entropies of both models."""
    y = torch.tensor([label])
    return cross_entropy(own, y), cross_entropy(other, y)


def test_fml_by_hand() -> None:
    """Two classes, own (.75, .25), other (.5, .5), label 0."""
    own, other = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
    first = 0.2 * math.log(4 / 3) + 0.8 * 0.5 * (math.log(2 / 3) + math.log(2))
    second = 0.6 * math.log(2) + 0.4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    found = Fml(FmlSettings(alpha=0.2, beta=0.6)).loss(own, other, *tasks(own, other, 0))
    assert float(found) == pytest.approx(first + second, abs=1e-6)


def test_fedekd_trusts_the_proxy_less_where_both_disagree() -> None:
    """Energies 1, 1 and 4 have the mean 2."""
    trust = FedeKdLike(FedeKdLikeSettings(sharpness=2.0)).trust(torch.tensor([1.0, 1.0, 4.0]))
    assert trust.tolist() == pytest.approx([math.exp(-1), math.exp(-1), math.exp(-4)])
    same = FedeKdLike(FedeKdLikeSettings()).trust(torch.zeros(2))
    assert same.tolist() == [1.0, 1.0]


def test_fedekd_without_a_gate_is_fml() -> None:
    generator = torch.Generator().manual_seed(0)
    own, other = torch.randn(2, 6, 4, generator=generator)
    y = torch.arange(6) % 4
    losses = cross_entropy(own, y), cross_entropy(other, y)
    found = FedeKdLike(FedeKdLikeSettings(alpha=0.3, beta=0.7, sharpness=0.0)).loss(own, other, *losses)
    torch.testing.assert_close(found, Fml(FmlSettings(alpha=0.3, beta=0.7)).loss(own, other, *losses))


def test_fedkd_teaches_less_where_labels_are_learned_badly() -> None:
    """The same two outputs, but the label is the class that both find less likely."""
    own, other = torch.tensor([[3.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    method = FedKd(FedKdSettings())
    taught = {}
    for label in (0, 1):
        learned = tasks(own, other, label)
        taught[label] = float(method.loss(own, other, *learned) - sum(learned))
    assert taught[0] > 10 * taught[1] > 0


def test_fedkd_survives_models_that_are_sure() -> None:
    """Task losses of exactly 0 would divide by 0."""
    own = torch.tensor([[200.0, 0.0]], requires_grad=True)
    other = torch.tensor([[300.0, 0.0]])
    loss = FedKd(FedKdSettings()).loss(own, other, *tasks(own, other, 0))
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert own.grad is not None
    assert torch.isfinite(own.grad).all()

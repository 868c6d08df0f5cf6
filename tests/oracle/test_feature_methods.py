"""FedProto, FedTGP, FD+ and FedGen against the same methods written down plainly, without frames."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from fedistill.communication.messages.classwise import Prototypes
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client import client_state
from fedistill.federation.history import ArmRun
from fedistill.methods.base import Reply
from fedistill.methods.classwise.fedtgp import FedTgp, FedTgpSettings
from fedistill.models.registry import build_model
from fedistill.rng import SERVER, scoped, stream
from helpers.learners import BATCH, ROUNDS, Learner, close, played

SKEWED = {"kind": "pathological", "classes_per_client": 4}
CLASSES, WIDTH = 10, 128
"""cnn-s on digits: 32 channels of 2 x 2."""


def skewed(method: str, **settings: Any) -> tuple[ReadyArm, ArmRun]:
    """Clients have four classes each, so that some are had by one alone, and some by none."""
    models = {"clients": ["cnn-s"], "server": "cnn-s"}
    return played(method, {"partition": SKEWED, "public": 0}, **{"models": models, **settings})


def features(learner: Learner, inputs: Tensor) -> Tensor:
    found: Tensor = learner.model.get_submodule("features")(inputs / 127.5 - 1)
    return found


def head(learner: Learner) -> nn.Linear:
    found = learner.model.get_submodule("head")
    assert isinstance(found, nn.Linear)
    return found


def order(client: int, round: int, learner: Learner) -> tuple[Tensor, ...]:
    shuffled = torch.randperm(len(learner.data), generator=stream(0, "private", client, round))
    return shuffled.split(BATCH)


def towards(
    learner: Learner, client: int, round: int, known: dict[int, Tensor], weight: float
) -> dict[int, Tensor]:
    """Train as FedProto's clients do, sample by sample where it matters; return the means of the features."""
    learner.model.train()
    for index in order(client, round, learner):
        y = learner.data.labels[index]
        z = features(learner, learner.data.samples[index])
        goal = torch.stack([known.get(int(label), z[at].detach()) for at, label in enumerate(y)])
        loss = cross_entropy(head(learner)(z), y) + weight * mse_loss(z, goal)
        learner.optimizer.zero_grad()
        loss.backward()
        learner.optimizer.step()
    with torch.no_grad():
        learner.model.eval()
        z = features(learner, learner.data.samples)
    return {int(c): z[learner.data.labels == c].mean(dim=0) for c in learner.data.labels.unique()}


def clients_of(arm: ReadyArm) -> list[Learner]:
    return [Learner(arm, "cnn-s", client, data) for client, data in enumerate(arm.task.clients)]


def close_clients(arm: ReadyArm, run: ArmRun, learners: list[Learner]) -> None:
    for client, learner in enumerate(learners):
        close(client_state(arm, client, run.clients[client]).model.weights, learner.weights())


def merged(came: list[dict[int, Tensor]]) -> dict[int, Tensor]:
    """The plain mean over those that have a class."""
    return {
        c: torch.stack([one[c] for one in came if c in one]).mean(dim=0)
        for c in range(CLASSES)
        if any(c in one for one in came)
    }


def test_fedproto_is_the_plain_loop() -> None:
    arm, run = skewed("fedproto", weight=3.0)
    learners = clients_of(arm)
    known: dict[int, Tensor] = {}
    for round in range(1, ROUNDS + 1):
        came = [towards(learner, client, round, known, 3.0) for client, learner in enumerate(learners)]
        known = merged(came)
    close_clients(arm, run, learners)
    assert run.server.present.nonzero().flatten().tolist() == sorted(known)
    for c, vector in known.items():
        close(run.server.prototypes[c], vector)


def test_a_class_that_is_not_named_keeps_its_prototype() -> None:
    arm, run = skewed("fedproto")
    before = run.server.prototypes
    server, method = arm.server(ROUNDS + 1), arm.method
    only = torch.zeros(CLASSES, dtype=torch.bool)
    only[4] = True
    state = method.server_step(
        run.server, server, [Reply(0, Prototypes.of(torch.ones(CLASSES, WIDTH), only))]
    )
    assert torch.equal(state.prototypes[4], torch.ones(WIDTH))
    assert torch.equal(state.prototypes[[0, 1, 2, 3, 5, 6, 7, 8, 9]], before[[0, 1, 2, 3, 5, 6, 7, 8, 9]])
    assert torch.equal(state.present, run.server.present)


def test_fedtgp_is_the_plain_loop() -> None:
    epochs, batch = 3, 7
    arm, run = skewed("fedtgp", server_epochs=epochs, server_batch_size=batch, server_lr=0.05)
    learners = clients_of(arm)
    with scoped(0, "prototypes"):
        embedding, inner, outer = (
            nn.Embedding(CLASSES, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, WIDTH),
        )
    weights = [embedding.weight, inner.weight, inner.bias, outer.weight, outer.bias]
    known: dict[int, Tensor] = {}
    for round in range(1, ROUNDS + 1):
        came = [towards(learner, client, round, known, 1.0) for client, learner in enumerate(learners)]
        centres = merged(came)
        nearest = [min(float((centres[a] - centres[b]).norm()) for b in centres if b != a) for a in centres]
        margin = min(100.0, max(nearest))
        pairs = [(c, vector) for one in came for c, vector in one.items()]
        generator = stream(0, "prototypes", SERVER, round)
        for _ in range(epochs):
            for index in torch.randperm(len(pairs), generator=generator).split(batch):
                prototypes = outer(inner(embedding.weight).relu())
                losses = []
                for place in index.tolist():
                    c, vector = pairs[place]
                    scores = -(vector - prototypes).norm(dim=1) - margin * one_hot(torch.tensor(c), CLASSES)
                    losses.append(-scores.log_softmax(dim=0)[c])
                gradients = torch.autograd.grad(torch.stack(losses).mean(), weights)
                with torch.no_grad():
                    for value, gradient in zip(weights, gradients, strict=True):
                        value -= 0.05 * gradient
        prototypes = outer(inner(embedding.weight).relu()).detach()
        known = {c: prototypes[c] for c in set(known) | set(centres)}
    close_clients(arm, run, learners)
    close(run.server.prototypes, prototypes)


def test_the_adaptive_margin_by_hand() -> None:
    """Distances 3, 4 and 5: nearest others at 3, 3 and 4, of which 4 is the largest."""
    means = torch.tensor([[0.0, 0.0], [9.0, 9.0], [3.0, 0.0], [0.0, 4.0]])
    named = torch.tensor([True, False, True, True])
    assert FedTgp(FedTgpSettings())._margin(means, named) == pytest.approx(4)
    assert FedTgp(FedTgpSettings(margin=2))._margin(means, named) == 2
    assert FedTgp(FedTgpSettings(margin=2))._margin(means, torch.tensor([True, False, False, False])) == 2


def test_fd_plus_is_the_plain_loop() -> None:
    gamma = 0.7
    arm, run = skewed("fd-plus", gamma=gamma, models={"clients": ["cnn-s"], "server": "cnn-s"})
    server = Learner(arm, "cnn-s", SERVER)
    outputs: list[dict[int, Tensor]] = []
    for round in range(1, ROUNDS + 1):
        before, outputs = outputs, []
        total = torch.zeros_like(server.weights())
        for client, data in enumerate(arm.task.clients):
            learner = Learner(arm, "cnn-s", client, data)
            nn.utils.vector_to_parameters(server.weights(), learner.model.parameters())
            others = [table for place, table in enumerate(before) if place != client]
            seen: dict[int, list[Tensor]] = {}
            learner.model.train()
            for index in order(client, round, learner):
                logits = learner.model(data.samples[index] / 127.5 - 1)
                loss = torch.zeros(())
                for row, c in zip(logits, data.labels[index].tolist(), strict=True):
                    seen.setdefault(c, []).append(row.detach().softmax(dim=0))
                    loss = loss - row.log_softmax(dim=0)[c]
                    told = [table[c] for table in others if c in table]
                    if told:
                        goal = torch.stack(told).mean(dim=0)
                        loss = loss - gamma * (goal * row.log_softmax(dim=0)).sum()
                learner.optimizer.zero_grad()
                (loss / len(index)).backward()
                learner.optimizer.step()
            outputs.append({c: torch.stack(rows).mean(dim=0) for c, rows in seen.items()})
            total += len(data) * learner.weights()
        samples = sum(len(data) for data in arm.task.clients)
        nn.utils.vector_to_parameters(total / samples, server.model.parameters())
    close(run.server.model.weights, server.weights())
    for client, table in enumerate(outputs):
        for c, row in table.items():
            close(run.server.outputs.tables[client][c], row)


@pytest.mark.parametrize("share", ["all", "predictor"])
def test_fedgen_is_the_plain_loop(share: str) -> None:
    """The generator too: with Adam, a few small steps, and classes drawn by what the clients hold."""
    noise, hidden, steps, batch, eta, alpha, decay = 6, 9, 5, 16, 0.5, 2.0, 0.9
    arm, run = skewed(
        "fedgen",
        models={"clients": ["cnn-s"], "server": "cnn-s"},
        share=share,
        noise=noise,
        hidden=hidden,
        steps=steps,
        batch_size=batch,
        diversity=eta,
        weight=alpha,
        decay=decay,
    )
    whole = Learner(arm, "cnn-s", SERVER)
    with scoped(0, "generator"):
        generator = nn.Sequential(
            *(nn.Linear(noise + CLASSES, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, WIDTH))
        )
    adam = torch.optim.Adam(generator.parameters(), 3e-4, weight_decay=1e-2)

    def made(y: Tensor, eps: Tensor) -> Tensor:
        found: Tensor = generator(torch.cat([eps, torch.eye(CLASSES)[y]], dim=1))
        return found

    learners = [Learner(arm, "cnn-s", SERVER, data) for data in arm.task.clients]
    counts = torch.stack(
        [torch.bincount(data.labels, minlength=CLASSES) for data in arm.task.clients]
    ).float()
    shares = counts.sum(dim=0) / counts.sum()
    for round in range(1, ROUNDS + 1):
        for client, learner in enumerate(learners):
            if share == "all":
                learner = learners[client] = Learner(arm, "cnn-s", SERVER, learner.data)
                learner.model.load_state_dict(whole.model.state_dict())
            else:
                head(learner).load_state_dict(head(whole).state_dict())
            random = stream(0, "generator", client, round)
            learner.model.train()
            for index in order(client, round, learner):
                loss = cross_entropy(
                    learner.model(learner.data.samples[index] / 127.5 - 1), learner.data.labels[index]
                )
                if round > 1:
                    y = torch.multinomial(shares, len(index), replacement=True, generator=random)
                    eps = torch.rand(len(index), noise, generator=random)
                    generated = cross_entropy(head(learner)(made(y, eps).detach()), y)
                    loss = loss + alpha * decay ** (round - 1) * generated
                learner.optimizer.zero_grad()
                loss.backward()
                learner.optimizer.step()
        random = stream(0, "generator", SERVER, round)
        for _ in range(steps):
            y = torch.multinomial(counts.sum(dim=0), batch, replacement=True, generator=random)
            eps = torch.rand(batch, noise, generator=random)
            z = made(y, eps)
            products = [
                ((eps[a] - eps[b]) ** 2).mean() * (z[a] - z[b]).abs().mean()
                for a in range(batch)
                for b in range(batch)
            ]
            loss = eta * torch.exp(-torch.stack(products).mean())
            for client, learner in enumerate(learners):
                for place, c in enumerate(y.tolist()):
                    own = counts[client, c] / counts[:, c].sum()
                    with torch.no_grad():
                        weight, bias = head(learner).weight.clone(), head(learner).bias.clone()
                    loss = loss - own * (z[place] @ weight.T + bias).log_softmax(dim=0)[c] / batch
            adam.zero_grad()
            loss.backward()
            adam.step()
        sizes = counts.sum(dim=1)
        for name, value in whole.model.state_dict().items():
            parts = [n * learner.model.state_dict()[name] for n, learner in zip(sizes, learners, strict=True)]
            if share == "all" or name.startswith("head"):
                value.copy_(torch.stack(parts).sum(dim=0) / sizes.sum())
    if share == "all":
        close(run.server.model.weights, whole.weights())
    else:
        flat = torch.cat([head(whole).weight.detach().flatten(), head(whole).bias.detach()])
        close(run.server.shared.weights, flat)
        close_clients(arm, run, learners)
    close(run.server.generator, torch.cat([value.detach().flatten() for value in generator.parameters()]))


def test_the_common_start_of_fedgen_predictors_is_per_model() -> None:
    """Clients that share predictors alone start from one body, else features would mean unlike things."""
    arm, _ = skewed("fedgen", share="predictor", models={"clients": ["cnn-s", "cnn-m"], "server": "cnn-s"})
    for info in arm.federation.clients:
        model = build_model(info.model, arm.task.signature, seed=0, client=SERVER)
        weights = torch.cat([value.detach().flatten() for value in model.parameters()])
        assert torch.equal(arm.method.start_client(arm.client(info.id, 1)).model.weights, weights)

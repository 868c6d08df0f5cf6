"""Methods against slow plain twins and numbers worked out by hand."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedistill.communication.messages.classwise import ClassOutputs
from fedistill.communication.messages.labels import SoftLabels
from fedistill.communication.messages.weights import TrainedWeights
from fedistill.communication.protocol.endpoints import ServerEndpoint
from fedistill.config.schema import Experiment
from fedistill.federation.arm import ReadyArm
from fedistill.federation.local_executor import SerialExecutor
from fedistill.federation.round import play_round
from fedistill.federation.setup import start_run
from fedistill.methods.base import Reply
from fedistill.methods.shared.class_outputs import ClassTables
from fedistill.models.registry import build_model
from fedistill.rng import SERVER, stream
from helpers.runs import ready, run_serially


def arm_of(method: str, **settings: Any) -> tuple[Experiment, ReadyArm]:
    return ready(
        {
            "rounds": 2,
            "task": {"name": "digits", "clients": 3, "limit": 120, "public": 60},
            "models": {"clients": ["cnn-s"], "server": "cnn-s"},
            "train": {"epochs": 2, "batch_size": 16, "optimizer": {"lr": 0.1, "momentum": 0.5}},
            "arms": [{"method": method, **settings}],
        }
    )


def plain_fedavg(arm: ReadyArm, rounds: int, mu: float = 0.0) -> Tensor:
    """FedAvg and FedProx as one would write them down: no frames, no flat vectors, no reuse."""
    signature = arm.task.signature
    state = build_model("cnn-s", signature, seed=0, client=SERVER).state_dict()
    for round in range(1, rounds + 1):
        received = []
        for client, data in enumerate(arm.task.clients):
            model = build_model("cnn-s", signature, seed=5, client=client)
            model.load_state_dict(state)
            anchor = [parameter.detach().clone() for parameter in model.parameters()]
            optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.5)
            generator = stream(0, "private", client, round)
            for _ in range(2):
                for index in torch.randperm(len(data), generator=generator).split(16):
                    optimizer.zero_grad()
                    loss = cross_entropy(model(data.samples[index] / 127.5 - 1), data.labels[index])
                    for parameter, start in zip(model.parameters(), anchor, strict=True):
                        loss = loss + mu / 2 * ((parameter - start) ** 2).sum()
                    loss.backward()
                    optimizer.step()
            received.append((model.state_dict(), len(data)))
        total = sum(samples for _, samples in received)
        state = {
            name: sum(weights[name] * (samples / total) for weights, samples in received) for name in state
        }
    return torch.cat([value.reshape(-1) for value in state.values()])


@pytest.mark.parametrize(("method", "mu"), [("fedavg", 0.0), ("fedprox", 0.5)])
def test_weight_averaging_is_the_plain_loop(method: str, mu: float) -> None:
    wanted, arm = arm_of(method, **({"mu": mu} if mu else {}))
    run = run_serially(wanted, arm)
    torch.testing.assert_close(run.server.model.weights, plain_fedavg(arm, 2, mu), rtol=1e-4, atol=1e-5)


def test_fedprox_pulls_towards_what_was_received() -> None:
    moved = []
    for mu in (0.0, 1.0):
        wanted, arm = arm_of("fedprox", mu=mu)
        run = start_run(arm)
        start = run.server.model.weights.clone()
        with SerialExecutor(wanted, arm.task) as executor:
            play_round(run, arm, executor)
        moved.append(float((run.server.model.weights - start).norm()))
    assert moved[1] < 0.9 * moved[0]


def test_mean_of_others_counts_only_clients_that_hold_the_class() -> None:
    first = torch.tensor([[0.6, 0.4], [0.0, 0.0]])
    second = torch.tensor([[0.2, 0.8], [0.3, 0.7]])
    state = ClassTables.of({10: first, 2: second, 3: torch.zeros(2, 2)})
    told = {client: state.mean_of_others(client) for client in (2, 3, 7, 10)}
    assert torch.equal(told[2], first)
    assert torch.equal(told[10], second)
    for client in (3, 7):
        torch.testing.assert_close(told[client], torch.tensor([[0.4, 0.6], [0.3, 0.7]]))
    assert ClassTables.of({2: second}).mean_of_others(2) is None


@given(st.integers(2, 12), st.integers(0, 2**16))
def test_leaving_one_out_of_a_sum_is_adding_up_the_others(clients: int, seed: int) -> None:
    """Rows of zeros, and probabilities next to nothing, included."""
    random = torch.Generator().manual_seed(seed)
    tables = torch.randn(clients, 4, 4, generator=random).mul(20).softmax(dim=2)
    tables *= torch.rand(clients, 4, 1, generator=random) < 0.6
    state = ClassTables.of(dict(enumerate(tables)))
    for client in range(clients):
        others = tables[[other for other in range(clients) if other != client]]
        holders = (others.sum(dim=2, keepdim=True) > 0).sum(dim=0)
        expected = (others.double().sum(dim=0) / holders.clamp(min=1)).float()
        found = state.mean_of_others(client)
        assert found is not None
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-15)
        assert torch.equal(found.sum(dim=1) > 0, holders.flatten() > 0)


def test_fd_leaves_the_client_itself_out() -> None:
    _, arm = arm_of("fd")
    tables = [torch.full((10, 10), value) for value in (0.1, 0.2, 0.6)]
    replies = [Reply(client, ClassOutputs(table)) for client, table in enumerate(tables)]
    state = arm.method.server_step(arm.method.start_server(arm.server(0)), arm.server(1), replies)
    told = [arm.method.send(state, arm.server(2), client) for client in range(3)]
    for message, others in zip(told, (0.4, 0.35, 0.15), strict=True):
        assert isinstance(message, ClassOutputs)
        torch.testing.assert_close(message.means, torch.full((10, 10), others))


def test_fd_sends_the_mean_softmax_of_each_class_it_holds() -> None:
    wanted, arm = arm_of("fd")
    data = arm.task.clients[0]
    frame = next(iter(SerialExecutor(wanted, arm.task).run_clients("fd", 1, [(0, b"", b"")]))).frame
    end = ServerEndpoint(arm.coder, {}, arm.initial_shared_state, round=1)
    came = end.receive(0, ClassOutputs, frame, arm.message_context(0))
    assert came is not None
    means = came.means
    held = torch.bincount(data.labels, minlength=10) > 0
    torch.testing.assert_close(means.sum(dim=1), held.float())


def test_dsfl_averages_probabilities_and_sharpens_them() -> None:
    _, arm = arm_of("dsfl", aggregation={"name": "era", "temperature": 0.5})
    public = torch.zeros(60, 10)
    one, two = public.clone(), public.clone()
    one[:, 0], two[:, 0], two[:, 1] = 1.0, 0.5, 0.5
    start = arm.method.start_server(arm.server(0))
    replies = [Reply(0, SoftLabels(one, 1)), Reply(1, SoftLabels(two, 1))]
    state = arm.method.server_step(start, arm.server(1), replies)
    # Mean (0.75, 0.25, 0, ...), over T = 0.5: exp(1.5), exp(0.5) and eight times exp(0).
    total = 4.4816891 + 1.6487213 + 8
    expected = torch.tensor([4.4816891 / total, 1.6487213 / total, *[1 / total] * 8])
    torch.testing.assert_close(state.labels, expected.expand(60, 10))
    assert state.sampled_round == 1


def test_feddf_teacher_is_the_softmax_of_mean_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    _, arm = arm_of("feddf", fuse=False)
    server = arm.server(1)
    first, second = (build_model("cnn-s", arm.task.signature, seed, 0) for seed in (1, 2))
    from fedistill.training.model_state import flatten

    replies = [
        Reply(0, TrainedWeights(flatten(first), samples=10)),
        Reply(1, TrainedWeights(flatten(second), samples=30)),
    ]
    state = arm.method.start_server(arm.server(0))
    after = arm.method.server_step(state, server, replies)
    average = (flatten(first) * 10 + flatten(second) * 30) / 40
    torch.testing.assert_close(after.travelling["cnn-s"].weights, average)
    seen: list[Tensor] = []

    def keep(logits: Tensor, probs: Tensor) -> Tensor:
        seen.append(probs)
        return logits.sum() * 0

    monkeypatch.setattr("fedistill.training.losses.kl", keep)
    _, fusing = arm_of("feddf", batch_size=60, epochs=1)
    fusing.method.server_step(state, fusing.server(1), replies)
    with torch.no_grad():
        inputs = arm.task.public.samples / 127.5 - 1
        teacher = ((first(inputs) + second(inputs)) / 2).softmax(dim=1)
    torch.testing.assert_close(seen[0].sort(dim=0).values, teacher.sort(dim=0).values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["fedmd", "dsfl"])
def test_both_sides_draw_the_same_public_samples(method: str) -> None:
    _, arm = arm_of(method, samples=20)
    for round in (1, 2):
        drawn = [arm.client(client, round).sampled_public(20, round) for client in range(3)]
        at_server = [arm.client(0, 7).sampled_public(20, round)]
        assert all(torch.equal(drawn[0], other) for other in [*drawn[1:], *at_server])
        assert len(drawn[0]) == 20
    assert not torch.equal(arm.client(0, 1).sampled_public(20, 1), arm.client(0, 1).sampled_public(20, 2))


def test_only_server_alone_sees_public_labels() -> None:
    for method in ("fedavg", "feddf", "dsfl", "fedmd", "fd", "local"):
        assert arm_of(method)[1].server(1).public_labels is None
    assert arm_of("server-alone")[1].server(1).public_labels is not None

"""FedGKT against the same method written down plainly: no frames, no states, one loop."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, layer_norm, linear

from fedistill import parse
from fedistill.communication.messages.private_samples import PrivateOutputs
from fedistill.errors import FrameError
from fedistill.experiment.runner import run_experiment
from fedistill.federation.arm import ReadyArm
from fedistill.federation.history import ArmRun
from fedistill.methods.base import Reply
from fedistill.models.residual import ResidualMlp, ResidualSettings
from fedistill.rng import SERVER, scoped, stream
from fedistill.state import encode_state, to_plain
from helpers.learners import Learner, close
from helpers.runs import finished
from helpers.watchers import Watcher

CLIENTS, ROUNDS = 3, 3
WEIGHT, HEAT, WIDTH, DEPTH, EPOCHS, BATCH = 0.7, 2.0, 12, 2, 2, 20
FEATURES, CLASSES = 128, 10
"""Of cnn-s on digits."""
RAW: dict[str, Any] = {
    "rounds": ROUNDS,
    "task": {"name": "digits", "clients": CLIENTS, "limit": 120},
    "models": {"clients": ["cnn-s"], "server": "mlp-s"},
    "train": {"batch_size": 16, "optimizer": {"lr": 0.1, "momentum": 0.5}},
    "sampling": {"fraction": 0.34},
    "arms": [
        {
            "method": "fedgkt",
            "codec": "fp32",
            "weight": WEIGHT,
            "temperature": HEAT,
            "width": WIDTH,
            "depth": DEPTH,
            "server_epochs": EPOCHS,
            "server_batch_size": BATCH,
            "optimizer": {"name": "adam", "lr": 0.002, "weight_decay": 0.01},
        }
    ],
}


def played(**changes: Any) -> tuple[ReadyArm, ArmRun]:
    return finished({**RAW, **changes})


class Edge(Learner):
    """A client; all begin with the same weights."""

    def __init__(self, arm: ReadyArm, number: int) -> None:
        super().__init__(arm, "cnn-s", SERVER, arm.task.clients[number])

    def work(self, number: int, round: int, known: Tensor | None) -> None:
        labels = self.data.labels

        def loss(out: Tensor, at: Tensor) -> Tensor:
            value = cross_entropy(out, labels[at])
            return value if known is None else value + distance(out, known[at])

        self.steps(self.data.samples, loss, stream(0, "private", number, round), 16)

    @torch.no_grad()
    def outputs(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        self.model.eval()
        features = self.model.features(inputs / 127.5 - 1)  # type: ignore[operator]  # a module
        return features, self.model.head(features)  # type: ignore[operator]  # so is this


def distance(out: Tensor, other: Tensor) -> Tensor:
    target = (other / HEAT).softmax(dim=1)
    return WEIGHT * HEAT**2 * kl_div((out / HEAT).log_softmax(dim=1), target, reduction="batchmean")


def flat(net: ResidualMlp) -> Tensor:
    return torch.cat([value.flatten() for value in net.state_dict().values()])


@pytest.mark.parametrize("fraction", [1.0, 0.67, 0.34])
def test_the_run_is_the_plain_loop(fraction: float) -> None:
    """With a third of the clients, one each round; the views count all, also who has not worked yet."""
    arm, run = played(sampling={"fraction": fraction})
    edges = [Edge(arm, number) for number in range(CLIENTS)]
    with scoped(0, "server-net"):
        net = ResidualMlp(FEATURES, CLASSES, ResidualSettings(width=WIDTH, depth=DEPTH))
    optimizer = torch.optim.Adam(net.parameters(), 0.002, weight_decay=0.01)
    answers: dict[int, Tensor] = {}
    for record in run.records:
        for number in record.clients:
            edges[number].work(number, record.round, answers.get(number))
        sent = [edges[number].outputs(edges[number].data.samples) for number in record.clients]
        features, scores = (torch.cat(parts) for parts in zip(*sent, strict=True))
        labels = torch.cat([edges[number].data.labels for number in record.clients])
        order = stream(0, "server-net", SERVER, record.round)
        for _ in range(EPOCHS):
            for at in torch.randperm(len(features), generator=order).split(BATCH):
                out = net(features[at])
                loss = cross_entropy(out, labels[at]) + distance(out, scores[at])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        with torch.no_grad():
            for number, (own, _) in zip(record.clients, sent, strict=True):
                answers[number] = net(own)
            test = arm.task.test
            right = [
                float((net(edge.outputs(test.samples)[0]).argmax(dim=1) == test.labels).float().mean())
                for edge in edges
            ]
        assert record.views["server@global"] == pytest.approx(sum(right) / CLIENTS, abs=2e-3)
    close(run.server.model.weights, flat(net))
    assert list(run.server.logits) == sorted(answers)
    for number, expected in answers.items():
        close(run.server.logits[number], expected)
        assert torch.equal(run.server.labels[number], edges[number].data.labels)


def test_the_net_by_hand() -> None:
    """Entered once; each block adds two layers, both behind a norm and a ReLU; and a head behind the same."""
    net = ResidualMlp(6, 3, ResidualSettings(width=4, depth=2))
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    values = [value.detach() for value in net.parameters()]
    features = torch.randn(5, 6, generator=generator)

    def layer(hidden: Tensor, place: int) -> Tensor:
        scale, shift, weight, bias = values[place : place + 4]
        return linear(layer_norm(hidden, (4,), scale, shift).relu(), weight, bias)

    hidden = linear(features, values[0], values[1])
    for place in (2, 10):
        hidden = hidden + layer(layer(hidden, place), place + 4)
    torch.testing.assert_close(net(features), layer(hidden, 18))
    assert len(values) == 22


def test_a_reply_without_labels_that_the_server_lacks_is_refused() -> None:
    arm, run = played()
    size = len(arm.task.clients[1])
    message = PrivateOutputs(torch.zeros(size, FEATURES), torch.zeros(size, CLASSES), torch.zeros(0), 0)
    arm.method.check_reply(run.server, arm.server(4), Reply(1, message))
    with pytest.raises(FrameError, match="it has no labels, and the server has none of this client"):
        arm.method.check_reply(replace(run.server, labels={}), arm.server(4), Reply(1, message))


def test_nobody_replied() -> None:
    arm, run = played()
    after = arm.method.server_step(run.server, arm.server(4), [])
    assert encode_state(to_plain(after)) == encode_state(to_plain(run.server))


def test_results_name_the_net_and_the_folder_has_it(tmp_path: Path) -> None:
    """`models.server` is mlp-s, which this method does not use: neither its name nor its size is shown."""
    content = run_experiment(
        parse({**RAW, "runtime": {"workers": 1}}, "test"), tmp_path / "run", "test", Watcher()
    )
    (found,) = content["arms"]
    assert (found["status"], found["server_model"]) == ("done", "residual-mlp")
    block = 2 * (2 * WIDTH + WIDTH**2 + WIDTH)
    head = 2 * WIDTH + WIDTH * CLASSES + CLASSES
    assert found["parameters"]["server"] == FEATURES * WIDTH + WIDTH + DEPTH * block + head
    (path,) = (tmp_path / "run").glob("models/*/server/model.safetensors")
    net = ResidualMlp(FEATURES, CLASSES, ResidualSettings(width=WIDTH, depth=DEPTH))
    net.load_state_dict(load_file(path))
    _, run = played()
    assert torch.equal(flat(net), run.server.model.weights)

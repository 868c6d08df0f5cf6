"""Fed-ET against the same method written down plainly, one public sample at a time."""

import statistics

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedistill.errors import TrainingError
from fedistill.methods.weights.fed_et import consensus
from fedistill.models.registry import build_model
from fedistill.rng import SERVER, stream
from helpers.learners import PUBLIC, ROUNDS, Learner, close, played, public

LAMBDA = 0.3
MODELS = ("cnn-s", "mlp-s", "cnn-s")
"""cnn-s has features as long as those of the server's cnn-m; mlp-s has not."""

State = dict[str, Tensor]
Answer = tuple[int, list[float] | None]
"""The consensus on a sample, and the probabilities of those who are against it."""


def consulted(logits: list[list[float]]) -> Answer:
    """What the clients' logits of one sample come to."""
    variance = [statistics.variance(row) for row in logits]

    def weighted(who: list[int]) -> list[float]:
        total = sum(variance[k] for k in who)
        return [sum(variance[k] * logits[k][c] for k in who) / total for c in range(len(logits[0]))]

    mean = weighted(list(range(len(logits))))
    label = mean.index(max(mean))
    against = [k for k, row in enumerate(logits) if row.index(max(row)) != label]
    return label, torch.tensor(weighted(against)).softmax(dim=0).tolist() if against else None


def test_consensus_is_the_plain_one() -> None:
    scales = torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None]
    logits = scales * torch.randn(4, 50, 6, generator=torch.Generator().manual_seed(0))
    labels, diverse = consensus(logits)
    outvoted = 0
    for sample in range(50):
        label, others = consulted(logits[:, sample].tolist())
        assert int(labels[sample]) == label
        close(diverse[sample], torch.zeros(6) if others is None else torch.tensor(others))
        outvoted += others is not None
    assert outvoted > 0


def test_a_sure_client_decides_and_the_other_is_kept_as_diverse() -> None:
    logits = torch.tensor([[[9.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]])
    labels, diverse = consensus(logits)
    assert labels.tolist() == [0]
    close(diverse, logits[1].softmax(dim=1))


def test_without_other_opinions_nothing_is_diverse() -> None:
    _, diverse = consensus(torch.tensor([[[3.0, 0.0]], [[1.0, 0.0]]]))
    assert diverse.tolist() == [[0.0, 0.0]]
    _, diverse = consensus(torch.zeros(2, 1, 3))
    assert diverse.tolist() == [[0.0, 0.0, 0.0]]


def test_logits_beyond_a_consensus_are_no_class_0() -> None:
    """Their variance is infinite, and the sum over clients who disagree is NaN."""
    logits = torch.tensor([[[-1e30, 1e30]], [[1e30, -1e30]]])
    with pytest.raises(TrainingError, match=r"logits up to 1e\+30, too large for a consensus"):
        consensus(logits)


@pytest.mark.parametrize("share_head", [True, False])
def test_the_run_is_the_plain_loop(share_head: bool) -> None:
    models = {"clients": list(MODELS), "server": "cnn-m"}
    arm, run = played("fed-et", models=models, diversity=LAMBDA, epochs=2, share_head=share_head)

    def initial(name: str) -> nn.Module:
        return build_model(name, arm.task.signature, seed=0, client=SERVER)

    travelling, server = {name: initial(name).state_dict() for name in MODELS}, initial("cnn-m")
    inputs = public(arm) / 127.5 - 1
    for round in range(1, ROUNDS + 1):
        came: list[tuple[str, nn.Module, int]] = []
        for number, data in enumerate(arm.task.clients):
            learner = Learner(arm, MODELS[number], number, data)
            learner.model.load_state_dict(travelling[MODELS[number]])
            learner.train(number, round)
            came.append((MODELS[number], learner.model.eval(), len(data)))
        for name in travelling:
            travelling[name] = averaged([(m.state_dict(), n) for own, m, n in came if own == name])
        if share_head:
            heads = averaged([(m.state_dict(), n) for own, m, n in came if own == "cnn-s"])
            server.load_state_dict(server.state_dict() | only_head(heads))
        with torch.no_grad():
            logits = torch.stack([model(inputs) for _, model, _ in came], dim=1)
        answers = [consulted(sample.tolist()) for sample in logits]
        learn(server, inputs, answers, round)
        if share_head:
            travelling["cnn-s"] |= only_head(server.state_dict())
    close(run.server.model.weights, flat(server.state_dict()))
    for name, weights in travelling.items():
        close(run.server.travelling[name].weights, flat(weights))


def learn(server: nn.Module, inputs: Tensor, answers: list[Answer], round: int) -> None:
    optimizer = torch.optim.Adam(server.parameters(), 1e-3)
    generator = stream(0, "distil", SERVER, round)
    server.train()
    for _ in range(2):
        for index in torch.randperm(PUBLIC, generator=generator).split(128):
            output = server(inputs[index])
            loss = cross_entropy(output, torch.tensor([answers[at][0] for at in index.tolist()]))
            for row, at in zip(output.log_softmax(dim=1), index.tolist(), strict=True):
                others = answers[at][1]
                if others is not None:
                    d = torch.tensor(others)
                    loss = loss + LAMBDA * (d * (d.log() - row)).sum() / len(index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def averaged(models: list[tuple[State, int]]) -> State:
    total = sum(samples for _, samples in models)
    return {
        name: torch.stack([weights[name] * samples for weights, samples in models]).sum(dim=0) / total
        for name in models[0][0]
    }


def only_head(weights: State) -> State:
    return {name: value.clone() for name, value in weights.items() if name.startswith("head.")}


def flat(weights: State) -> Tensor:
    return torch.cat([value.reshape(-1) for value in weights.values()])

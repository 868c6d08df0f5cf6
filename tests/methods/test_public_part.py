"""A part of the private loss on public samples: against plain formulas, and what it keeps clients from."""

import pytest
import torch
from torch import Tensor, nn

from fedistill.methods.shared.public_part import retaining_loss, with_public_part
from fedistill.rng import stream
from fedistill.training.loop import predict
from fedistill.training.losses import kl
from helpers.runs import finished, ready

SKEWED = {
    "name": "digits",
    "clients": 5,
    "limit": 1000,
    "public": 200,
    "partition": {"kind": "pathological", "classes_per_client": 2},
}


def test_each_pass_takes_every_public_sample_once() -> None:
    """With weights of a model that returns its input, the loss is the private one plus a divergence."""
    public, seen = torch.randn(7, 3), list[Tensor]()

    class Noting(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            seen.append(rows)
            return rows

    probs = torch.full((7, 3), 1 / 3)
    loss = with_public_part(
        lambda logits, at: logits.sum() + at.sum(),
        Noting(),
        public,
        probs,
        weight=0.5,
        batch_size=3,
        draws=stream(0, "draws"),
    )
    values = [float(loss(torch.ones(2, 3), torch.tensor([4, 5]))) for _ in range(6)]
    assert [len(rows) for rows in seen] == [3, 3, 1] * 2
    assert values == pytest.approx([15 + 0.5 * float(kl(rows, probs[: len(rows)])) for rows in seen])
    for of_pass in (seen[:3], seen[3:]):
        assert sorted(torch.cat(of_pass).tolist()) == sorted(public.tolist())
    assert not torch.equal(torch.cat(seen[:3]), torch.cat(seen[3:]))


def test_nothing_is_retained_until_the_model_moves_and_then_it_pulls_back() -> None:
    wanted = {
        "rounds": 1,
        "task": SKEWED,
        "train": {"loss": "balanced-softmax"},
        "arms": [{"method": "bridge"}],
    }
    _, arm = ready(wanted | {"models": {"clients": ["cnn-s"], "server": "cnn-s"}})
    client = arm.client(0, round=1)
    module = client.load(client.initial_model())
    loss, unweighted = retaining_loss(client, module, 2.0), retaining_loss(client, module, 0.0)
    every = torch.arange(len(client.data.labels))
    logits, labels = predict(module, client.inputs()), client.data.labels
    plain = nn.functional.cross_entropy(logits, labels)
    public = client.public_inputs()
    parts = torch.arange(len(public)).split(client.train.batch_size)
    at_first = [loss(logits, every).item() for _ in parts]
    assert at_first == pytest.approx([plain.item()] * len(parts), rel=1e-5)
    # Without a weight it is the arm's own loss, which adds the logarithms of the class counts.
    counts = torch.bincount(labels, minlength=10).clamp(min=1)
    balanced = nn.functional.cross_entropy(logits + counts.log(), labels)
    assert float(unweighted(logits, every)) == pytest.approx(float(balanced), rel=1e-5)

    before = predict(module, public).softmax(dim=1)
    with torch.no_grad():
        for value in module.parameters():
            value += 0.1
    apart = kl(predict(module, public), before).item()
    pulls = [(loss(logits, every) - plain).item() * len(part) for part in parts]
    assert sum(pulls) / len(public) == pytest.approx(2 * apart, rel=1e-3)


def _last(retain: float, loss: str) -> tuple[float, float]:
    """The server's accuracy with the start, and after eight merges of clients with two classes each."""
    _, run = finished(
        {
            "rounds": 10,
            "task": SKEWED,
            "models": {"clients": ["cnn-s"], "server": "cnn-s"},
            "train": {
                "loss": loss,
                "epochs": 6,
                "batch_size": 16,
                "optimizer": {"lr": 0.05, "momentum": 0.9},
            },
            "arms": [
                {
                    "method": "bridge",
                    "start": "gaussian(width=24)",
                    "retain": retain,
                    "trained_share": 0.2,
                    "vote_epochs": 4,
                    "distill_epochs": 15,
                }
            ],
        }
    )
    return run.records[1].views["server@global"], run.records[-1].views["server@global"]


def test_merges_of_clients_with_two_classes_each_gain_where_they_retain_the_others() -> None:
    start, forgetful = _last(0.0, "cross-entropy")
    assert forgetful < start - 0.1
    start, retaining = _last(1.0, "cross-entropy")
    assert retaining > start + 0.02
    start, balanced = _last(0.0, "balanced-softmax")
    assert start - 0.02 < balanced < retaining

"""What mechanisms do to numbers, by hand, and what they refuse in an experiment file."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedistill.communication.messages.base import MessageContext
from fedistill.communication.messages.labels import Logits, SoftLabels, Votes
from fedistill.config.training import OptimizerConfig, Train
from fedistill.errors import ExperimentError, TrainingError
from fedistill.privacy.central import NoisyMajority
from fedistill.privacy.dp_sgd import fault, fit_privately
from fedistill.privacy.local import private_message
from fedistill.privacy.mechanisms import (
    DpSgd,
    GaussianLabels,
    NoisyVotes,
    RandomisedResponse,
    nearest_probabilities,
)
from fedistill.privacy.registry import MECHANISMS, privacy_of
from fedistill.training.loop import predict
from fedistill.training.optimizers import make_optimizer


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def votes(classes: list[int], of: int = 4) -> torch.Tensor:
    return nn.functional.one_hot(torch.tensor(classes), of).float()


def test_votes_stay_as_often_as_they_should() -> None:
    mechanism = RandomisedResponse(each=math.log(9))  # 9 in 12 stay, and each other class gets 1 in 12
    sent = mechanism.randomised(votes([2]).expand(60_000, 4), Votes, draws())
    assert sent.sum(dim=1).unique().tolist() == [1]
    shares = sent.mean(dim=0).tolist()
    assert shares == pytest.approx([1 / 12, 1 / 12, 9 / 12, 1 / 12], abs=0.006)  # four standard deviations


def test_noise_on_labels_is_as_large_as_it_should_be() -> None:
    rows = torch.tensor([[30.0, 40.0], [0.3, 0.4]]).repeat_interleave(40_000, dim=0)
    sent = GaussianLabels(noise=0.5, clip=5.0).randomised(rows, Logits, draws())
    first, second = sent[:40_000], sent[40_000:]
    assert first.mean(dim=0).tolist() == pytest.approx([3, 4], abs=0.1)  # clipped to a norm of 5
    assert second.mean(dim=0).tolist() == pytest.approx([0.3, 0.4], abs=0.1)
    assert float(first.std()) == pytest.approx(5, rel=0.05)  # half of how far two rows may be apart


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6))
def test_the_nearest_probabilities(row: list[float]) -> None:
    """Of the projection onto a simplex, entries above 0 are moved by the same, and others by less."""
    values = torch.tensor([row], dtype=torch.float64)
    found = nearest_probabilities(values)[0].double()
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    assert bool((found >= 0).all())
    moved = values[0] - found
    kept = found > 1e-6
    assert float(moved[kept].max() - moved[kept].min()) < 1e-4
    assert bool((values[0][~kept] <= moved[kept].min() + 1e-4).all())


def test_probabilities_that_need_no_change() -> None:
    rows = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(nearest_probabilities(rows), rows)


CONTEXT = MessageContext(
    classes=4,
    samples=3,
    population=6,
    sampled=lambda round: torch.tensor([[0, 1, 2], [1, 2, 5], [0, 1, 2]])[round - 1].numpy(),
)


def test_an_answer_is_given_once() -> None:
    mechanism, answers, sent = RandomisedResponse(each=0.1), {}, []
    for number, believed in enumerate(([0, 1, 2], [3, 3, 3], [3, 3, 3]), start=1):
        message, answers = private_message(
            Votes(votes(believed), number), answers, mechanism, CONTEXT, draws(number)
        )
        assert isinstance(message, Votes)
        assert message.sampled_round == number
        sent.append(message.probs)
    # Samples 1 and 2 come again in round 2, and all in round 3: what was said of them stays.
    assert torch.equal(sent[1][:2], sent[0][1:])
    assert torch.equal(sent[2], sent[0])
    assert answers["places"].tolist() == [0, 1, 2, 5]
    assert torch.equal(answers["rows"][3], sent[1][2])


def test_noisy_majorities() -> None:
    replies = [
        (client, votes([client % 2, 3])) for client in range(40)
    ]  # 20 for each of two classes; 40 for one
    noisy = NoisyMajority(noise=3.0, arm="voting")
    labels = torch.stack(
        [noisy.aggregate(replies, draws(seed)).labels for seed in range(200)]  # type: ignore[union-attr]  # not None
    )
    assert labels[:, 1].argmax(dim=1).unique().tolist() == [3]  # 40 votes are 13 standard deviations
    assert labels[:, 0, 0].mean() == pytest.approx(0.5, abs=0.15)
    assert noisy.aggregate([], draws()) is None


def test_budgets_by_hand() -> None:
    # Noise of 2 votes for a change of the root of 2; of 4 samples: the root of 8 over 2.
    assert NoisyVotes(noise=2.0).bound(4, 10) == GaussianLabels(noise=1.0, delta=1e-5).bound(2, 10)
    assert RandomisedResponse(each=1.0).bound(1, 10) == pytest.approx(1, rel=1e-3)
    train = Train(epochs=3).resolved("image")
    assert DpSgd(noise=1.0, rate=0.3).steps(train) == 12
    assert DpSgd(noise=1.0, rate=0.1).steps(train, epochs=1) == 10
    assert DpSgd(noise=1.0, rate=0.1).steps(Train(steps=7).resolved("image")) == 7


def fitted(
    inputs: torch.Tensor, targets: torch.Tensor, noise: float, clip: float, rate: float = 1.0, steps: int = 1
) -> tuple[nn.Linear, torch.Tensor]:
    """Train a linear model from 0 by squared errors at a rate of 1; return it, and what it was moved by."""
    model = nn.Linear(inputs.shape[1], 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = make_optimizer(OptimizerConfig(name="sgd", lr=1.0), model)
    fit_privately(
        model,
        optimizer,
        inputs,
        lambda outputs, at: ((outputs[:, 0] - targets[at]) ** 2).mean() / 2,
        DpSgd(noise=noise, clip=clip, rate=rate),
        steps=steps,
        draws=draws(1),
        noise=draws(2),
    )
    return model, model.weight.detach()[0]


def test_each_records_gradient_is_clipped() -> None:
    """From 0, a record's gradient is minus target times input: here (-2, 0) and (0, -0.5), clipped to 1."""
    inputs, targets = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([2.0, 0.5])
    _, moved = fitted(inputs, targets, noise=1e-9, clip=1.0)
    torch.testing.assert_close(moved, torch.tensor([1.0, 0.5]) / 2, atol=1e-5, rtol=0)
    _, whole = fitted(inputs, targets, noise=1e-9, clip=10.0)
    torch.testing.assert_close(whole, torch.tensor([2.0, 0.5]) / 2, atol=1e-5, rtol=0)


def test_noise_is_in_units_of_the_clip_and_of_the_expected_batch() -> None:
    inputs, targets = torch.zeros(8, 20_000), torch.zeros(8)
    _, moved = fitted(inputs, targets, noise=3.0, clip=0.5, rate=0.25)
    # 3 times 0.5, over a quarter of 8 records; the records themselves have no gradient.
    assert float(moved.std()) == pytest.approx(0.75, rel=0.03)


def test_batches_are_drawn_and_may_be_empty() -> None:
    """With one record, drawn with probability 0.1, most of 100 steps are of noise alone."""
    inputs, targets = torch.tensor([[1.0]]), torch.tensor([1000.0])
    _, moved = fitted(inputs, targets, noise=1e-9, clip=1e-3, rate=0.1, steps=100)
    drawn = float(moved[0]) / (1e-3 / 0.1)
    assert drawn == pytest.approx(round(drawn), abs=1e-3)
    assert 2 <= drawn <= 20


def test_nothing_is_left_at_the_model() -> None:
    model, _ = fitted(torch.ones(4, 2), torch.ones(4), noise=1.0, clip=1.0)
    assert not hasattr(model.weight, "grad_sample")
    assert predict(model, torch.ones(3, 2)).shape == (3, 1)
    model(torch.ones(3, 2)).sum().backward()  # no hook is left that would keep gradients of single records
    assert not hasattr(model.weight, "grad_sample")


class Counts(nn.Module):
    """A model that keeps the mean of its inputs, which is no part of what it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.mean = inputs.mean(dim=0).detach()
        found: torch.Tensor = self.layer(inputs)
        return found


def test_models_that_no_noise_covers() -> None:
    assert "batch norm" in str(fault(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))))
    assert "LSTM" in str(fault(nn.Sequential(nn.LSTM(2, 2))))
    assert fault(nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4, 2))) is None
    model = Counts()
    with pytest.raises(TrainingError, match="has changed a buffer"):
        fit_privately(
            model,
            make_optimizer(OptimizerConfig(name="sgd", lr=1.0), model),
            torch.ones(4, 2),
            lambda outputs, at: outputs.mean(),
            DpSgd(noise=1.0),
            steps=20,
            draws=draws(),
            noise=draws(),
        )


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"kind": "dp-sdg", "noise": 1.0}, "Did you mean 'dp-sgd'?"),
        ({"noise": 1.0}, "`privacy.kind` is missing: must be one of dp-sgd,"),
        ({"kind": "dp-sgd"}, "set `epsilon`, the budget, or `noise`"),
        ({"kind": "dp-sgd", "noise": 0}, "noise"),
        ({"kind": "dp-sgd", "noise": 1.0, "rate": 1.5}, "rate"),
        ({"kind": "randomised-response"}, "`each` is missing"),
        ({"kind": "noisy-votes", "sigma": 1.0}, "unknown key `sigma`"),
    ],
)
def test_settings_that_cannot_be(table: dict[str, object], said: str) -> None:
    with pytest.raises(ExperimentError) as raised:
        privacy_of(table)
    assert said in str(raised.value)


def test_every_mechanism_says_whom_it_protects_from_whom() -> None:
    assert set(MECHANISMS) == {"dp-sgd", "randomised-response", "gaussian-labels", "noisy-votes"}
    for mechanism in MECHANISMS.values():
        assert mechanism.unit
        assert mechanism.against
        assert mechanism.source
    assert privacy_of(None) is None
    assert privacy_of({"kind": "none"}) is None


def test_soft_labels_stay_probabilities() -> None:
    message = SoftLabels(torch.full((3, 4), 0.25), 1)
    sent, _ = private_message(message, {}, GaussianLabels(noise=2.0), CONTEXT, draws())
    assert isinstance(sent, SoftLabels)
    assert sent.probs.sum(dim=1).tolist() == pytest.approx([1, 1, 1])
    assert bool((sent.probs >= 0).all())
    assert not torch.equal(sent.probs, message.probs)

"""Optimizers against those of torch, clipping by hand, and optimizers of the user's own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fedistill.config.training import OptimizerConfig, TrainOptimizer
from fedistill.errors import ExperimentError
from fedistill.state import decode_state, encode_state
from fedistill.training.loop import fit
from fedistill.training.model_state import flatten
from fedistill.training.optimizers import Optimizer, make_optimizer
from fedistill.training.own_functions import check_optimizer
from helpers import own_training

OWN = own_training.__name__


def model() -> nn.Sequential:
    """Matrices, biases and a normalisation layer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))


def step(net: nn.Module, optimizer: Optimizer | torch.optim.Optimizer, number: int) -> None:
    optimizer.zero_grad()
    net(torch.arange(8.0).reshape(2, 4).sin() * (number + 1)).square().sum().backward()
    optimizer.step()


def groups(net: nn.Module, decay: float) -> list[dict[str, Any]]:
    matrices = [value for value in net.parameters() if value.ndim > 1]
    others = [value for value in net.parameters() if value.ndim == 1]
    return [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        (
            {"momentum": 0.9, "nesterov": True, "lr": 0.1},
            lambda net: torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True),
        ),
        ({"name": "adamw"}, lambda net: torch.optim.AdamW(net.parameters(), 0.01, weight_decay=0.01)),
        (
            {"name": "adamw", "weight_decay": 0.3, "lr": 0.1},
            lambda net: torch.optim.AdamW(net.parameters(), 0.1, weight_decay=0.3),
        ),
        (
            {"name": "adamw", "weight_decay": 0.3, "decay": "matrices"},
            lambda net: torch.optim.AdamW(groups(net, 0.3), 0.01),
        ),
        (
            {"name": "sgd", "lr": 0.1, "weight_decay": 0.3, "decay": "matrices", "momentum": 0.5},
            lambda net: torch.optim.SGD(groups(net, 0.3), 0.1, momentum=0.5),
        ),
        (
            {"name": "torch.optim:RMSprop", "lr": 0.02},
            lambda net: torch.optim.RMSprop(net.parameters(), lr=0.02),
        ),
        (
            {"name": f"{OWN}:vectors_first", "lr": 0.02},
            lambda net: torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9),
        ),
        (
            {"name": "torch.optim:Adagrad", "lr": 0.02},
            lambda net: torch.optim.Adagrad(net.parameters(), lr=0.02),
        ),
    ],
    ids=[
        "nesterov",
        "adamw",
        "adamw-decay",
        "adamw-matrices",
        "sgd-matrices",
        "RMSprop",
        "vectors-first",
        "Adagrad",
    ],
)
def test_steps_are_those_of_torch_also_after_each_was_saved(
    settings: dict[str, Any], theirs: Callable[[nn.Module], torch.optim.Optimizer]
) -> None:
    config = OptimizerConfig(**settings)
    ours, other = model(), model()
    first, expected = flatten(ours), theirs(other)
    optimizer = make_optimizer(config, ours)
    for number in range(5):
        optimizer = make_optimizer(config, ours).restore(decode_state(encode_state(optimizer.state())))
        step(ours, optimizer, number)
        step(other, expected, number)
        assert torch.equal(flatten(ours), flatten(other))
    assert not torch.equal(flatten(ours), first)


def test_a_long_gradient_is_scaled_to_the_norm_and_a_short_one_is_kept() -> None:
    # The gradient is (3, 4) in two parameters, of norm 5.
    for most, factor in ((1.0, 1 / 5), (10.0, 1.0)):
        net = nn.ParameterList([torch.zeros(1), torch.zeros(1, 1)])
        optimizer = make_optimizer(OptimizerConfig(lr=1.0, clip_norm=most), net)
        (3 * net[0].sum() + 4 * net[1].sum()).backward()
        optimizer.step()
        assert flatten(net).tolist() == pytest.approx([-3 * factor, -4 * factor], rel=1e-5)


@pytest.mark.parametrize("name", ["sgd", f"{OWN}:counting"])
def test_clipping_is_that_of_torch(name: str) -> None:
    ours, other = model(), model()
    optimizer = make_optimizer(OptimizerConfig(name=name, lr=0.1, clip_norm=0.5), ours)
    momentum = 0.0 if name == "sgd" else 0.9
    theirs = torch.optim.SGD(other.parameters(), 0.1, momentum=momentum)
    for number in range(3):
        step(ours, optimizer, number)
        theirs.zero_grad()
        other(torch.arange(8.0).reshape(2, 4).sin() * (number + 1)).square().sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        assert norm > 0.5
        theirs.step()
        torch.testing.assert_close(flatten(ours), flatten(other))


def test_nothing_is_clipped_where_nothing_has_a_gradient() -> None:
    net = model()
    before = flatten(net)
    make_optimizer(OptimizerConfig(clip_norm=1.0), net).step()
    assert torch.equal(flatten(net), before)


def test_the_rates_of_an_own_optimizer_keep_their_proportions_under_a_schedule() -> None:
    settings = TrainOptimizer(
        name=f"{OWN}:two_rates",
        lr=0.1,
        schedule={"name": "step", "every": 1, "falls_to": 0.5, "over": "steps"},
    )
    net = nn.ParameterList([torch.zeros(1), torch.zeros(1)])
    optimizer = make_optimizer(settings, net)
    for place in range(2):
        optimizer.zero_grad()
        (net[0].sum() + net[1].sum()).backward()
        optimizer.step(place, 2)
    assert flatten(net).tolist() == pytest.approx([-1.5, -0.15])


def test_what_an_own_optimizer_restores_is_a_copy() -> None:
    settings = OptimizerConfig(name=f"{OWN}:counting", lr=0.1)
    net = model()
    optimizer = make_optimizer(settings, net)
    step(net, optimizer, 0)
    state = decode_state(encode_state(optimizer.state()))
    before = encode_state(state)
    again = make_optimizer(settings, net).restore(state)
    step(net, again, 1)
    assert encode_state(state) == before
    assert encode_state(again.state()) != before


def test_the_state_of_an_own_optimizer_is_by_the_position_of_the_parameter() -> None:
    """Of a pair of models, only one's is kept (`methods.shared.mutual`)."""
    net = model()
    optimizer = make_optimizer(OptimizerConfig(name=f"{OWN}:vectors_first", lr=0.1), net)
    step(net, optimizer, 0)
    shapes = {place: entry["momentum_buffer"].shape for place, entry in optimizer.state().items()}
    assert shapes == {str(place): value.shape for place, value in enumerate(net.parameters())}


def test_each_step_of_a_local_training_has_its_rate() -> None:
    """Six samples in batches of four are two steps; three epochs are six."""
    settings = TrainOptimizer(name=f"{OWN}:counting", lr=1.0, schedule="cosine(over=steps, warm_up=2)")
    for epochs, steps in ((3, None), (1, 6)):
        own_training.Counting.rates.clear()
        net = model()
        fit(
            net,
            make_optimizer(settings, net),
            torch.ones(6, 4),
            lambda logits, at: logits.sum() * 0.001,
            epochs=epochs,
            steps=steps,
            batch_size=4,
            generator=torch.Generator().manual_seed(0),
        )
        expected = [1 / 3, 2 / 3, 1.0, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]
        assert own_training.Counting.rates == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("no_optimizer", "must return a torch.optim.Optimizer, not a int"),
        ("fails", "called with a list of parameters and lr = 0.1, raised ValueError: not today"),
        ("forgetful", "goes on otherwise after it was saved: all that it remembers must be in its `state`"),
        ("odd", "cannot be saved between rounds: state value 0/seen is a set"),
        ("brierr", "has no function 'brierr'. Did you mean 'brier'?"),
    ],
)
def test_an_own_optimizer_that_cannot_be_used_is_named_before_round_1(name: str, what: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        check_optimizer(OptimizerConfig(name=f"{OWN}:{name}", lr=0.1).resolved("image"))
    assert str(caught.value).startswith(f"optimizer '{OWN}:{name}'")
    assert what in str(caught.value)


@pytest.mark.parametrize("name", ["torch.optim:RMSprop", "torch.optim:NAdam", f"{OWN}:two_rates"])
def test_optimizers_of_torch_and_sound_own_ones_pass(name: str) -> None:
    check_optimizer(OptimizerConfig(name=name, lr=0.1).resolved("text"))


def test_one_that_needs_a_closure_is_refused() -> None:
    with pytest.raises(ExperimentError, match=r"'torch\.optim:LBFGS' cannot take two steps: TypeError"):
        check_optimizer(OptimizerConfig(name="torch.optim:LBFGS", lr=0.1).resolved("image"))

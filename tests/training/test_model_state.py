"""What travels of a model, what stays where it is trained, and what all have and nobody sends."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fedistill.errors import TrainingError
from fedistill.federation.client import client_state
from fedistill.federation.history import ArmRun
from fedistill.federation.local_executor import ProcessExecutor, SerialExecutor
from fedistill.models import registry
from fedistill.models.signature import Signature
from fedistill.state import decode_state, encode_state, from_plain, to_plain
from fedistill.testing.runs import bits, finish
from fedistill.training.model_state import ModelState, save_model
from helpers.runs import finished, ready

IMAGE = Signature("image", (1, 8, 8), 10, 0)
MODULE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, signature, frozen=False):
        super().__init__()
        self.body = nn.Linear(64, 16)
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, signature.classes)
        self.body.requires_grad_(not frozen)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training:
            self.seen += len(x)
        return self.head(self.norm(self.body(x.flatten(1))).relu())


def net(signature):
    return Net(signature)


def frozen(signature):
    return Net(signature, frozen=True)
"""
BODY = 64 * 16 + 16
REST = 4 * 16 + 16 * 10 + 10
"""Numbers of the norm, its running statistics too, and of the head."""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module `my_nets`, which this process and its workers can import."""
    (tmp_path / "my_nets.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    registry._reused.cache_clear()
    yield
    sys.modules.pop("my_nets", None)
    registry._reused.cache_clear()


def build(name: str, seed: int = 0) -> nn.Module:
    return registry.build_model(f"my_nets:{name}", IMAGE, seed, client=0)


def trained(model: nn.Module, batches: int = 3) -> nn.Module:
    """After so many batches of four, all that may change has."""
    model.train()
    generator = torch.Generator().manual_seed(batches)
    for _ in range(batches):
        model(torch.randn(4, 1, 8, 8, generator=generator)).square().mean().backward()
    with torch.no_grad():
        for value in model.parameters():
            if value.grad is not None:
                value -= 0.1 * value.grad
    return model


def held(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_floats_and_integers_are_two_vectors() -> None:
    state = ModelState.of(trained(build("net")))
    assert (state.weights.shape, state.weights.dtype) == ((BODY + REST,), torch.float32)
    # `seen` counts samples, batch normalisation counts its batches.
    assert state.integers.tolist() == [12, 3]
    assert state.integers.dtype == torch.int64


def test_a_state_is_a_copy() -> None:
    model = trained(build("net"))
    state = ModelState.of(model)
    weights = state.weights.clone()
    trained(model, 2)
    assert state.integers.tolist() == [12, 3]
    assert torch.equal(state.weights, weights)


def test_loaded_into_another_it_is_the_same_model() -> None:
    model, other = trained(build("net")), build("net", seed=1)
    assert not same(held(model), held(other))
    assert ModelState.of(model).load_into(other) is other
    assert same(held(model), held(other))
    plain = decode_state(encode_state(to_plain(ModelState.of(model))))
    from_plain(ModelState, plain).load_into(again := build("net", seed=2))
    assert same(held(model), held(again))


def test_what_a_frozen_model_has_of_its_own_is_the_rest() -> None:
    model = trained(build("frozen"))
    state = ModelState.of(model)
    assert len(state.weights) == REST
    other = build("frozen", seed=1)
    body = other.get_parameter("body.weight").clone()
    state.load_into(other)
    assert torch.equal(other.get_parameter("body.weight"), body)
    assert torch.equal(other.get_parameter("head.weight"), model.get_parameter("head.weight"))
    assert registry.count_parameters(model) == 2 * 16 + 16 * 10 + 10  # those that are trained


@pytest.mark.parametrize(
    ("weights", "integers", "said"),
    [
        (3, 2, f"{BODY + REST} weights where its state has 3: parameters and buffers must keep their shapes"),
        (BODY + REST, 1, "2 integers in buffers where its state has 1"),
    ],
)
def test_a_state_of_another_size_is_refused(weights: int, integers: int, said: str) -> None:
    state = ModelState(torch.zeros(weights), torch.zeros(integers, dtype=torch.int64))
    with pytest.raises(TrainingError, match=said):
        state.load_into(build("net"))


def test_the_module_of_a_process_forgets_one_clients_buffers_before_the_next() -> None:
    """But loads those of a state."""
    state = ModelState.of(trained(registry.reusable("my_nets:net", IMAGE)))
    module = registry.reusable("my_nets:net", IMAGE)
    assert (int(module.get_buffer("seen")), int(module.get_buffer("norm.num_batches_tracked"))) == (0, 0)
    # Weights that came from elsewhere bring no buffers.
    ModelState(state.weights).load_into(module)
    assert int(module.get_buffer("seen")) == 0
    assert registry.reusable("my_nets:net", IMAGE) is module
    state.load_into(module)
    assert (int(module.get_buffer("seen")), int(module.get_buffer("norm.num_batches_tracked"))) == (12, 3)


def test_a_saved_model_is_whole(tmp_path: Path) -> None:
    """Frozen parameters and integers too, under PyTorch's names."""
    model = trained(build("frozen"))
    expected = held(model)
    save_model(tmp_path / "model.safetensors", build("frozen"), ModelState.of(model))
    assert same(load_file(tmp_path / "model.safetensors"), expected)


# --- in runs ---


def raw(method: str, net: str, **changes: Any) -> dict[str, Any]:
    return {
        "rounds": 2,
        "task": {"name": "digits", "clients": 3, "limit": 120, "public": 20},
        "models": {"clients": [f"my_nets:{net}"], "server": f"my_nets:{net}"},
        "train": {"batch_size": 8, "optimizer": {"lr": 0.05, "momentum": 0.9}},
        "arms": [{"method": method, **changes}],
    }


def payload(run: ArmRun, way: str) -> set[int]:
    return {entry.payload for entry in run.ledger.entries if entry.direction == way and entry.round}


def test_frozen_parameters_do_not_cross() -> None:
    for net, numbers in (("net", BODY + REST), ("frozen", REST)):
        arm, run = finished(raw("fedavg", net, codec="fp32"))
        # Once it differs from the first one, an integer takes a byte or two; the number of samples takes one.
        assert payload(run, "down") == {4 * numbers, 4 * numbers + 2}
        assert payload(run, "up") <= {4 * numbers + 1 + size for size in (2, 3)}
        assert len(run.server.model.weights) == numbers
        assert arm.parameters()["server"] == numbers - 2 * 16  # running statistics are not trained


@pytest.mark.parametrize("method", ["fedavg", "dsfl", "fml"])
@pytest.mark.parametrize("net", ["net", "frozen"])
def test_serial_or_processes_and_again(method: str, net: str) -> None:
    wanted, arm = ready(raw(method, net))
    with SerialExecutor(wanted, arm.task) as executor:
        once = bits(finish(arm, executor))
        assert bits(finish(arm, executor)) == once
    with ProcessExecutor(2, wanted, arm.task) as executor:
        assert bits(finish(arm, executor)) == once


def test_each_client_keeps_what_it_has_counted() -> None:
    """Two epochs over its own samples, in batches of 8; nobody else's are among them."""
    arm, run = finished(raw("local", "frozen"))
    for client, data in enumerate(arm.task.clients):
        seen, batches = client_state(arm, client, run.clients[client]).model.integers.tolist()
        assert seen == 2 * len(data)
        # A last batch of one sample would leave the norm one value per channel, and joins the one before.
        assert batches == 2 * (-(-len(data) // 8) - (len(data) % 8 == 1))

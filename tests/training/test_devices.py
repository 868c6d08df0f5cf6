"""Where models compute. No device is needed: a pretended one has its rules (`helpers.pretend_device`)."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedistill.config.schema import RuntimeConfig
from fedistill.config.training import EarlyStopping, OptimizerConfig
from fedistill.errors import ExperimentError
from fedistill.models.reuse import ReusedModule
from fedistill.rng import also_scoped, scoped
from fedistill.training import devices
from fedistill.training.cost import counting
from fedistill.training.devices import CPU, computing, current_device, find_device, placed
from fedistill.training.early_stopping import draw_validation
from fedistill.training.loop import fit, predict
from fedistill.training.model_state import ModelState
from fedistill.training.optimizers import make_optimizer
from helpers.pretend_device import PRETEND, pretended_device

INPUTS = torch.randn(41, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(3, (41,), generator=torch.Generator().manual_seed(1))
CUDA = RuntimeConfig(device="cuda")


def normed() -> nn.Module:
    """Parameters, buffers of floats and of integers, and a layer that draws."""
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(2, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layer(inputs.view(-1, 3, 2))[0][:, -1])
        return logits


class Forgotten(nn.Module):
    """A tensor that is neither parameter nor buffer stays where it was made."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.scale = nn.Linear(6, 3), torch.ones(6)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(inputs * self.scale)
        return logits


def trained(make: Callable[[], nn.Module], settings: dict[str, Any], stopping: bool = False) -> list[Tensor]:
    """A model after two trainings, between which its optimizer was saved; its state, outputs and buffers."""
    with scoped(0, "init"):
        model = make()
    held = [*model.parameters(), *model.buffers()]
    optimizer = make_optimizer(OptimizerConfig(**settings).resolved("image"), model)

    def loss(logits: Tensor, at: Tensor) -> Tensor:
        return cross_entropy(logits, LABELS[at])

    draws = torch.Generator().manual_seed(2)
    early = EarlyStopping(share=0.3, patience=1) if stopping else None
    for _ in range(2):
        with scoped(0, "layers"), counting():
            fit(
                model,
                optimizer,
                INPUTS,
                loss,
                epochs=3,
                batch_size=8,
                generator=draws,
                validation=draw_validation(len(INPUTS), early, loss, draws),
            )
        optimizer = make_optimizer(OptimizerConfig(**settings).resolved("image"), model).restore(
            optimizer.state()
        )
    assert all(map(lambda one, other: one is other, held, [*model.parameters(), *model.buffers()]))
    state = ModelState.of(model)
    buffers = [one for entry in optimizer.state().values() for one in entry.values()]
    return [state.weights, state.integers, predict(model, INPUTS), *buffers]


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "sgd", "lr": 0.1, "momentum": 0.9, "clip_norm": 1.0},
        {"name": "adamw", "lr": 0.01},
        {"name": "torch.optim:RMSprop", "lr": 0.01},
    ],
    ids=["sgd", "adamw", "own"],
)
@pytest.mark.parametrize("make", [normed, Recurrent])
@pytest.mark.parametrize("stopping", [False, True], ids=["whole", "stopped early"])
def test_training_on_a_device_has_the_bits_of_the_processor(
    make: Callable[[], nn.Module], settings: dict[str, Any], stopping: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = trained(make, settings, stopping)
    with pretended_device(monkeypatch) as operations, computing(CUDA):
        there = trained(make, settings, stopping)
        assert all(one.device == CPU for one in there)
    assert operations() > 100
    assert all(torch.equal(one, other) for one, other in zip(here, there, strict=True))


def test_a_module_is_on_the_device_only_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    model = normed()
    with pretended_device(monkeypatch):
        with computing(CUDA), placed(model):
            assert {one.device for one in model.parameters()} == {PRETEND}
            with placed(model):  # it is there already, and stays
                model(INPUTS[:4].to(PRETEND)).sum().backward()
            assert model[0].weight.grad is not None
            assert model[0].weight.device == PRETEND
        assert {one.device for one in [*model.parameters(), *model.buffers()]} == {CPU}
        assert model[0].weight.grad is None
        assert model[1].num_batches_tracked == 1  # what has happened there has come back


def test_a_reused_model_does_not_take_a_move_for_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every use of a model with buffers, or with frozen weights, would build it again."""
    built = []

    def build() -> nn.Module:
        model = normed()
        model[0].weight.requires_grad_(False)
        built.append(model)
        return model

    kept = ReusedModule(build, custom=True)
    with pretended_device(monkeypatch), computing(CUDA):
        for _ in range(2):
            predict(kept.fresh(), INPUTS)
        assert len(built) == 1
        with placed(kept.fresh()):
            built[0][0].weight.mul_(2)  # frozen weights moved by hand are a change, there too
        kept.fresh()
    assert len(built) == 2


def test_a_buffer_that_a_forward_pass_replaces_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counts(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, 3)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, inputs: Tensor) -> Tensor:
            self.seen = self.seen + len(inputs)
            return super().forward(inputs)

    model = Counts()
    with pretended_device(monkeypatch), computing(CUDA):
        predict(model, INPUTS)
        assert model.seen.device == CPU
    assert model.seen == 41


def test_a_tensor_that_stays_behind_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Forgotten()
    predict(model, INPUTS)
    with (
        pretended_device(monkeypatch),
        computing(CUDA),
        pytest.raises(RuntimeError, match=r"neither parameter nor buffer stays behind: register it; or set"),
    ):
        predict(model, INPUTS)
    assert model.head.weight.device == CPU


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (RuntimeError("x does not have a deterministic implementation"), "runtime.deterministic = false"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "runtime.workers"),
    ],
)
def test_errors_of_devices_say_what_to_do(
    error: RuntimeError, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        pretended_device(monkeypatch),
        computing(CUDA),
        pytest.raises(RuntimeError, match=fix) as raised,
        placed(nn.Linear(2, 2)),
    ):
        raise error
    assert raised.value.__cause__ is error


def test_other_errors_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("shapes do not fit")
    with (
        pretended_device(monkeypatch),
        computing(CUDA),
        pytest.raises(RuntimeError) as raised,
        placed(nn.Linear(2, 2)),
    ):
        raise error
    assert raised.value is error


@pytest.mark.parametrize(
    ("there", "found"), [(("cuda", "mps"), "cuda"), (("mps",), "mps"), ((), "cpu")], ids=str
)
def test_auto_takes_the_best_there_is(
    there: tuple[str, ...], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_is_there", there.__contains__)
    monkeypatch.setattr(devices, "_usable", torch.device)
    assert find_device("auto").type == found
    assert find_device("cpu") == CPU


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_one_message(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_is_there", lambda name: False)
    with pytest.raises(ExperimentError, match=rf"runtime.device = '{name}': torch .* finds no such device"):
        find_device(name)


def test_a_device_that_cannot_be_used_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> torch.device:
        raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be")

    monkeypatch.setattr(devices, "_is_there", lambda name: True)
    monkeypatch.setattr(devices, "_usable", broken)
    with pytest.raises(ExperimentError, match=r"nothing can be computed on it \(CUDA error: out of memory\)"):
        find_device("cuda")


def settings_of_torch() -> list[Any]:
    cudnn = torch.backends.cudnn
    return [
        torch.backends.cuda.matmul.fp32_precision,
        cudnn.conv.fp32_precision,
        cudnn.rnn.fp32_precision,
        torch.are_deterministic_algorithms_enabled(),
        cudnn.benchmark,
        cudnn.deterministic,
    ]


@pytest.mark.parametrize("deterministic", [True, False])
def test_what_arithmetic_depends_on_is_set_inside_and_put_back(
    deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = settings_of_torch()
    with pretended_device(monkeypatch):
        with computing(CUDA.model_copy(update={"deterministic": deterministic})):
            assert current_device() == PRETEND
            assert settings_of_torch() == ["ieee"] * 3 + [deterministic, False, deterministic]
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert current_device() == CPU
    assert settings_of_torch() == before


def test_on_the_processor_nothing_is_set() -> None:
    before = settings_of_torch()
    with computing(RuntimeConfig()):
        assert settings_of_torch() == before
        assert current_device() == CPU


def test_layers_on_a_device_draw_from_the_named_stream() -> None:
    """Its generator is seeded with each stream and put back, as the processor's is."""
    of_device = torch.Generator().manual_seed(5)
    expected = torch.rand(2, generator=torch.Generator().manual_seed(5))
    drawn = []
    with also_scoped(of_device):
        for client in (0, 1, 0):
            with scoped(0, "layers", client, round=1):
                drawn.append(torch.rand(3, generator=of_device))
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(torch.rand(2, generator=of_device), expected)
    with scoped(0, "layers"):  # it is no longer looked after
        before = of_device.get_state()
    assert torch.equal(of_device.get_state(), before)

"""What is refused of a custom model before round 1, and what is taken."""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedistill.errors import ExperimentError
from fedistill.models.checks import check_model
from fedistill.models.registry import blank_inputs, build_model, count_parameters, reusable
from fedistill.models.signature import Signature
from fedistill.training.model_state import ModelState
from helpers.odd_models import CARRIED_OR_ANEW

IMAGE = Signature("image", (1, 8, 8), 10, 0)
TEXT = Signature("text", (6,), 3, 20)
CODE = """
import torch
from torch import nn

head = nn.Linear(64, 10)
cached = nn.Sequential(nn.Flatten(), head)
backbone = nn.Linear(64, 8).requires_grad_(False)

def one_module(signature):
    return cached

def one_layer(signature):
    return nn.Sequential(nn.Flatten(), head)

def one_frozen_backbone(signature):
    return nn.Sequential(nn.Flatten(), backbone, nn.Linear(8, 10))

def double(signature):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.flatten(1))

class DoubleBuffer(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(10, dtype=torch.float64))

def double_buffer(signature):
    return DoubleBuffer()

class Extra(Net):
    def get_extra_state(self):
        return {"steps": 1}

    def set_extra_state(self, state):
        pass

def extra(signature):
    return Extra()

def frozen(signature):
    return Net().requires_grad_(False)

class Squeezed(Net):
    def forward(self, x):
        return super().forward(x).squeeze()

def squeezed(signature):
    return Squeezed()

class Second(Net):
    def forward(self, x):
        out = super().forward(x)
        return (out, out) if self.training else out

def second(signature):
    return Second()

class Detached(Net):
    def forward(self, x):
        return super().forward(x).detach()

def detached(signature):
    return Detached()

class Grows(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("rows", torch.zeros(0, 10))

    def forward(self, x):
        out = super().forward(x)
        if self.training:
            self.rows = torch.cat([self.rows, out.detach()])
        return out

def grows(signature):
    return Grows()

class Thaws(Net):
    def __init__(self):
        super().__init__()
        self.other = nn.Linear(64, 10).requires_grad_(False)

    def forward(self, x):
        self.other.requires_grad_(self.training)
        return super().forward(x) + self.other(x.flatten(1))

def thaws(signature):
    return Thaws()

class ThreeAtOnce(Net):
    def forward(self, x):
        if self.training and len(x) == 3:
            raise ValueError("three")
        return super().forward(x)

def three(signature):
    return ThreeAtOnce()

class CountsInItsClass(Net):
    batches = 0

    def forward(self, x):
        type(self).batches += self.training
        return super().forward(x) * (1 + type(self).batches)

def counts_in_its_class(signature):
    return CountsInItsClass()

batches = 0

class CountsInItsFile(Net):
    def forward(self, x):
        global batches
        batches += 1
        return super().forward(x) * (1 + batches)

def counts_in_its_file(signature):
    return CountsInItsFile()

def probabilities(signature):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(dim=1))

def log_probabilities(signature):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.LogSoftmax(dim=1))

class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(1))

def scripted(signature):
    return torch.jit.script(Scripted())

def bag(signature):
    return nn.EmbeddingBag(signature.vocabulary, signature.classes, sparse=True)

def norm_of_vectors(signature):
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "checked_nets.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("checked_nets", None)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("one_module", "the function returns the same module when it is called twice"),
        ("one_layer", "the function returns modules that share '1.weight' when it is called twice"),
        ("double", "'1.weight' is float64, but the weights of a model travel as float32"),
        ("double_buffer", "'mean' is float64, but the weights of a model travel as float32"),
        ("extra", "'Extra' has extra state (get_extra_state), which cannot be averaged or sent"),
        ("frozen", "has no parameter that can be trained"),
        ("squeezed", "returns (10,) for 1 sample, but the task has 10 classes: it must return (1, 10)"),
        ("second", "returns tuple for 2 samples in training mode, but the task has 10 classes"),
        ("detached", "cannot be trained: RuntimeError: element 0 of tensors does not require grad"),
        ("grows", "'rows' is of shape (0, 10) before training and of shape (6, 10) after it"),
        ("thaws", "'other.bias' is absent or frozen before training and of shape (10,) after it"),
        ("counts_in_its_class", "answers otherwise when it is built or used a second time"),
        ("counts_in_its_file", "answers otherwise when it is built or used a second time"),
        ("probabilities", "returns probabilities (they add up to 1), but losses and pooling take logits"),
        ("three", "fails on an input of shape (3, 1, 8, 8) in training mode: ValueError: three"),
    ],
)
def test_it_is_refused_with_what_is_wrong(name: str, said: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        check_model(f"checked_nets:{name}", IMAGE)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"model 'checked_nets:{name}'")


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_a_module_of_torch_jit_is_refused() -> None:
    with pytest.raises(ExperimentError, match="a module of torch\\.jit"):
        check_model("checked_nets:scripted", IMAGE)


@pytest.mark.parametrize("name", [f"helpers.odd_models:{name}" for name in CARRIED_OR_ANEW])
def test_these_are_taken_and_nothing_else_is_changed(name: str) -> None:
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    check_model(name, IMAGE)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


@pytest.mark.parametrize("name", ["one_frozen_backbone", "norm_of_vectors", "log_probabilities"])
def test_layers_that_are_shared_but_frozen_two_samples_for_batch_norm_and_log_softmax(name: str) -> None:
    check_model(f"checked_nets:{name}", IMAGE)


def test_sparse_gradients_are_trained_as_dense_ones() -> None:
    check_model("checked_nets:bag", TEXT)


def test_lazy_layers_have_their_shapes_and_each_client_its_own_weights() -> None:
    name = "helpers.odd_models:lazy"
    one, again, other = (build_model(name, IMAGE, 0, client) for client in (0, 0, 1))
    assert count_parameters(one) == 64 * 12 + 12 + 2 * 12 + 12 * 10 + 10
    assert torch.equal(ModelState.of(one).weights, ModelState.of(again).weights)
    assert not torch.equal(ModelState.of(one).weights, ModelState.of(other).weights)
    # The blank samples of the first pass are in no statistics.
    assert not one.get_buffer("2.running_mean").any()


def use(module: nn.Module, batches: int = 3) -> torch.Tensor:
    """Logits of blank samples after some batches in training mode."""
    module.train()
    for _ in range(batches):
        module(blank_inputs(IMAGE, 4))
    module.eval()
    found: torch.Tensor = module(blank_inputs(IMAGE, 2))
    return found.detach()


@pytest.mark.parametrize("name", [name for name in CARRIED_OR_ANEW if name != "global_generators"])
def test_a_module_that_is_used_again_does_the_same_again(name: str) -> None:
    """For whatever the state lacks, each use begins as a fresh build."""
    path = f"helpers.odd_models:{name}"
    start = ModelState.of(build_model(path, IMAGE, seed=3, client=1))
    found = [use(start.load_into(reusable(path, IMAGE))) for _ in range(3)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_two_slots_are_two_modules() -> None:
    path = "helpers.odd_models:kept"
    assert reusable(path, IMAGE) is not reusable(path, IMAGE, slot=1)
    assert reusable(path, IMAGE, slot=1) is reusable(path, IMAGE, slot=1)

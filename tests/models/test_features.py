"""Features of any model: the vector that its last linear layer makes the logits of, or a refusal."""

import sys
import types
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedistill.errors import Refusal
from fedistill.models import registry as models
from fedistill.models.features import Split, width
from fedistill.models.registry import FEATURES
from fedistill.models.signature import Signature

IMAGE = Signature("image", (1, 8, 8), 3, 0)
TEXT = Signature("text", (12,), 5, 40)
LADDER = [
    *((name, IMAGE) for name in models.model_names("image")),
    *((name, TEXT) for name in models.model_names("text")),
]


def noise(signature: Signature, samples: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    if signature.kind == "image":
        return torch.rand(samples, *signature.shape, generator=generator) * 2 - 1
    return torch.randint(1, signature.vocabulary, (samples, *signature.shape), generator=generator)


@pytest.mark.parametrize(("name", "signature"), LADDER)
@pytest.mark.parametrize("training", [False, True])
def test_the_ladder(name: str, signature: Signature, training: bool) -> None:
    """Its layer called `features` gives them, in training too, when dropout comes before the head."""
    model = models.build_model(name, signature, seed=1, client=2)
    seen: list[Tensor] = []
    model.get_submodule(FEATURES).register_forward_hook(lambda _, __, output: seen.append(output))
    split = Split(model, name, signature).train(training)
    inputs = noise(signature)
    logits = split(inputs)
    assert torch.equal(split.features, seen[0])
    assert split.features.shape == (4, width(name, signature))
    assert split.head is model.get_submodule("head")
    if not training:
        assert torch.equal(split.head(split.features), logits)
        assert torch.equal(model(inputs), logits)


class Dropped(nn.Module):
    """Dropout behind the head, and one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 6)
        self.dropout = nn.Dropout(0.5)
        self.top = nn.Linear(6, 3)
        self.last = nn.Dropout(0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.last(self.top(self.dropout(self.body(inputs.flatten(1)))))
        return logits


class TwoHeads(nn.Module):
    """The second head gives the logits; the first is only an auxiliary one, and comes last."""

    def __init__(self, add: bool = False) -> None:
        super().__init__()
        self.body, self.right, self.left = nn.Linear(64, 5), nn.Linear(5, 3), nn.Linear(64, 3)
        self.add = add

    def forward(self, inputs: Tensor) -> Tensor:
        flat = inputs.flatten(1)
        logits: Tensor = self.right(self.body(flat))
        other = self.left(flat)
        return logits + other if self.add else logits


class Repeated(nn.Module):
    """One linear layer, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.top = nn.Linear(64, 3), nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.top(self.top(self.body(inputs.flatten(1))))
        return logits


class ByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 64))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1) @ self.weight.T


class ByPixel(nn.Module):
    """The logits of a sample are one matrix that a linear layer gives, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.top = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        rows: Tensor = self.top(inputs)
        return rows.mean(dim=(1, 2))


OWN: dict[str, Callable[[], nn.Module]] = {
    "dropped": Dropped,
    "two": TwoHeads,
    "sum": lambda: TwoHeads(add=True),
    "repeated": Repeated,
    "by_hand": ByHand,
    "by_pixel": ByPixel,
    "wide": lambda: nn.Sequential(nn.Linear(8, 8)),
    "softmax": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Softmax(dim=1)),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3, bias=False)),
    "convolution": lambda: nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten()),
    "normed": lambda: nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 7),
        nn.BatchNorm1d(7),
        nn.utils.parametrizations.weight_norm(nn.Linear(7, 3)),
    ),
}


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("odd_models")
    for name, make in OWN.items():
        setattr(module, name, lambda signature, make=make: make())
    monkeypatch.setitem(sys.modules, "odd_models", module)


@pytest.mark.parametrize(
    ("name", "head", "length"),
    [("dropped", "top", 6), ("two", "right", 5), ("linear", "1", 64), ("normed", "3", 7)],
)
def test_own_models_with_a_head(name: str, head: str, length: int) -> None:
    name = f"odd_models:{name}"
    assert width(name, IMAGE) == length
    model = models.build_model(name, IMAGE, seed=1, client=0)
    split = Split(model, name, IMAGE).eval()
    logits = split(noise(IMAGE))
    assert split.head is model.get_submodule(head)
    assert torch.equal(split.head(split.features), logits)


def test_features_are_those_before_dropout() -> None:
    model = Dropped().train()
    split = Split(model, "odd_models:dropped", IMAGE)
    inputs = noise(IMAGE)
    split(inputs)
    assert torch.equal(split.features, model.body(inputs.flatten(1)))


@pytest.mark.parametrize("name", ["sum", "repeated", "by_hand", "by_pixel", "softmax", "convolution"])
def test_own_models_without_a_head_are_refused(name: str) -> None:
    with pytest.raises(Refusal) as caught:
        width(f"odd_models:{name}", IMAGE)
    assert str(caught.value) == (
        f"model 'odd_models:{name}' has no head: its logits must be the output of one nn.Linear that is"
        " called once; end its forward with one, without a softmax or a sum after it"
    )


def test_the_head_takes_one_vector_a_sample() -> None:
    with pytest.raises(Refusal, match=r"takes \(3, 1, 8, 8\) for 3 samples: pool or flatten before it"):
        width("odd_models:wide", IMAGE)


def test_a_lent_model_is_given_back_without_hooks() -> None:
    model = models.build_model("textcnn", TEXT, seed=0, client=0)
    split = Split(model, "textcnn", TEXT)
    split(noise(TEXT))
    with pytest.raises(IndexError):
        split(torch.full((2, 12), 99))
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())


def test_gradients_reach_the_body_through_the_features() -> None:
    model = models.build_model("mlp-s", IMAGE, seed=0, client=0)
    split = Split(model, "mlp-s", IMAGE)
    split(noise(IMAGE))
    split.features.square().sum().backward()
    assert model.get_submodule("head").weight.grad is None  # type: ignore[union-attr]  # a layer
    assert model.get_submodule("features.1").weight.grad is not None  # type: ignore[union-attr]  # a layer

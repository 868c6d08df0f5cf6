"""The training loop against one written out by hand, and models and optimisers as plain data."""

import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedistill.config.training import OptimizerConfig
from fedistill.errors import TrainingError
from fedistill.models import registry as models
from fedistill.models.signature import Signature
from fedistill.state import decode_state, encode_state
from fedistill.training import optimizers
from fedistill.training.loop import batch, fit, predict
from fedistill.training.model_state import flatten, unflatten
from fedistill.training.optimizers import make_optimizer

IMAGE = Signature("image", (1, 6, 6), 3, 0)
TEXT = Signature("text", (5,), 3, 20)


class Mixed(nn.Module):
    """All that a model may hold: buffers saved and not saved, numbers that are not floats, shared layers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(()))
        self.norm = nn.BatchNorm2d(1)
        self.flat = nn.Flatten()
        self.head = nn.Linear(36, 3)
        self.register_buffer("shift", torch.rand(3))
        self.register_buffer("passing", torch.rand(4), persistent=False)
        self.register_buffer("steps", torch.tensor(5))
        self.register_parameter("unused", None)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.flat(self.norm(inputs))) * self.scale + self.shift
        return logits


def ladder(name: str, signature: Signature) -> Callable[[int], nn.Module]:
    return lambda seed: models.build_model(name, signature, seed, client=0)


def mixed(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = Mixed()
    model.norm.running_mean = torch.rand(1)
    return model


BUILDERS = {
    **{name: ladder(name, IMAGE) for name in models.model_names("image")},
    **{name: ladder(name, TEXT) for name in models.model_names("text")},
    "with buffers": mixed,
}


@pytest.mark.parametrize("name", BUILDERS)
def test_flat_weights_are_the_parameters_and_then_the_float_buffers(name: str) -> None:
    model = BUILDERS[name](1)
    held = model.state_dict()
    names = [*dict(model.named_parameters()), *(key for key, _ in model.named_buffers() if key in held)]
    floats = [held[key].flatten() for key in names if held[key].is_floating_point()]
    flat = flatten(model)
    assert flat.dtype == torch.float32
    assert torch.equal(flat, torch.cat(floats))
    flat.zero_()  # a copy: the model keeps its weights
    assert torch.equal(flatten(model), torch.cat(floats))


@pytest.mark.parametrize("name", BUILDERS)
def test_flat_weights_make_one_model_like_another(name: str) -> None:
    model, other = BUILDERS[name](1), BUILDERS[name](2)
    layout = [value.stride() for value in other.parameters()]
    assert not torch.equal(flatten(model), flatten(other))
    assert unflatten(other, flatten(model)) is other
    for (key, value), found in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, found), key
    assert [value.stride() for value in other.parameters()] == layout


def test_flat_weights_of_another_model_are_no_fit() -> None:
    model = BUILDERS["mlp-s"](1)
    for size in (-1, 1):
        with pytest.raises(TrainingError, match="parameters and buffers must keep their shapes"):
            unflatten(model, torch.zeros(len(flatten(model)) + size))


def test_what_is_not_saved_or_no_float_stays_as_it_is() -> None:
    model = mixed(1)
    passing = model.get_buffer("passing").clone()
    unflatten(model, torch.zeros_like(flatten(model)))
    assert torch.equal(model.get_buffer("passing"), passing)
    assert int(model.get_buffer("steps")) == 5
    assert not model.get_buffer("shift").any()


OPTIMIZERS = [
    OptimizerConfig(name="sgd", lr=0.1),
    OptimizerConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=0.01),
    OptimizerConfig(name="adam", lr=0.01, weight_decay=0.01),
]


@pytest.mark.parametrize("settings", OPTIMIZERS, ids=["sgd", "momentum", "adam"])
@pytest.mark.parametrize("name", ["cnn-m", "textcnn"])
@pytest.mark.parametrize("stop", [0, 2])
def test_a_restored_optimiser_goes_on_as_if_never_stopped(
    name: str, settings: OptimizerConfig, stop: int
) -> None:
    signature = IMAGE if name == "cnn-m" else TEXT
    generator = torch.Generator().manual_seed(0)
    if signature.kind == "image":
        inputs = torch.rand(8, *signature.shape, generator=generator).to(memory_format=torch.channels_last)
    else:
        inputs = torch.randint(0, 20, (8, 5), generator=generator)
    labels = torch.arange(8) % 3

    def steps(model: nn.Module, optimizer: optimizers.Optimizer, count: int) -> None:
        model.eval()  # no dropout: what is compared is the optimiser
        for _ in range(count):
            optimizer.zero_grad()
            cross_entropy(model(inputs), labels).backward()
            optimizer.step()

    model = BUILDERS[name](1)
    optimizer = make_optimizer(settings, model)
    steps(model, optimizer, stop)
    saved = encode_state({"model": flatten(model), "optimizer": optimizer.state()})
    steps(model, optimizer, 3)

    state = decode_state(saved)
    again = unflatten(BUILDERS[name](2), state["model"])
    restored = make_optimizer(settings, again).restore(state["optimizer"])
    steps(again, restored, 3)
    assert torch.equal(flatten(model), flatten(again))
    assert encode_state(restored.state()) == encode_state(optimizer.state())


@pytest.mark.parametrize("settings", OPTIMIZERS, ids=["sgd", "momentum", "adam"])
def test_steps_are_those_of_torch_to_the_bit(settings: OptimizerConfig) -> None:
    """A parameter without a gradient, as of a layer that is not used in the first steps, stays as it is."""
    kind: Any = torch.optim.Adam if settings.name == "adam" else torch.optim.SGD
    own = {} if settings.name == "adam" else {"momentum": settings.momentum}
    ours, theirs = (nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)) for _ in range(2))
    unflatten(theirs, flatten(ours))
    optimizer = make_optimizer(settings, ours)
    other = kind(theirs.parameters(), settings.lr, weight_decay=settings.weight_decay or 0, **own)
    for number in range(5):
        for one, model in ((optimizer, ours), (other, theirs)):
            one.zero_grad()
            inputs = torch.arange(8.0).reshape(2, 4) - number
            value = model[0](inputs) if number < 2 else model(inputs)
            value.square().mean().backward()
            one.step()
        assert torch.equal(flatten(ours), flatten(theirs))
    buffers = {str(place): entry for place, entry in other.state_dict()["state"].items()}
    kept = {place: {k: v for k, v in entry.items() if v is not None} for place, entry in buffers.items()}
    assert encode_state(optimizer.state()) == encode_state(
        {place: entry for place, entry in kept.items() if entry}
    )


def test_what_is_restored_is_a_copy() -> None:
    model = nn.Linear(2, 1)
    optimizer = make_optimizer(OPTIMIZERS[1], model)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = decode_state(encode_state(optimizer.state()))
    again = make_optimizer(OPTIMIZERS[1], model).restore(state)
    again.step()
    assert encode_state(state) == encode_state(optimizer.state())


TRAINS = """
import sys
import torch
from fedistill import Signature
from fedistill.models import registry as models
from fedistill.config.training import OptimizerConfig
from fedistill.training.optimizers import make_optimizer
from fedistill.training.loop import fit

signature = Signature("image", (1, 8, 8), 10, 0)
for name in ("sgd", "adam"):
    model = models.build_model("cnn-m", signature, 0, 0)
    optimizer = make_optimizer(OptimizerConfig(name=name, momentum=0.9 * (name == "sgd")), model)
    inputs = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    loss = lambda logits, at: logits.square().mean()
    fit(model, optimizer, inputs, loss, epochs=1, batch_size=2, generator=torch.Generator())
    optimizer.restore(optimizer.state())
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""


def test_training_does_not_import_torchs_compiler() -> None:
    """Its import takes as long as that of torch, in each process that Flower starts."""
    done = subprocess.run([sys.executable, "-c", TRAINS], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_momentum_that_is_lost_would_show() -> None:
    # The same as above without restoring: if this were equal, the test above would say nothing.
    model = nn.Linear(2, 1)
    optimizer = make_optimizer(OPTIMIZERS[1], model)

    def step(model: nn.Module, optimizer: optimizers.Optimizer) -> None:
        optimizer.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()

    step(model, optimizer)
    again = unflatten(nn.Linear(2, 1), flatten(model))
    step(model, optimizer)
    step(again, make_optimizer(OPTIMIZERS[1], again))
    assert not torch.equal(flatten(model), flatten(again))


def test_settings_reach_the_optimiser() -> None:
    # One weight of 2 and a gradient of 1, by hand: 2 - 0.1 * (1 + 0.5 * 2) = 1.8,
    # then momentum 0.9 * 2 + (1 + 0.5 * 1.8) = 3.7, so 1.8 - 0.37 = 1.43.
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    optimizer = make_optimizer(OptimizerConfig(lr=0.1, momentum=0.9, weight_decay=0.5), model)
    found = []
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(1, 1)).sum().backward()
        optimizer.step()
        found.append(model.weight.item())
    assert found == pytest.approx([1.8, 1.43])
    # Adam's first step is the learning rate, whatever the gradient.
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    optimizer = make_optimizer(OptimizerConfig(name="adam", lr=0.25), model)
    (model(torch.ones(1, 1)).sum() * 40).backward()
    optimizer.step()
    assert model.weight.item() == pytest.approx(1.75)


def tokens(samples: int, length: int = 3) -> Tensor:
    return torch.arange(samples * length, dtype=torch.int32).reshape(samples, length) % 20


class Linear(nn.Module):
    """A model of tokens that keeps what it is shown."""

    def __init__(self, length: int = 3) -> None:
        super().__init__()
        self.layer = nn.Linear(length, 3)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)
        self.seen: list[Tensor] = []
        self.modes: list[bool] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen.append(inputs)
        self.modes.append(self.training)
        logits: Tensor = self.layer(inputs.float())
        return logits


@given(
    samples=st.integers(1, 30),
    epochs=st.integers(1, 4),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_each_epoch_shows_each_sample_once(samples: int, epochs: int, batch_size: int, seed: int) -> None:
    inputs = tokens(samples)
    model = Linear()
    shown: list[list[int]] = []

    def loss(logits: Tensor, index: Tensor) -> Tensor:
        # The index speaks of the very samples that the logits are for.
        assert torch.equal(model.seen[-1], inputs[index].long())
        shown.append(index.tolist())
        return logits.sum()

    generator = torch.Generator().manual_seed(seed)
    optimizer = make_optimizer(OptimizerConfig(lr=1e-6), model)
    model.eval()
    fit(model, optimizer, inputs, loss, epochs=epochs, batch_size=batch_size, generator=generator)
    batches = -(-samples // batch_size)
    assert len(shown) == epochs * batches
    for epoch in range(epochs):
        own = shown[epoch * batches : (epoch + 1) * batches]
        assert [len(index) for index in own[:-1]] == [batch_size] * (batches - 1)
        assert sorted(chain.from_iterable(own)) == list(range(samples))
    assert all(model.modes)


def test_the_generator_decides_the_order_and_each_epoch_has_its_own() -> None:
    def order(seed: int) -> list[int]:
        shown: list[int] = []

        def loss(logits: Tensor, index: Tensor) -> Tensor:
            shown.extend(index.tolist())
            return logits.sum()

        model = Linear()
        optimizer = make_optimizer(OptimizerConfig(lr=1e-6), model)
        generator = torch.Generator().manual_seed(seed)
        fit(model, optimizer, tokens(20), loss, epochs=2, batch_size=8, generator=generator)
        return shown

    torch.manual_seed(1)
    first = order(0)
    torch.manual_seed(2)
    assert order(0) == first
    assert order(1) != first
    assert first[:20] != first[20:]
    assert first[:20] != sorted(first[:20])


def test_training_is_gradient_descent() -> None:
    inputs = tokens(7)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    model = Linear()
    lr, epochs, size = 0.01, 3, 2
    fit(
        model,
        make_optimizer(OptimizerConfig(lr=lr), model),
        inputs,
        lambda logits, index: cross_entropy(logits, labels[index]),
        epochs=epochs,
        batch_size=size,
        generator=torch.Generator().manual_seed(0),
    )
    # The same by the formula of the gradient: (softmax - one hot) times the input, mean over the batch.
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.zeros(3, 3), torch.zeros(3)
    for _ in range(epochs):
        order = torch.randperm(7, generator=generator).tolist()
        for start in range(0, 7, size):
            gradient_w, gradient_b = torch.zeros(3, 3), torch.zeros(3)
            chosen = order[start : start + size]
            for row in chosen:
                sample = inputs[row].float()
                error = (weight @ sample + bias).softmax(dim=0)
                error[labels[row]] -= 1
                gradient_w += torch.outer(error, sample) / len(chosen)
                gradient_b += error / len(chosen)
            weight -= lr * gradient_w
            bias -= lr * gradient_b
    torch.testing.assert_close(model.layer.weight.detach(), weight)
    torch.testing.assert_close(model.layer.bias.detach(), bias)


@pytest.mark.parametrize(("value", "first"), [("nan", 1), ("inf", 1), ("nan", 6), ("-inf", 9)])
def test_a_loss_that_is_no_number_stops_the_training(value: str, first: int) -> None:
    calls = 0

    def loss(logits: Tensor, index: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        # Its gradient is 0: the weights stay sound, and the loss alone tells.
        return logits.sum() * 0 + (float(value) if calls >= first else 1.0)

    model = Linear()
    optimizer = make_optimizer(OptimizerConfig(), model)
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(TrainingError) as caught:
        fit(model, optimizer, tokens(10), loss, epochs=9, batch_size=2, generator=generator)
    # Five batches an epoch; it stops at the end of the one in which it went wrong.
    epoch = -(-first // 5)
    assert calls == epoch * 5
    place = "before the first step of training: the weights that it starts from are broken"
    if first > 1:
        place = f"in local epoch {epoch}: lower train.optimizer.lr"
    assert str(caught.value).startswith(f"the loss is {value} {place}")
    assert caught.value.place == ""


def test_a_diverging_model_is_caught() -> None:
    model = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 3))

    class Floating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.inner(inputs.float())
            return outputs

    wrapped = Floating()
    optimizer = make_optimizer(OptimizerConfig(lr=1e6, momentum=0.9), wrapped)
    with pytest.raises(TrainingError, match=r"lower train\.optimizer\.lr"):
        fit(
            wrapped,
            optimizer,
            tokens(10),
            lambda logits, index: (logits**2).mean(),
            epochs=30,
            batch_size=5,
            generator=torch.Generator().manual_seed(0),
        )


@given(samples=st.integers(1, 20), batch_size=st.integers(1, 25))
@settings(max_examples=30)
def test_predictions_do_not_depend_on_the_batches(samples: int, batch_size: int) -> None:
    model = nn.Sequential(Linear(), nn.Dropout(0.9))
    nn.init.normal_(model[0].layer.weight, generator=torch.Generator().manual_seed(0))
    model.train()
    inputs = tokens(samples)
    logits = predict(model, inputs, batch_size)
    assert not logits.requires_grad
    assert logits.shape == (samples, 3)
    torch.testing.assert_close(logits, model[0].layer(inputs.float()).detach())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_outputs_that_are_no_numbers_are_not_taken_for_class_0(value: float) -> None:
    class Odd(Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            # In evaluation mode alone, and one output of a sample.
            outputs = super().forward(inputs)
            chosen = torch.tensor([False, True, False]) & (inputs[:, :1] > 4)
            return outputs if self.training else outputs.masked_fill(chosen, value)

    inputs = torch.arange(12).remainder(7).reshape(4, 3)  # 0, 3, 6 and 2 come first in their rows
    with pytest.raises(TrainingError) as caught:
        predict(Odd(), inputs, batch_size=3)
    assert caught.value.what.startswith(
        "the model's outputs are NaN or infinite for 1 of 4 samples in evaluation mode: lower"
    )
    assert caught.value.place == ""


def test_stored_samples_become_what_models_take() -> None:
    pixels = torch.tensor([0, 255, 51, 102], dtype=torch.uint8).reshape(2, 1, 1, 2)
    picked = batch(pixels, torch.tensor([1, 0, 1]))
    assert picked.dtype == torch.float32
    assert picked.flatten().tolist() == pytest.approx([-0.6, -0.2, -1, 1, -0.6, -0.2], abs=1e-6)
    words = torch.tensor([[1, 2], [3, 0]], dtype=torch.int32)
    picked = batch(words, torch.tensor([1]))
    assert picked.dtype == torch.int64
    assert picked.tolist() == [[3, 0]]


def test_weights_used_twice_are_counted_and_saved_once() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    assert len(flatten(model)) == sum(parameter.numel() for parameter in model.parameters()) == 24
    weights = torch.arange(24.0)
    assert torch.equal(flatten(unflatten(model, weights)), weights)


@pytest.mark.parametrize(
    ("steps", "sizes"), [(1, [4]), (3, [4, 4, 2]), (5, [4, 4, 2, 4, 4]), (6, [4, 4, 2] * 2)]
)
def test_steps_in_place_of_epochs(steps: int, sizes: list[int]) -> None:
    """Ten samples in batches of four; a new order begins where the samples end."""
    model = ladder("bag", TEXT)(0)
    seen: list[Tensor] = []

    def loss(logits: Tensor, at: Tensor) -> Tensor:
        seen.append(at)
        return logits.sum()

    optimizer = make_optimizer(OptimizerConfig(), model)
    generator = torch.Generator().manual_seed(3)
    fit(model, optimizer, tokens(10), loss, epochs=1, batch_size=4, generator=generator, steps=steps)
    assert [len(at) for at in seen] == sizes
    twin = torch.Generator().manual_seed(3)
    orders = torch.cat([torch.randperm(10, generator=twin) for _ in range(2)])
    assert torch.equal(torch.cat(seen), orders[: sum(sizes)])


class Spread(nn.Module):
    """Batch norm of vectors, or of planes with so many pixels; notes the batches that it is trained on."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)
        self.pixels = pixels
        self.batches: list[list[float]] = []

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.batches.append(inputs[:, 0].tolist())
        planes = inputs[:, :, None].expand(-1, -1, self.pixels) if self.pixels > 1 else inputs
        normed = self.norm(planes)
        logits: Tensor = self.head(normed.mean(dim=2) if self.pixels > 1 else normed)
        return logits


def batches_of(model: nn.Module, samples: int, size: int, epochs: int = 2) -> list[int]:
    inputs = torch.arange(4.0 * samples).reshape(samples, 4)
    fit(
        model,
        make_optimizer(OptimizerConfig(lr=0.01), model),
        inputs,
        lambda logits, at: logits.square().mean(),
        epochs=epochs,
        batch_size=size,
        generator=torch.Generator().manual_seed(0),
    )
    visited = [value for batch in model.batches for value in batch]
    assert sorted(visited) == sorted(inputs[:, 0].tolist() * epochs)  # each sample once an epoch
    return [len(batch) for batch in model.batches]


@pytest.mark.parametrize(
    ("pixels", "samples", "size", "expected"),
    [
        (1, 9, 4, [4, 5]),
        (1, 10, 4, [4, 4, 2]),
        (1, 5, 4, [5]),
        (1, 4, 4, [4]),
        (4, 9, 4, [4, 4, 1]),  # four values per channel: torch can do that
    ],
)
def test_a_last_batch_without_spread_joins_the_one_before(
    pixels: int, samples: int, size: int, expected: list[int]
) -> None:
    assert batches_of(Spread(pixels), samples, size) == expected * 2


@pytest.mark.parametrize(("samples", "size"), [(1, 4), (4, 1)])
def test_batches_that_are_all_of_one_sample_are_refused(samples: int, size: int) -> None:
    with pytest.raises(
        TrainingError, match=f"batches of one of {samples} samples leave batch norm one value"
    ):
        batches_of(Spread(1), samples, size)
    assert set(batches_of(Spread(2), samples, size)) == {1}


@pytest.mark.parametrize("settings", OPTIMIZERS)
def test_sparse_gradients_give_the_weights_of_dense_ones(settings: OptimizerConfig) -> None:
    found = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = nn.EmbeddingBag(20, 3, sparse=sparse)
        tokens = torch.randint(0, 20, (12, 5), generator=torch.Generator().manual_seed(1))
        fit(
            model,
            make_optimizer(settings, model),
            tokens,
            lambda logits, at: logits.square().mean(),
            epochs=3,
            batch_size=4,
            generator=torch.Generator().manual_seed(0),
        )
        found.append(flatten(model))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)  # summed in another order

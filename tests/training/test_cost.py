"""Multiply-adds and memory of training and prediction, worked out by hand."""

import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from fedistill.config.training import EarlyStopping, OptimizerConfig, Train, TrainOptimizer
from fedistill.models.registry import build_model, model_names, reusable
from fedistill.models.signature import Signature
from fedistill.training import cost
from fedistill.training.cost import Cost, CostCounter, counting, kind_by_shapes
from fedistill.training.early_stopping import draw_validation
from fedistill.training.loop import fit, predict
from fedistill.training.losses import distillation_loss, label_loss
from fedistill.training.model_state import ModelState
from fedistill.training.optimizers import make_optimizer

DIGITS = Signature("image", (1, 8, 8), 10, 0)
TEXTS = Signature("text", (12,), 5, 30)
MLP_S = 64 * 64 + 64 * 10
"""Forward pass of one image of 8 by 8 pixels."""
MLP_S_BACK = MLP_S + 64 * 10
"""The gradient of every weight, and that of the hidden layer; none of the image is asked for."""
CNN_S = 16 * 9 * 8 * 8 + 32 * 16 * 9 * 4 * 4 + 32 * 2 * 2 * 10
CNN_S_BACK = CNN_S + 32 * 16 * 9 * 4 * 4 + 32 * 2 * 2 * 10


def inputs_of(signature: Signature, samples: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if signature.kind == "image":
        return torch.randint(0, 256, (samples, *signature.shape), generator=generator).to(torch.uint8)
    return torch.randint(0, signature.vocabulary, (samples, *signature.shape), generator=generator)


def train(
    model: nn.Module,
    signature: Signature,
    samples: int,
    epochs: int = 1,
    optimizer: OptimizerConfig | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> None:
    labels = torch.arange(samples) % signature.classes
    settings = optimizer or OptimizerConfig(name="sgd", lr=0.1, momentum=0.9)
    fit(
        model,
        make_optimizer(settings, model),
        inputs_of(signature, samples),
        loss or (lambda logits, at: cross_entropy(logits, labels[at])),
        epochs=epochs,
        batch_size=16,
        generator=torch.Generator().manual_seed(0),
    )


@pytest.mark.parametrize(
    ("name", "forward", "backward"), [("mlp-s", MLP_S, MLP_S_BACK), ("cnn-s", CNN_S, CNN_S_BACK)]
)
@given(samples=st.integers(1, 70), epochs=st.integers(1, 3))
def test_multiply_adds_of_each_sample(
    name: str, forward: int, backward: int, samples: int, epochs: int
) -> None:
    model = build_model(name, DIGITS, 0, 0)
    with counting() as counter:
        train(model, DIGITS, samples, epochs)
    assert counter.cost.multiply_adds == epochs * samples * (forward + backward)
    with counting() as counter:
        predict(model, inputs_of(DIGITS, samples), batch_size=32)
    assert counter.cost == Cost(samples * forward, 0)


@pytest.mark.parametrize(
    ("name", "parameters", "saved"),
    [
        # Images, activations after the ReLU, probabilities.
        ("mlp-s", 64 * 64 + 64 + 640 + 10, 4 * (64 + 64 + 10)),
        (
            "cnn-s",
            160 + 4640 + 1290,
            4 * 64  # images
            + 4 * 16 * 64  # the convolution's results,
            + 8 * 16 * 16  # where the maxima are in them,
            + 4 * 16 * 16  # and their ReLU; the same once more
            + 4 * 32 * 16
            + 8 * 32 * 4
            + 4 * 32 * 4
            + 4 * 128  # flattened anew, since channels are last
            + 4 * 10,
        ),
    ],
)
@pytest.mark.parametrize(("optimizer", "copies"), [("sgd", 3), ("adam", 4)])
def test_memory_of_training(name: str, parameters: int, saved: int, optimizer: str, copies: int) -> None:
    """Of two batches of 16 and 4 samples, the larger counts."""
    model = build_model(name, DIGITS, 0, 0)
    settings = OptimizerConfig(name=optimizer, lr=0.01, momentum=0.9 if optimizer == "sgd" else 0.0)
    with counting() as counter:
        train(model, DIGITS, 20, optimizer=settings)
    steps = 4 * len(list(model.parameters())) if optimizer == "adam" else 0
    labels = 8 * 16
    sum_of_weights = 4
    assert counter.cost.memory == 4 * copies * parameters + steps + 16 * saved + labels + sum_of_weights


def test_without_momentum_there_is_one_copy_less() -> None:
    found = []
    for momentum in (0.0, 0.9):
        with counting() as counter:
            settings = OptimizerConfig(name="sgd", lr=0.01, momentum=momentum)
            train(build_model("mlp-s", DIGITS, 0, 0), DIGITS, 16, optimizer=settings)
        found.append(counter.cost.memory)
    assert found[1] - found[0] == 4 * 4810


def test_frozen_weights_are_held_without_a_gradient() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 10))
    first = model[1]
    assert isinstance(first, nn.Linear)
    first.requires_grad_(False)
    with counting() as counter:
        train(model, DIGITS, 16, optimizer=OptimizerConfig(name="sgd", lr=0.1, momentum=0.0))
    weights, head = 4 * (64 * 8 + 8), 4 * (80 + 10)
    assert counter.cost.memory == weights + 2 * head + 16 * 4 * (8 + 10) + 8 * 16 + 4
    assert counter.cost.multiply_adds == 16 * (64 * 8 + 2 * 80)


def test_a_storage_that_is_saved_twice_counts_once_and_others_by_themselves() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))

    def loss(logits: Tensor, at: Tensor) -> Tensor:
        for _ in range(3):
            logits.exp()  # a graph that is let go; the next result may take its place in memory
        return (logits * logits).mean()

    with counting() as counter:
        train(model, DIGITS, 16, loss=loss)
    images, logits = 4 * 16 * 64, 4 * 16 * 10
    assert counter.cost.memory == 3 * 4 * 640 + images + logits + 3 * logits


@pytest.mark.parametrize("name", ["mlp-s", "cnn-s", "cnn-m", "resnet-8", "bag", "textcnn", "transformer-s"])
def test_counting_changes_no_bit(name: str) -> None:
    signature = TEXTS if name in ("bag", "textcnn", "transformer-s") else DIGITS
    found = []
    for counts in (False, True):
        model = build_model(name, signature, 0, 0)
        torch.manual_seed(0)  # for dropout
        if counts:
            with counting():
                train(model, signature, 40, 2)
                logits = predict(model, inputs_of(signature, 40))
        else:
            train(model, signature, 40, 2)
            logits = predict(model, inputs_of(signature, 40))
        found.append((ModelState.of(model).weights, logits))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_counting_changes_no_bit_of_a_loss_with_gradients_in_it() -> None:
    found = []
    for counts in (False, True):
        model = build_model("mlp-s", DIGITS, 0, 0)

        def loss(logits: Tensor, at: Tensor, model: nn.Module = model) -> Tensor:
            value = logits.square().mean()
            slopes = torch.autograd.grad(value, list(model.parameters()), create_graph=True)
            return value + sum((slope.square().sum() for slope in slopes), torch.zeros(()))

        if counts:
            with counting():
                train(model, DIGITS, 20, loss=loss)
        else:
            train(model, DIGITS, 20, loss=loss)
        found.append(ModelState.of(model).weights)
    assert torch.equal(*found)


def test_prediction_of_the_fused_encoder_counts_as_its_parts() -> None:
    """In training mode the same layers are single products."""
    model = build_model("transformer-s", TEXTS, 0, 0)
    tokens = inputs_of(TEXTS, 6).long()
    found = []
    for mode in (True, False):
        with counting() as counter, torch.no_grad():
            model.train(mode)(tokens)
        found.append(counter.cost.multiply_adds)
    width, hidden, length = 96, 192, 12
    layer = length * (4 * width**2 + 2 * width * hidden) + 2 * length**2 * width
    assert found == [6 * (2 * layer + width * 5)] * 2


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda: torch.ones(2, 3) @ torch.ones(3, 5), 30),
        (lambda: torch.ones(4, 2, 3) @ torch.ones(4, 3, 5), 120),
        (lambda: torch.baddbmm(torch.ones(5), torch.ones(4, 2, 3), torch.ones(4, 3, 5)), 120),
        (lambda: torch.ones(2, 3) @ torch.ones(3), 6),
        (lambda: torch.addmv(torch.ones(2), torch.ones(2, 3), torch.ones(3)), 6),
        (lambda: torch.ones(3) @ torch.ones(3), 3),
        # Both gradients of a grouped convolution take what it takes itself, as those of any other.
        (lambda: back(nn.Conv2d(8, 8, 3, groups=8, padding=1), torch.ones(2, 8, 5, 5)), 3 * 2 * 8 * 9 * 25),
        (lambda: back(nn.ConvTranspose2d(8, 4, 3, stride=2), torch.ones(2, 8, 5, 5)), 3 * 2 * 8 * 4 * 9 * 25),
        (lambda: back(nn.Conv1d(3, 4, 2), torch.ones(2, 3, 7)), 3 * 2 * 3 * 4 * 2 * 6),
        # Queries by keys and weights by values; backwards the scores again, and two gradients for each.
        (lambda: attention(torch.ones(2, 4, 6, 8)), 7 * 2 * 4 * 6 * 6 * 8),
        (lambda: back(nn.LSTM(8, 6), torch.ones(5, 2, 8)), 3 * 5 * 2 * 4 * 6 * (8 + 6)),
        # The first hidden state has no gradient.
        (lambda: back(nn.GRU(8, 6), torch.ones(5, 2, 8)), 2 * 3 * 6 * (3 * 5 * (8 + 6) - 6)),
        (lambda: without_gradients(nn.LSTM(8, 6), torch.ones(5, 2, 8)), 5 * 2 * 4 * 6 * (8 + 6)),
        (lambda: nested(torch.tensor([5, 3, 4])), 12 * (4 * 64 + 2 * 8 * 16) + 2 * 8 * (25 + 9 + 16)),
        (lambda: self_attention(torch.ones(3, 5, 8)), 15 * 4 * 64 + 3 * 2 * 25 * 8),
        (lambda: inference(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), torch.ones(5, 4)), 5 * 18),
        (lambda: torch.ones(5, 5).exp().sum(), 0),
    ],
)
def test_operations(run: Callable[[], object], expected: int) -> None:
    with counting() as counter:
        run()
    assert counter.cost == Cost(expected, 0)


def back(layer: nn.Module, inputs: Tensor) -> None:
    """Forwards and backwards, with the gradient of the inputs too."""
    out = layer(inputs.requires_grad_())
    (out if isinstance(out, Tensor) else out[0]).sum().backward()


def attention(tokens: Tensor) -> None:
    tokens.requires_grad_()
    scaled_dot_product_attention(tokens, tokens, tokens).sum().backward()


@torch.no_grad()
def without_gradients(layer: nn.Module, inputs: Tensor) -> None:
    layer(inputs)


@torch.inference_mode()
def inference(layer: nn.Module, inputs: Tensor) -> None:
    layer(inputs)


@torch.no_grad()
def self_attention(tokens: Tensor) -> None:
    nn.MultiheadAttention(8, 2, batch_first=True).eval()(tokens, tokens, tokens)


@torch.no_grad()
def nested(lengths: Tensor) -> None:
    """Texts of unlike lengths, which torch's encoder packs into a nested tensor."""
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1).eval()
    longest = int(lengths.max())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The PyTorch API of nested tensors")
        encoder(torch.ones(3, longest, 8), src_key_padding_mask=torch.arange(longest) >= lengths[:, None])


def test_batches_after_the_first_of_their_size_run_outside_the_counter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    dispatch = CostCounter.__torch_dispatch__

    def spy(self: CostCounter, func: object, *args: object) -> object:
        seen.append(str(func))
        return dispatch(self, func, *args)

    monkeypatch.setattr(CostCounter, "__torch_dispatch__", spy)
    with counting():
        train(build_model("mlp-s", DIGITS, 0, 0), DIGITS, 16 * 5 + 3, epochs=4)
    assert seen.count("aten.relu.default") == 2  # one batch of 16, one of 3


def test_a_counter_under_another_mode_counts_all_the_same() -> None:
    class Other(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # as torch has it
            return func(*args, **(kwargs or {}))

    with counting() as counter, Other():
        train(build_model("mlp-s", DIGITS, 0, 0), DIGITS, 40, 2)
    with counting() as alone:
        train(build_model("mlp-s", DIGITS, 0, 0), DIGITS, 40, 2)
    assert counter.cost == alone.cost


def test_what_is_counted_inside_belongs_to_the_inner_counter_alone() -> None:
    with counting() as outer:
        torch.ones(2, 3) @ torch.ones(3, 5)
        with counting() as inner:
            predict(nn.Linear(4, 3), torch.ones(600, 4))
    assert inner.cost.multiply_adds == 600 * 12
    assert outer.cost.multiply_adds == 30 + 600 * 12


def test_a_step_that_fails_leaves_nothing_counting() -> None:
    def loss(logits: Tensor, at: Tensor) -> Tensor:
        raise ValueError("no loss")

    with pytest.raises(ValueError, match="no loss"), counting() as counter:
        train(build_model("mlp-s", DIGITS, 0, 0), DIGITS, 40, loss=loss)
    before = counter.cost
    predict(nn.Linear(4, 3), torch.ones(5, 4))
    assert counter.cost == before


ROWS = Signature("table", (6,), 5, 0)
BUILT_IN = [(name, one) for one in (DIGITS, TEXTS, ROWS) for name in model_names(one.kind)]


def samples_of(signature: Signature, count: int, seed: int) -> Tensor:
    """Samples whose content differs with the seed; texts end in padding of unlike lengths."""
    generator = torch.Generator().manual_seed(seed)
    if signature.kind == "table":
        return torch.randn(count, *signature.shape, generator=generator)
    if signature.kind == "image":
        pixels = torch.randint(0, 256, (count, *signature.shape), generator=generator)
        return pixels.to(torch.uint8)
    words = torch.randint(1, signature.vocabulary, (count, *signature.shape), generator=generator)
    lengths = torch.randint(1, signature.shape[0] + 1, (count, 1), generator=generator)
    return words.where(torch.arange(signature.shape[0]) < lengths, 0).to(torch.int32)


def declared_loops(
    name: str, signature: Signature, count: int, seed: int, train: Train | None = None, frozen: bool = False
) -> list[Cost]:
    """What training on labels, distillation and prediction take, in loops of which kinds are known."""
    wanted = (train or Train(optimizer=TrainOptimizer(name="sgd", momentum=0.9))).resolved(signature.kind)
    inputs = samples_of(signature, count, seed)
    labels = torch.arange(count) % signature.classes
    probs = torch.randn(count, signature.classes, generator=torch.Generator().manual_seed(seed)).softmax(1)
    losses = label_loss(wanted, labels, signature.classes), distillation_loss(probs)
    found = []
    for loss in losses:
        model = reusable(name, signature)
        next(model.parameters()).requires_grad_(not frozen)
        with counting() as counter:
            fit(
                model,
                make_optimizer(wanted.optimizer, model),
                inputs,
                loss,
                epochs=1,
                batch_size=8,
                generator=torch.Generator().manual_seed(0),
                validation=draw_validation(
                    count, wanted.early_stopping, loss, torch.Generator().manual_seed(0)
                ),
            )
        found.append(counter.cost)
    with counting() as counter:
        predict(model, inputs, batch_size=16)
    next(model.parameters()).requires_grad_(True)  # others of this process use it again
    return [*found, counter.cost]


@pytest.mark.parametrize(("name", "signature"), [*BUILT_IN, ("cnn-s@5", DIGITS)])
def test_a_batch_of_a_known_shape_costs_a_built_in_model_what_it_would_be_counted_at(
    name: str, signature: Signature, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = (1, 19)
    counted = []
    for size in sizes:
        monkeypatch.setattr(cost, "_counted", {})
        counted.append(declared_loops(name, signature, size, seed=1))
    monkeypatch.setattr(cost, "_counted", {})
    for size in sizes:
        declared_loops(name, signature, size, seed=2)

    count = cost.multiply_adds

    def only_what_multiplies_nothing(*operation: Any) -> int:
        assert count(*operation) == 0
        return 0

    monkeypatch.setattr(cost, "multiply_adds", only_what_multiplies_nothing)
    assert [declared_loops(name, signature, size, seed=1) for size in sizes] == counted
    assert all(one.multiply_adds for size in counted for one in size)


SETTINGS: list[dict[str, Any]] = [
    {"train": Train(optimizer=TrainOptimizer(name="sgd", lr=0.1))},
    {"train": Train(optimizer=TrainOptimizer(name="sgd", lr=0.1, momentum=0.9))},
    {"train": Train(optimizer=TrainOptimizer(name="adam"))},
    {"train": Train(label_smoothing=0.1)},
    {"train": Train(loss="balanced-softmax")},
    {"train": Train(early_stopping=EarlyStopping(share=0.5))},
    {"frozen": True},
]


def test_what_costs_depend_on_besides_shapes_is_not_mixed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_counted", {})
    among_others = [declared_loops("mlp-s", DIGITS, 16, 0, **each) for each in SETTINGS]
    alone = []
    for each in SETTINGS:
        monkeypatch.setattr(cost, "_counted", {})
        alone.append(declared_loops("mlp-s", DIGITS, 16, 0, **each))
    assert among_others == alone
    assert len({tuple(one) for one in alone}) >= 5


class Skipping(nn.Module):
    """Looks at dark images alone."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        dark = images.flatten(1)[images.flatten(1).mean(1) < 0]
        out = images.new_zeros(len(images), 10)
        out[: len(dark)] = self.head(dark)
        return out


def test_a_model_of_which_nothing_is_declared_is_counted_in_each_loop() -> None:
    found = []
    for shade in (0, 255):
        with counting() as counter:
            predict(Skipping(), torch.full((16, 1, 8, 8), shade, dtype=torch.uint8))
        found.append(counter.cost.multiply_adds)
    assert found == [16 * 640, 0]
    # Whoever copies a model, or builds one to make another of it, may change it.
    assert kind_by_shapes(reusable("mlp-s", DIGITS)) is not None
    assert kind_by_shapes(deepcopy(reusable("mlp-s", DIGITS))) is None
    assert kind_by_shapes(build_model("mlp-s", DIGITS, 0, 0)) is None


def test_a_part_of_a_model_and_other_numbers_cost_what_they_cost_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loss = label_loss(Train(), torch.arange(40) % 10, 10)

    momentum = Train(optimizer=TrainOptimizer(name="sgd", momentum=0.9)).resolved("image").optimizer

    def memory(part: str = "", dtype: torch.dtype = torch.float32) -> int:
        model = reusable("mlp-s", DIGITS)
        optimizer = make_optimizer(momentum, model.get_submodule(part))
        inputs = torch.randn(40, 1, 8, 8, dtype=dtype)
        try:
            with counting() as counter:
                fit(
                    model.to(dtype),
                    optimizer,
                    inputs,
                    loss,
                    epochs=1,
                    batch_size=8,
                    generator=torch.Generator().manual_seed(0),
                )
        finally:
            model.float()
            model.zero_grad()
        return counter.cost.memory

    each: list[dict[str, Any]] = [{}, {"part": "head"}, {"dtype": torch.float64}]
    monkeypatch.setattr(cost, "_counted", {})
    among_others = [memory(**one) for one in each]
    alone = []
    for one in each:
        monkeypatch.setattr(cost, "_counted", {})
        alone.append(memory(**one))
    assert among_others == alone
    assert len(set(alone)) == 3


@dataclass
class Weighted:
    """A loss that cannot be told from others by a hash."""

    weight: float

    def __call__(self, logits: Tensor, at: Tensor) -> Tensor:
        return self.weight * logits.square().mean()


def test_a_loss_without_a_hash_is_counted_as_any_other() -> None:
    with counting() as counter:
        train(reusable("mlp-s", DIGITS), DIGITS, 40, loss=Weighted(0.5))
    assert counter.cost.multiply_adds > 0

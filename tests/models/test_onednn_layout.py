"""The small CNN in oneDNN's own layout against its layers one after the other, as torch runs them."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from fedistill.config.training import OptimizerConfig
from fedistill.models import image
from fedistill.models import registry as models
from fedistill.models.registry import FEATURES
from fedistill.models.signature import Signature
from fedistill.training.loop import fit, predict
from fedistill.training.model_state import flatten
from fedistill.training.optimizers import make_optimizer

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


@pytest.fixture(autouse=True)
def batches_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "_FEWEST_PIXELS", 0)


class Plain(nn.Module):
    """The model's layers, run by `nn.Sequential`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.model.get_submodule(FEATURES)
        assert isinstance(features, nn.Sequential)
        logits: Tensor = self.model.get_submodule("head")(nn.Sequential.forward(features, inputs))
        return logits


def cnn(channels: int = 1, height: int = 8, width: int = 8) -> nn.Module:
    return models.build_model("cnn-s", Signature("image", (channels, height, width), 5, 0), seed=0, client=0)


def noise(*shape: int) -> Tensor:
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return drawn.contiguous(memory_format=torch.channels_last)


def answers(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Return logits, and the gradients of a loss with respect to the inputs and all weights."""
    inputs = inputs.clone().requires_grad_()
    logits = model(inputs)
    loss = cross_entropy(logits, torch.arange(len(inputs)) % 5, reduction="sum")
    return [logits.detach(), *torch.autograd.grad(loss, [inputs, *model.parameters()])]


def layouts(model: nn.Module, inputs: Tensor) -> set[bool]:
    """Return whether the layers before the flattening take oneDNN's layout."""
    seen: set[bool] = set()
    *layers, _ = model.get_submodule(FEATURES).children()
    handles = [
        layer.register_forward_pre_hook(lambda _, given: seen.add(given[0].is_mkldnn)) for layer in layers
    ]
    assert not model(inputs).is_mkldnn
    for handle in handles:
        handle.remove()
    return seen


@given(
    samples=st.integers(0, 40), channels=st.integers(1, 4), height=st.integers(1, 33), width=st.integers(1, 9)
)
@example(samples=32, channels=1, height=28, width=28)
@example(samples=0, channels=1, height=8, width=8)
@example(samples=1, channels=1, height=1, width=1)
@settings(max_examples=25)
def test_logits_and_gradients_are_those_of_the_plain_layers(
    samples: int, channels: int, height: int, width: int
) -> None:
    model, inputs = cnn(channels, height, width), noise(samples, channels, height, width)
    assert layouts(model, inputs) == {True}
    for ours, plain in zip(answers(model, inputs), answers(Plain(model), inputs), strict=True):
        assert ours.layout == torch.strided
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_an_epoch_ends_with_the_weights_of_the_plain_layers_and_plain_state() -> None:
    settings_ = OptimizerConfig(name="sgd", lr=0.05, momentum=0.9)
    images = torch.randint(0, 256, (200, 1, 8, 8), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    labels = torch.arange(200) % 5
    ends = []
    for wrapped in (cnn(), Plain(cnn())):
        optimizer = make_optimizer(settings_, wrapped)
        fit(
            wrapped,
            optimizer,
            images,
            lambda logits, index: cross_entropy(logits, labels[index]),
            epochs=2,
            batch_size=32,
            generator=torch.Generator().manual_seed(3),
        )
        assert all(value.layout == torch.strided for value in wrapped.state_dict().values())
        buffers = [buffer for kept in optimizer.state().values() for buffer in kept.values()]
        assert len(buffers) == 6
        assert all(buffer.layout == torch.strided for buffer in buffers)
        ends.append((flatten(wrapped), predict(wrapped, images)))
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=0, atol=1e-6)
    torch.testing.assert_close(ends[0][1], ends[1][1], rtol=1e-4, atol=1e-5)


def test_the_same_step_gives_the_same_bits() -> None:
    model, inputs = cnn(), noise(32, 1, 8, 8)
    first = answers(model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, answers(model, inputs), strict=True))


def test_where_onednn_does_not_compute_the_layers_are_plain() -> None:
    model, inputs = cnn(), noise(4, 1, 8, 8)
    torch.backends.mkldnn.enabled = False
    try:
        assert layouts(model, inputs) == {False}
        weights = list(model.parameters())
        first = torch.autograd.grad(model(inputs).square().sum(), weights, create_graph=True)
        second = torch.autograd.grad(torch.stack([one.square().sum() for one in first]).sum(), weights)
        assert all(one.isfinite().all() for one in second)
    finally:
        torch.backends.mkldnn.enabled = True
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layouts(model, inputs) == {False}
    assert layouts(cnn().double(), inputs.double()) == {False}
    assert layouts(model, inputs) == {True}


def test_small_batches_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of pixels decides, whatever the channels are."""
    monkeypatch.undo()
    assert layouts(cnn(3, 20, 20), noise(25, 3, 20, 20)) == {True}
    assert layouts(cnn(3, 20, 20), noise(24, 3, 20, 20)) == {False}


def test_gradients_of_single_samples_and_exported_programs_are_plain() -> None:
    model, inputs = cnn(), noise(4, 1, 8, 8)
    weights = {name: value.detach() for name, value in model.named_parameters()}

    def loss(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        logits: Tensor = functional_call(model, weights, (sample[None],))
        return logits.square().sum()

    by_sample = vmap(grad(loss), (None, 0))(weights, inputs)
    for place in range(4):
        alone = torch.autograd.grad(
            loss(dict(model.named_parameters()), inputs[place]), list(model.parameters())
        )
        for found, expected in zip(by_sample.values(), alone, strict=True):
            torch.testing.assert_close(found[place], expected, rtol=1e-4, atol=1e-5)
    program = torch.export.export(model.eval(), (inputs,))
    torch.testing.assert_close(program.module()(inputs), model(inputs), rtol=1e-4, atol=1e-5)
    assert not any("mkldnn" in str(node.target) for node in program.graph.nodes)

"""The ladder: every model on every size of input, and slow plain versions of what was made fast."""

from typing import Literal

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from fedistill.errors import ExperimentError
from fedistill.models import registry as models
from fedistill.models.checks import check_model
from fedistill.models.registry import FEATURES
from fedistill.models.signature import Signature

IMAGE = Signature("image", (1, 28, 28), 10, 0)
TEXT = Signature("text", (128,), 5, 8000)
IMAGES, TEXTS = models.model_names("image"), models.model_names("text")
ALL = [*((name, IMAGE) for name in IMAGES), *((name, TEXT) for name in TEXTS)]

Built = tuple[nn.Module, Tensor]


def noise(signature: Signature, samples: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if signature.kind == "image":
        return torch.rand(samples, *signature.shape, generator=generator) * 2 - 1
    return torch.randint(1, signature.vocabulary, (samples, *signature.shape), generator=generator)


WIDE = [*((f"{name}@24", IMAGE) for name in IMAGES), *((f"{name}@24", TEXT) for name in TEXTS)]


@pytest.mark.parametrize(("name", "signature"), WIDE)
def test_a_width_is_that_of_the_features(name: str, signature: Signature) -> None:
    """One more linear layer, and nothing else: all other weights are as many as before."""
    model = check_model(name, signature)
    check_features(model, noise(signature, 3), signature.classes)
    plain = models.build_model(name.partition("@")[0], signature, seed=0, client=0)
    head, before = model.get_submodule("head"), plain.get_submodule("head")
    assert isinstance(head, nn.Linear)
    assert isinstance(before, nn.Linear)
    assert head.in_features == 24
    added = (before.in_features + 1) * 24 + (24 + 1) * signature.classes
    assert models.count_parameters(model) - models.count_parameters(plain) == added - models.count_parameters(
        before
    )


@pytest.mark.parametrize("width", ["", "0", "-1", "1.5", "wide", "4097", "64@64", "²"])
def test_a_width_that_is_none_is_refused(width: str) -> None:
    with pytest.raises(ExperimentError, match="write NAME@WIDTH, for example cnn-s@64"):
        models.build_model(f"mlp-s@{width}", IMAGE, seed=0, client=0)


def check_features(model: nn.Module, inputs: Tensor, classes: int) -> None:
    """The logits are the head's answer to what the layer called `features` gives: one vector a sample."""
    seen: list[Tensor] = []
    handle = model.get_submodule(FEATURES).register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        logits = model.eval()(inputs)
    handle.remove()
    head = model.get_submodule("head")
    assert isinstance(head, nn.Linear)
    (vectors,) = seen
    assert vectors.shape == (len(inputs), head.in_features)
    assert logits.shape == (len(inputs), classes)
    assert torch.equal(head(vectors), logits)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", IMAGES)
@given(
    channels=st.integers(1, 4),
    height=st.integers(5, 40),
    width=st.integers(5, 40),
    classes=st.integers(2, 7),
)
@example(channels=1, height=5, width=5, classes=2)
@example(channels=4, height=40, width=5, classes=7)
@settings(max_examples=8)
def test_image_models_take_any_shape(name: str, channels: int, height: int, width: int, classes: int) -> None:
    signature = Signature("image", (channels, height, width), classes, 0)
    model = models.build_model(name, signature, seed=0, client=0)
    check_features(model, noise(signature, 3), classes)


@pytest.mark.parametrize("name", TEXTS)
@given(length=st.integers(4, 40), vocabulary=st.integers(2, 50), classes=st.integers(2, 7))
@settings(max_examples=15)
def test_text_models_take_any_length(name: str, length: int, vocabulary: int, classes: int) -> None:
    signature = Signature("text", (length,), classes, vocabulary)
    model = models.build_model(name, signature, seed=0, client=0)
    check_features(model, noise(signature, 3), classes)


@pytest.mark.parametrize(("name", "signature"), ALL)
def test_no_model_learns_statistics_of_batches(name: str, signature: Signature) -> None:
    model = models.build_model(name, signature, seed=0, client=0)
    assert not any(isinstance(part, _BatchNorm) for part in model.modules())
    assert list(model.buffers()) == []
    # While training, too, a sample's logits are its own (dropout aside).
    for part in model.modules():
        part.train(not isinstance(part, nn.Dropout | nn.MultiheadAttention))
    inputs = noise(signature, 4)
    with torch.no_grad():
        torch.testing.assert_close(model(inputs)[2:3], model(inputs[2:3]), rtol=1e-4, atol=1e-5)


def multiplications(name: str) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        models.build_model(name, IMAGE, seed=0, client=0)(noise(IMAGE, 1))
    return counter.get_total_flops() // 2


def size(name: str, signature: Signature) -> int:
    return models.count_parameters(models.build_model(name, signature, seed=0, client=0))


def test_the_ladder_goes_up() -> None:
    work = [multiplications(name) for name in IMAGES]
    assert work == sorted(set(work))
    weights = [size(name, TEXT) for name in TEXTS]
    assert weights == sorted(set(weights))
    # Worked out by hand: weights and biases of each layer.
    assert size("mlp-s", IMAGE) == 784 * 64 + 64 + 64 * 10 + 10
    assert size("cnn-s", IMAGE) == 9 * 16 + 16 + 9 * 16 * 32 + 32 + 32 * 7 * 7 * 10 + 10
    assert size("bag", TEXT) == 8000 * 32 + 32 * 5 + 5
    assert multiplications("mlp-s") == 784 * 64 + 64 * 10
    # He et al. give 0.27 million for ResNet-20.
    assert round(size("resnet-20", IMAGE) / 1e6, 2) == 0.27


def unswapped(features: nn.Module) -> nn.Sequential:
    """The same layers with the ReLU before the pooling, as in a textbook."""
    assert isinstance(features, nn.Sequential)
    layers = list(features)
    for place, layer in enumerate(layers[:-1]):
        if isinstance(layer, nn.MaxPool2d) and isinstance(layers[place + 1], nn.ReLU):
            layers[place : place + 2] = [layers[place + 1], layer]
    swapped = sum(a is not b for a, b in zip(features, layers, strict=True))
    assert swapped == 4  # two of two poolings, or this test says nothing
    return nn.Sequential(*layers)


@pytest.mark.parametrize("name", ["cnn-s", "cnn-m"])
@given(height=st.integers(1, 15), width=st.integers(1, 15), seed=st.integers(0, 1000))
@example(height=1, width=1, seed=0)
@settings(max_examples=25)
def test_pooling_before_the_relu_changes_nothing(name: str, height: int, width: int, seed: int) -> None:
    signature = Signature("image", (2, height, width), 3, 0)
    model = models.build_model(name, signature, seed, client=0)
    features = model.get_submodule(FEATURES)
    inputs = noise(signature, 2, seed)
    assert torch.equal(features(inputs), unswapped(features)(inputs))


def test_convolutions_over_words_against_a_slow_version() -> None:
    signature = Signature("text", (9,), 4, 30)
    model = models.build_model("textcnn", signature, seed=0, client=0).eval()
    tokens = noise(signature, 5)
    for row in range(5):
        tokens[row, 9 - row :] = 0
    weights = model.state_dict()
    expected = []
    for text in tokens.tolist():
        # Words, with so many blanks around them that some window is blank.
        words = [weights["features.embed.weight"][token] if token else torch.zeros(64) for token in text]
        words = [torch.zeros(64)] * 5 + words + [torch.zeros(64)] * 5
        vector = []
        for place, width in enumerate((3, 4, 5)):
            kernel = weights[f"features.convolutions.{place}.weight"]
            bias = weights[f"features.convolutions.{place}.bias"]
            windows = [
                torch.stack(words[start : start + width], dim=1) for start in range(len(words) - width + 1)
            ]
            found = torch.stack([(kernel * window).sum(dim=(1, 2)) + bias for window in windows])
            vector.append(found.max(dim=0).values.clamp(min=0))
        expected.append(weights["head.weight"] @ torch.cat(vector) + weights["head.bias"])
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), torch.stack(expected))


def test_the_bag_is_the_mean_of_its_words() -> None:
    signature = Signature("text", (4,), 2, 9)
    model = models.build_model("bag", signature, seed=0, client=0)
    weights = model.state_dict()
    mean = (weights["features.weight"][3] + 2 * weights["features.weight"][5]) / 3
    expected = weights["head.weight"] @ mean + weights["head.bias"]
    torch.testing.assert_close(model(torch.tensor([[5, 3, 5, 0]]))[0].detach(), expected)


@given(words=st.integers(1, 12), more=st.integers(0, 12), seed=st.integers(0, 1000))
@example(words=12, more=1, seed=0)
@settings(max_examples=25)
@pytest.mark.parametrize("name", ["bag", "textcnn"])
def test_more_padding_changes_nothing(name: str, words: int, more: int, seed: int) -> None:
    signature = Signature("text", (24,), 3, 40)
    model = models.build_model(name, signature, seed, client=0).eval()
    text = noise(signature, 2, seed)[:, :words]
    padded = torch.cat([text, torch.zeros(2, more, dtype=torch.int64)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(model(padded), model(text))


@pytest.mark.parametrize("name", TEXTS)
@given(words=st.integers(1, 11), seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_what_stands_for_padding_is_never_looked_at(name: str, words: int, seed: int) -> None:
    signature = Signature("text", (12,), 3, 40)
    model = models.build_model(name, signature, seed, client=0).eval()
    tokens = noise(signature, 2, seed)
    tokens[:, words:] = 0
    with torch.no_grad():
        before = model(tokens)
        # As a lossy codec may leave it: a vector for padding, and others for the places behind the text.
        for weights in (part.weight for part in model.modules() if hasattr(part, "padding_idx")):
            assert isinstance(weights, Tensor)
            weights[0] = 7.0
        if name == "transformer-s":
            model.get_parameter("features.place")[words:] = 7.0
        torch.testing.assert_close(model(tokens), before)


def test_the_transformer_knows_the_places_of_words_and_the_bag_does_not() -> None:
    signature = Signature("text", (6,), 3, 40)
    text = torch.tensor([[3, 4, 5, 6, 0, 0]])
    turned = torch.tensor([[6, 5, 4, 3, 0, 0]])

    def differ(name: str) -> bool:
        model = models.build_model(name, signature, seed=0, client=0).eval()
        with torch.no_grad():
            return not torch.allclose(model(text), model(turned), atol=1e-5)

    assert {name: differ(name) for name in TEXTS} == {"bag": False, "textcnn": True, "transformer-s": True}


@pytest.mark.parametrize(("name", "signature"), ALL)
def test_the_seed_and_the_client_name_the_initial_weights(name: str, signature: Signature) -> None:
    def weights(seed: int, client: int) -> list[Tensor]:
        return list(models.build_model(name, signature, seed, client).state_dict().values())

    first = weights(1, 2)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = weights(1, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (weights(3, 2), weights(1, 3)):
        assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("name", "signature", "said"),
    [
        (
            "cnn-x",
            IMAGE,
            "model 'cnn-x' is not one of mlp-s, cnn-s, cnn-m, resnet-8, resnet-20 or module:function."
            " Did you mean 'cnn-s'?",
        ),
        (
            "bag",
            IMAGE,
            "model 'bag' is for text tasks; this is a task of images: mlp-s, cnn-s, cnn-m, resnet-8,"
            " resnet-20",
        ),
        (
            "mlp-s",
            TEXT,
            "model 'mlp-s' is for image tasks; this is a task of texts: bag, textcnn, transformer-s",
        ),
    ],
)
def test_a_model_that_is_not_on_the_ladder_is_refused(name: str, signature: Signature, said: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        models.build_model(name, signature, seed=0, client=0)
    assert str(caught.value) == said


@pytest.mark.parametrize("kind", ["image", "text"])
def test_every_model_of_the_ladder_passes_the_check(kind: Literal["image", "text"]) -> None:
    for name in models.model_names(kind):
        assert check_model(name, IMAGE if kind == "image" else TEXT).get_submodule("head") is not None

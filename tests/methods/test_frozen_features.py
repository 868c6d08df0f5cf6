"""ridge and gaussian on the features of frozen models, of images and of texts."""

import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedistill.errors import ExperimentError, Refusal
from fedistill.experiment.preflight import examine
from fedistill.federation.arm import ReadyArm
from fedistill.federation.history import ArmRun
from fedistill.methods.registry import METHODS
from fedistill.methods.shared.moments import Moments, MomentsMethod, message_of
from fedistill.models.features import Split
from fedistill.models.frozen_features import FrozenFeatures
from fedistill.models.registry import build_model
from fedistill.models.signature import Signature
from fedistill.rng import SERVER
from helpers.runs import finished, ready

DIGITS = Signature("image", (1, 8, 8), 10, 0)
ENCODERS = """
    import torch
    from torch import nn
    from fedistill.models.signature import Preprocessing


    class Encoder(nn.Module):
        def __init__(self, make):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1), requires_grad=False)
            self.make = make

        def forward(self, inputs):
            return self.make(inputs)


    def halves(signature):
        def means(images):
            return torch.stack([half.mean((1, 2, 3)) for half in images.split(4, dim=3)], 1)

        return Encoder(means)


    def pixels(signature):
        return Encoder(lambda images: images.flatten(1))


    def maps(signature):
        return Encoder(lambda images: images)


    def letters(signature):
        \"\"\"How often each of 26 hashes of words occurs.\"\"\"
        def counts(tokens):
            return torch.stack([(tokens == one).float().mean(1) for one in range(1, 27)], 1)

        return Encoder(counts)


    letters.preprocessing = Preprocessing(buckets=26, length=40)
"""


@pytest.fixture(autouse=True)
def encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_encoders.py").write_text(textwrap.dedent(ENCODERS))
    monkeypatch.syspath_prepend(str(tmp_path))


def raw(task: dict[str, Any] | None = None, **arm: Any) -> dict[str, Any]:
    digits = {"name": "digits", "clients": 3, "limit": 400, "public": 60}
    model = "bag" if (task or {}).get("name") == "bbc-news" else "mlp-s"
    return {
        "rounds": 1,
        "task": {**digits, **(task or {})},
        "models": {"clients": [model], "server": model},
        "arms": [{"method": "gaussian", **arm}],
    }


def played(task: dict[str, Any] | None = None, **arm: Any) -> tuple[ReadyArm, ArmRun]:
    return finished(raw(task, **arm))


NEWS = {"name": "bbc-news", "limit": 300, "text": {"length": 24, "vocabulary": 400}}


def test_a_modules_own_features_are_what_it_returns() -> None:
    images = torch.rand(5, 1, 8, 8)
    features = FrozenFeatures("my_encoders:halves", DIGITS, seed=0)
    expected = torch.stack([images[..., :4].mean((1, 2, 3)), images[..., 4:].mean((1, 2, 3))], dim=1)
    assert features.width == 2
    assert torch.equal(features(images), expected)
    assert not [*features.parameters(), *features.buffers()]


def test_a_ladder_models_features_are_the_input_of_its_head_with_weights_from_the_seed() -> None:
    images = torch.rand(5, 1, 8, 8)
    split = Split(build_model("cnn-s", DIGITS, 7, SERVER).eval(), "cnn-s", DIGITS)
    split(images)
    found = FrozenFeatures("cnn-s", DIGITS, seed=7)
    assert torch.equal(found(images), split.features)
    assert not torch.equal(FrozenFeatures("cnn-s", DIGITS, seed=8)(images), split.features)


def test_projections_are_of_the_models_features() -> None:
    """All are linear in these, so the projection of a sum is the sum of projections."""
    features = FrozenFeatures("my_encoders:pixels", DIGITS, seed=0, width=10)
    left, right = torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8)
    assert features(left).shape == (4, 10)
    torch.testing.assert_close(features(left) + features(right), features(left + right))
    assert not torch.allclose(features(left), features(right))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), parts=st.integers(2, 8), method=st.sampled_from(["ridge", "gaussian"]))
def test_no_split_matters_beyond_rounding(seed: int, parts: int, method: str) -> None:
    """Any split of the samples gives a classifier as good as that of all samples, as in AFL."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.arange(4), torch.randint(4, (296,), generator=generator)])
    inputs = torch.randn(300, 1, 8, 8, generator=generator) + labels[:, None, None, None] / 2
    inputs[:, 0, 0] += torch.nn.functional.one_hot(labels, 8) * 3.0
    features = FrozenFeatures("cnn-s", DIGITS, seed=0, width=12)(inputs)
    kind = METHODS[method]
    solver = kind(kind.Settings())
    assert isinstance(solver, MomentsMethod)
    right = []
    for split in (torch.zeros(300), torch.randint(parts, (300,), generator=generator)):
        found = Moments.none(4, 12)
        for part in split.unique():
            mine = split == part
            found = found.plus(Moments.of(message_of(features[mine], labels[mine], 255), 4))
        weights, biases = solver.classifier(found, 0.03)
        named = (features.double() @ weights.T + biases).argmax(dim=1)
        right.append(float((named == labels).double().mean()))
    assert right[0] > 0.4
    assert abs(right[0] - right[1]) < 0.06


@pytest.mark.parametrize("method", ["ridge", "gaussian"])
def test_texts_are_classified_by_the_features_of_an_encoder(method: str) -> None:
    """The encoder reads words as it declares, and the set-up is for the arm's models alone."""
    arm, run = played(NEWS, method=method, features="my_encoders:letters")
    assert arm.federation.signatures["my_encoders:letters"].shape == (40,)
    assert run.server.moments.sums.shape == (5, 26)
    assert run.records[0].views["server@global"] > 0.3
    assert run.ledger.setup == 0


def test_a_network_of_another_kind_of_input_learns_from_them() -> None:
    arm, run = played(NEWS, features="my_encoders:letters", distill_epochs=2)
    assert arm.server_model() is not None
    assert run.records[0].views["server@global"] > 0.15


def test_frozen_random_features_beat_chance_by_far_on_digits() -> None:
    _, run = played(features="cnn-s", width=32)
    assert run.records[0].views["server@global"] > 0.7


REFUSED = [
    ({"features": "cnn-x"}, None, "model 'cnn-x' is not one of mlp-s, cnn-s"),
    ({"features": "cnn-s", "width": 300}, None, "model 'cnn-s' has 128 features, fewer than width = 300"),
    (
        {"features": "my_encoders:maps"},
        None,
        r"returns \(2, 1, 8, 8\) for 2 samples, but a model whose features",
    ),
    ({"features": "bag"}, None, "model 'bag' is for text tasks"),
    ({}, NEWS, "method gaussian needs images, but the samples of this task are texts"),
]


@pytest.mark.parametrize(("arm", "task", "said"), REFUSED)
def test_what_cannot_be_is_refused(arm: dict[str, Any], task: Any, said: str) -> None:
    wanted, found = ready(raw(task, **arm))
    with pytest.raises(Refusal, match=said):
        found.method.check(found.federation)
    errors = [one for one in examine(wanted, found.task, [found]) if one.level == "error"]
    assert len(errors) == 1


def test_a_function_that_is_not_there_is_refused() -> None:
    with pytest.raises(ExperimentError, match="my_encoders:nobody"):
        finished(raw(features="my_encoders:nobody"))

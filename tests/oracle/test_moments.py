"""ridge and gaussian against scikit-learn on pooled features, and what their rounding changes."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn
from scipy.signal import correlate2d
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from torch import Tensor

from fedistill.errors import FrameError
from fedistill.methods.registry import METHODS
from fedistill.methods.shared.moments import (
    Moments,
    MomentsMethod,
    check_bounds,
    inverse,
    l2_of_rounding,
    message_of,
)
from fedistill.models.fixed_features import EdgeFrequencies
from fedistill.training.loop import predict
from helpers.runs import finished

WIDTH, CLASSES = 6, 4


def samples(seed: int, count: int = 200) -> tuple[Tensor, Tensor]:
    """Features of unlike sizes that are correlated and depend on the class, and labels of all classes."""
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(CLASSES), random.integers(0, CLASSES, count - CLASSES)])
    mixing = random.standard_normal((WIDTH, WIDTH)) * np.exp(random.uniform(-3, 3, WIDTH))
    noise = random.standard_normal((count, WIDTH)) + 2 * random.standard_normal((CLASSES, WIDTH))[labels]
    return torch.from_numpy(noise @ mixing), torch.from_numpy(labels)


def exact(features: Tensor, labels: Tensor) -> Moments:
    of_class = torch.nn.functional.one_hot(labels, CLASSES).double()
    return Moments(of_class.sum(dim=0), of_class.T @ features, features.T @ features)


def solver(method: str, **own: Any) -> MomentsMethod:
    kind = METHODS[method]
    found = kind(kind.Settings(**own))
    assert isinstance(found, MomentsMethod)
    return found


@pytest.mark.parametrize("l2", [1e-3, 0.1])
def test_ridge_is_scikit_learns_on_features_of_one_variance(l2: float) -> None:
    features, labels = samples(0)
    weights, biases = solver("ridge").classifier(exact(features, labels), l2)
    deviations = features.std(dim=0, correction=0)
    targets = torch.nn.functional.one_hot(labels, CLASSES).numpy()
    theirs = Ridge(alpha=l2 * len(labels)).fit((features / deviations).numpy(), targets)
    np.testing.assert_allclose((weights * deviations).numpy(), theirs.coef_, atol=1e-9)
    np.testing.assert_allclose(biases.numpy(), theirs.intercept_, atol=1e-9)


def test_gaussian_is_scikit_learns_discriminant() -> None:
    features, labels = samples(1)
    weights, biases = solver("gaussian").classifier(exact(features, labels), 1e-12)
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(features.numpy(), labels.numpy())
    found = (features @ weights.T + biases).softmax(dim=1)
    np.testing.assert_allclose(found.numpy(), theirs.predict_proba(features.numpy()), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), parts=st.integers(1, 6), levels=st.sampled_from([7, 255]))
def test_rounded_moments_add_up_to_those_of_all_samples(seed: int, parts: int, levels: int) -> None:
    """Means are off by an eighth of a deviation at most, correlations by half a level."""
    features, labels = samples(seed)
    whose = torch.from_numpy(np.random.default_rng(seed).integers(0, parts, len(labels)))
    found = Moments.none(CLASSES, WIDTH)
    for part in whose.unique():
        found = found.plus(
            Moments.of(message_of(features[whose == part], labels[whose == part], levels), CLASSES)
        )
    expected = exact(features, labels)
    assert found.samples.tolist() == expected.samples.tolist()
    means, theirs = (one.sums / one.samples[:, None] for one in (found, expected))
    # The deviation within classes and clients is no more than that of all samples, and rounded itself.
    allowed = 0.125 * 1.05 * features.std(dim=0, correction=0)
    assert ((means - theirs).abs() <= allowed).all()


def test_rounding_by_hand() -> None:
    """Two classes of two samples, two features; within classes they deviate by 1 and 4 and are opposite.

    Class means are (2, 0) and (-1, 8): in quarters of a deviation, 8, 0 and -4, 8.
    """
    features = torch.tensor([[3.0, -4.0], [1.0, 4.0], [0.0, 4.0], [-2.0, 12.0]])
    message = message_of(features, torch.tensor([0, 0, 2, 2]), levels=15)
    assert message.classes.tolist() == [0, 2]
    assert message.samples.tolist() == [2, 2]
    assert message.scales.tolist() == [0, 16]  # 2 ** (0 / 8), and 2 ** (16 / 8)
    assert message.means.tolist() == [8, 0, -4 - 8, 8 - 0]
    assert message.correlations.tolist() == [-15]
    moments = Moments.of(message, classes=3)
    assert moments.sums.tolist() == [[4.0, 0.0], [0.0, 0.0], [-2.0, 16.0]]
    assert torch.equal(moments.products, features.double().T @ features.double())


@pytest.mark.parametrize("value", [0.0, 1e6, -1e-6])
def test_features_that_never_change_are_sent_all_the_same(value: float) -> None:
    features, labels = samples(2)
    features[:, 3] = value
    message = message_of(features, labels, levels=15)
    message.check()
    found = Moments.of(message, CLASSES)
    means = found.sums / found.samples[:, None]
    np.testing.assert_allclose(means[:, 3].numpy(), value, rtol=0.01, atol=1e-5)
    weights, biases = solver("ridge").classifier(found, 0.03)
    assert torch.isfinite(weights).all()
    assert torch.isfinite(biases).all()


def test_coarser_rounding_asks_for_more_ridge_and_more_clients_for_less() -> None:
    """Four equal clients halve the error of one: 0.01 + 0.35 * sqrt(48 / 12) / 7 / 2."""
    assert l2_of_rounding([50], 48, 7) == pytest.approx(0.01 + 0.35 * 2 / 7)
    assert l2_of_rounding([50] * 4, 48, 7) == pytest.approx(0.01 + 0.35 * 2 / 7 / 2)
    assert l2_of_rounding([30, 40], 12, 1) == pytest.approx(0.01 + 0.35 * 50 / 70)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 100), levels=st.sampled_from([1, 3, 15]))
def test_errors_of_rounding_have_the_eigenvalues_that_the_ridge_is_made_for(seed: int, levels: int) -> None:
    """Of the largest, the ridge less 0.01 is about a sixth."""
    generator = torch.Generator().manual_seed(seed)
    errors = torch.zeros(60, 60, dtype=torch.float64)
    for _ in range(5):
        noise = torch.randn(3000, 60, generator=generator, dtype=torch.float64) @ torch.randn(
            60, 60, generator=generator, dtype=torch.float64
        )
        correlations = torch.corrcoef(noise.T)
        errors += ((correlations * levels).round() / levels - correlations) / 5
    largest = float(torch.linalg.eigvalsh(errors).abs().max())
    ridge = l2_of_rounding([1] * 5, 60, levels) - 0.01
    assert 1 / 9 < ridge / largest < (1 if levels == 1 else 1 / 4)


def test_an_indefinite_matrix_has_a_positive_inverse() -> None:
    """[[1, 1.5], [1.5, 1]] has the eigenvalues 2.5 and -0.5."""
    found = inverse(torch.tensor([[4.0, 6.0], [6.0, 4.0]]).double(), l2=0.5)
    values = torch.linalg.eigvalsh(found)
    torch.testing.assert_close(values, torch.tensor([1 / 3 / 4, 1 / 0.5 / 4]).double())


@pytest.mark.parametrize("method", ["ridge", "gaussian"])
def test_no_partition_matters_beyond_rounding(method: str) -> None:
    logits = []
    for task in ({"clients": 1}, {"clients": 5, "partition": {"kind": "dirichlet", "alpha": 0.2}}):
        arm, run = finished(
            {
                "rounds": 1,
                "task": {"name": "digits", "limit": 600, "public": 100, **task},
                "models": {"clients": ["mlp-s"], "server": "mlp-s"},
                "arms": [{"method": method, "width": 24, "levels": 255}],
            }
        )
        found = arm.method.server_net(arm.federation)
        assert found is not None
        with torch.no_grad():
            logits.append(predict(run.server.model.load_into(found[1]), arm.task.test.samples))
    agree = (logits[0].argmax(dim=1) == logits[1].argmax(dim=1)).float().mean()
    assert agree > 0.95


def test_features_are_cosine_transforms_of_brightness_and_of_edges() -> None:
    images = torch.rand(3, 2, 9, 11, generator=torch.Generator().manual_seed(0))
    features = EdgeFrequencies((2, 9, 11), width=14)
    found = features(images).double().numpy()
    for image, row in zip(images.mean(dim=1).double().numpy(), found, strict=True):
        bright = dctn(image, norm="ortho")
        # Sums of frequencies up to 2, less the start of 2: one, two, three places, then the mean edges, ...
        low = [bright[0, 0], bright[0, 1], bright[1, 0], bright[0, 2], bright[1, 1], bright[2, 0]]
        edges = [
            dctn(np.abs(correlate2d(image, one[0].double().numpy(), mode="valid")), norm="ortho")
            for one in features._filters
        ]
        means = [one[0, 0] for one in edges]
        next_bright = [bright[0, 3], bright[1, 2], bright[2, 1], bright[3, 0]]
        np.testing.assert_allclose(sorted(row), sorted([*low, *means, *next_bright]), atol=1e-5)


def test_an_even_image_has_no_edges() -> None:
    features = EdgeFrequencies((1, 8, 8), width=30)(torch.ones(1, 1, 8, 8))
    torch.testing.assert_close(features.abs().sum(), torch.tensor(8.0))  # the mean, times 8


@settings(deadline=None)
@given(
    channels=st.integers(1, 3),
    height=st.integers(5, 12),
    across=st.integers(5, 12),
    contrast=st.floats(0, 100),
    seed=st.integers(0, 2**32 - 1),
)
def test_features_and_their_moments_are_within_their_bounds(
    channels: int, height: int, across: int, contrast: float, seed: int
) -> None:
    shape = channels, height, across
    features = EdgeFrequencies(shape, width=min(20, EdgeFrequencies.most(shape)))
    low, high = features.bounds()
    random = torch.Generator().manual_seed(seed)
    images = (contrast * torch.randn(40, *shape, generator=random)).clamp(-1, 1)
    found = features(images).double()
    slack = 1e-4 * (high - low)
    assert ((low - slack <= found) & (found <= high + slack)).all()
    labels = torch.randint(0, CLASSES, (40,), generator=random)
    check_bounds(message_of(found, labels, levels=3), low, high)


def test_the_bounds_of_brightness_and_of_edges_are_reached() -> None:
    features = EdgeFrequencies((1, 8, 8), width=30)
    low, high = features.bounds()
    of_white = features(torch.ones(1, 1, 8, 8))[0].double()
    # Brightness of all pixels comes first: its mean times 8.
    assert [float(low[0]), float(high[0])] == pytest.approx([-8, 8])
    assert float(of_white[0]) == pytest.approx(8)
    means = (low == 0).nonzero().flatten()
    assert len(means) == 4  # the mean of edges in each direction
    torch.testing.assert_close(
        high[means], 4 * features._filters.double().abs().sum(dim=(1, 2, 3)), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("factor", [-1.0, 1000.0])
def test_moments_that_no_image_has_are_refused(factor: float) -> None:
    features = EdgeFrequencies((1, 8, 8), width=30)
    images = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(60) % CLASSES
    found = features(images).double()
    check_bounds(message_of(found, labels, levels=3), *features.bounds())
    with pytest.raises(FrameError, match=r"feature \d+ has (class means from|a standard deviation of)"):
        check_bounds(message_of(factor * found, labels, levels=3), *features.bounds())

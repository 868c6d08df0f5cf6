"""Density ratios and nearness, against what they are defined by."""

import numpy as np
import torch
from torch import Tensor

from fedistill import Signature
from fedistill.methods.shared.density import Centroids, Kulsif, familiar, kmeans, vectors

IMAGES = Signature("image", (1, 2, 2), 10, 0)
TEXTS = Signature("text", (4,), 5, 9000)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kernel(left: Tensor, right: Tensor, width: float) -> Tensor:
    apart = ((left[:, None] - right[None]) ** 2).sum(dim=2)
    return (-apart / (2 * width**2)).exp()


def objective(ratio: Kulsif, weights: Tensor, width: float) -> float:
    """What KuLSIF makes least, of any weights on the uniform points and the references."""
    points = torch.cat([ratio.uniform, ratio.references]).double()
    gram = kernel(points, points, width)
    values = gram @ weights
    n, m = len(ratio.uniform), len(ratio.references)
    fit = (values[:n] ** 2).sum() / (2 * n) - values[n:].sum() / m
    return float(fit + n**-0.5 / 2 * weights @ gram @ weights)


def test_the_ratio_is_the_least_of_what_defines_it() -> None:
    """Any other function of the same kernel has a greater loss (Kanamori et al., 2012, equation 9)."""
    references, width = torch.randn(12, 3, generator=generator()), 0.8
    ratio = Kulsif(references, generator(1), auxiliaries=20, width=width)
    best = torch.cat([ratio.weights, torch.full((12,), ratio.share, dtype=torch.float64)])
    least = objective(ratio, best, width)
    noise = torch.randn(200, 32, generator=generator(2), dtype=torch.float64)
    assert all(objective(ratio, best + 0.01 * step, width) > least for step in noise)
    points = torch.cat([ratio.uniform, ratio.references]).double()
    torch.testing.assert_close(ratio(points), kernel(points, points, width) @ best)


def test_the_matrix_is_solved_and_not_multiplied_by() -> None:
    """The published code of Selective-FD multiplies; its ratio orders samples in another way."""
    references, width, n = torch.rand(30, 2, generator=generator()) / 4, 0.1, 40
    ratio = Kulsif(references, generator(1), auxiliaries=n, width=width)
    uniform, penalty = ratio.uniform.double(), n**-0.5
    left = kernel(uniform, uniform, width) / n + penalty * torch.eye(n, dtype=torch.float64)
    right = -kernel(uniform, references.double(), width).sum(dim=1) / (n * 30 * penalty)
    torch.testing.assert_close(left @ ratio.weights, right)
    assert not torch.allclose(left @ right, ratio.weights, rtol=0.1)


def test_ratio_is_high_among_references_and_not_elsewhere() -> None:
    references = torch.randn(200, 2, generator=generator()) * 0.1
    references[100:] += 3
    ratio = Kulsif(references, generator(1), width=0.5)
    at = torch.tensor([[0.0, 0.0], [3.0, 3.0], [1.5, 1.5], [0.0, 3.0], [40.0, 40.0]])
    values = ratio(at)
    assert values[:2].min() > 2 * values[2:].abs().max()


def test_width_is_the_median_distance_of_different_references() -> None:
    points = torch.tensor([[0.0], [0.0], [1.0], [4.0]])
    assert Kulsif(points, generator()).width == np.median([1, 4, 1, 4, 3])
    assert Kulsif(points, generator(), width=2.5).width == 2.5
    assert Kulsif(torch.zeros(3, 2), generator()).width == 1


def test_uniform_points_span_the_box_of_references() -> None:
    references = torch.tensor([[0.0, 5.0, 1.0], [2.0, 5.0, -1.0]])
    drawn = Kulsif(references, generator(), auxiliaries=500).uniform
    assert drawn.shape == (500, 3)
    assert torch.equal(drawn[:, 1], torch.full((500,), 5.0))
    assert drawn[:, 0].min() >= 0
    assert 1.9 < drawn[:, 0].max() <= 2


def test_centroids_of_two_heaps() -> None:
    points = torch.tensor([[0.0, 0.0], [0.0, 2.0], [10.0, 0.0], [10.0, 2.0]])
    score = Centroids(points, generator(), clusters=2)
    at = torch.tensor([[0.0, 1.0], [10.0, 1.0], [5.0, 1.0], [10.0, 4.0]])
    torch.testing.assert_close(score(at), torch.tensor([0, 0, -5, -3], dtype=torch.float64))


def test_no_more_clusters_than_different_points() -> None:
    centroids, nearest = kmeans(torch.tensor([[1.0], [1.0], [3.0]]), 10, generator())
    assert sorted(centroids.flatten().tolist()) == [1, 3]
    assert nearest[0] == nearest[1] != nearest[2]


def test_familiar_is_above_the_quantile_of_ones_own() -> None:
    own = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    others = torch.tensor([0.9, 1.0, 1.1, 9.0])
    assert familiar(own, others, 0.25).tolist() == [False, False, True, True]
    assert familiar(own, others, 0.0).tolist() == [True] * 4
    assert familiar(own, others, 1.0).tolist() == [False, False, False, True]


def test_images_are_pixels_from_0_to_1() -> None:
    inputs = torch.tensor([[[[0, 255], [51, 102]]]], dtype=torch.uint8)
    found = vectors(inputs, IMAGES, inputs)
    torch.testing.assert_close(found, torch.tensor([[0, 1, 0.2, 0.4]]))


def test_texts_are_words_by_how_rare_they_are() -> None:
    """Padding (0) counts for nothing, nor does a word that all have; 7 and 7 + 4096 are one place."""
    public = torch.tensor([[5, 7, 0, 0], [5, 4103, 9, 0], [5, 9, 9, 0], [5, 5, 5, 5]])
    found = vectors(torch.tensor([[5, 7, 7, 9], [5, 0, 0, 0]]), TEXTS, public)
    weight = np.log(5 / 3)
    expected = np.array([2 * weight, weight]) / np.hypot(2 * weight, weight)
    np.testing.assert_allclose(found[0, [7, 9]].numpy(), expected, rtol=1e-6)
    assert found[0].count_nonzero() == 2
    assert not found[1].any()

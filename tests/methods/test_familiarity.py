"""Scores of public samples, against the densities and the regression that they stand for."""

import math
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedistill.methods.shared.familiarity import certainties, certainty_scores, densities, density_scores
from fedistill.models.signature import Signature

IMAGES = Signature("image", (1, 2, 2), 10, 0)


class Site:
    """As much of a client as scores are made of: images of four pixels, given from 0 to 1."""

    signature = IMAGES

    def __init__(self, own: Tensor, public: Tensor) -> None:
        self.own, self.public = own, public

    def inputs(self) -> Tensor:
        return self.own.view(-1, 1, 2, 2) * 255

    def public_inputs(self) -> Tensor:
        return self.public.view(-1, 1, 2, 2) * 255


def site(own: Tensor, public: Tensor) -> Any:
    return Site(own, public)


def drawn(count: int, seed: int) -> Tensor:
    return torch.rand(count, 4, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25)
@given(st.integers(1, 12), st.integers(2, 9), st.integers(0, 999))
def test_densities_are_those_of_gaussian_kernels(own_count: int, public_count: int, seed: int) -> None:
    own, public = drawn(own_count, seed), drawn(public_count, seed + 1)
    near = sorted(
        min(math.dist(one, other) for at, other in enumerate(public.tolist()) if at != place)
        for place, one in enumerate(public.tolist())
    )
    width = near[(public_count - 1) // 2]
    scores = density_scores(site(own, public))
    for one, score in zip(public.tolist(), scores.tolist(), strict=True):
        kernels = [math.exp(-(math.dist(one, other) ** 2) / (2 * width**2)) for other in own.tolist()]
        exact = -4 * math.log(max(sum(kernels) / own_count, 1e-300))
        assert abs(score - min(exact, 63)) <= 0.501


def test_temperature_is_a_root_of_the_density() -> None:
    scores = torch.tensor([0, 4, 63])
    assert torch.allclose(densities(scores, 1.0), torch.tensor([1, math.exp(-1), math.exp(-15.75)]).double())
    assert torch.allclose(densities(scores, 2.0) ** 2, densities(scores, 1.0))


def test_equal_public_samples_have_a_density_too() -> None:
    assert density_scores(site(torch.zeros(1, 4), torch.zeros(3, 4))).tolist() == [0, 0, 0]


def newton(rows: Tensor, private: Tensor, penalty: float) -> Tensor:
    """Weights and intercept of the regularised regression, by Newton's method; the intercept is free."""
    rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1).double()
    shrink = penalty * torch.eye(rows.shape[1], dtype=torch.float64)
    shrink[-1, -1] = 0
    weights = torch.zeros(rows.shape[1], dtype=torch.float64)
    for _ in range(100):
        probs = torch.sigmoid(rows @ weights)
        gradient = rows.T @ (probs - private.double()) + shrink @ weights
        weights = weights - torch.linalg.solve((rows.T * (probs * (1 - probs))) @ rows + shrink, gradient)
    return weights


def test_certainty_is_the_probability_of_a_logistic_regression() -> None:
    own, public = drawn(30, 0) * torch.tensor([1, 1, 0.5, 1]), drawn(40, 1)
    rows = torch.cat([own, public])
    largest = rows.norm(dim=1).max()
    weights = newton(rows / largest, torch.arange(70) < 30, penalty=0.1)
    exact = torch.sigmoid((public / largest).double() @ weights[:-1] + weights[-1])
    found = certainties(certainty_scores(site(own, public), penalty=0.1))
    assert (found - exact).abs().max() <= 0.5 / 64 + 1e-3
    assert found.min() > 0
    assert exact.max() - exact.min() > 0.3

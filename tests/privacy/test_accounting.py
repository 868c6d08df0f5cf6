"""What noise is worth: against figures that can be worked out by hand, and against a slow, obvious twin."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedistill.errors import ExperimentError
from fedistill.privacy.accounting import (
    gaussian_delta,
    gaussian_epsilon,
    noise_for,
    randomised_response_epsilon,
    sampled_gaussian_epsilon,
    stays,
)

DELTA = 1e-5


def test_gaussian_noise_is_exact() -> None:
    """At ε = 0, δ is how far two normal distributions are apart in total variation."""
    assert gaussian_delta(1.0, 0.0) == pytest.approx(math.erf(0.5 / math.sqrt(2)))
    # Two normal distributions one standard deviation apart; Opacus' GDP says 6.0 here.
    assert gaussian_epsilon(1.0, DELTA) == pytest.approx(4.377, abs=1e-3)
    assert gaussian_delta(1.0, gaussian_epsilon(1.0, DELTA)) == pytest.approx(DELTA)
    assert gaussian_epsilon(1e-9, DELTA) == 0
    assert gaussian_epsilon(1e4, DELTA) == math.inf


@given(st.floats(0.05, 20), st.floats(1e-9, 0.1))
def test_gaussian_noise_by_integration(distance: float, delta: float) -> None:
    """δ(ε) = E[max(0, 1 - e^(ε - loss))], where the loss is normal with mean d²/2 and variance d²."""
    epsilon = gaussian_epsilon(distance, delta)
    z = np.linspace(-12, 12, 200_001)
    loss = distance**2 / 2 + distance * z
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    gain = np.where(loss > epsilon, -np.expm1(np.minimum(epsilon - loss, 0)), 0.0)
    assert np.trapezoid(density * gain, z) <= delta * 1.001


def twin(noise: float, rate: float, steps: int, epsilon: float) -> tuple[float, float]:
    """δ of DP-SGD at an ε, both ways round, by adding up discretised losses; for few steps."""
    x = np.arange(-12 * noise, 1 + 12 * noise, noise / 400)
    with_record = (1 - rate) * _normal(x, 0, noise) + rate * _normal(x, 1, noise)
    without = _normal(x, 0, noise)
    found = []
    for p, q in ((with_record, without), (without, with_record)):
        weights, losses = p * (noise / 400), np.log(p / q)
        width = 2e-3
        places = np.round(losses / width).astype(int)
        least = places.min()
        single = np.bincount(places - least, weights=weights)
        total = np.ones(1)
        for _ in range(steps):
            total = np.convolve(total, single)
        grid = width * (least * steps + np.arange(len(total)))
        above = grid > epsilon
        found.append(float((total[above] * -np.expm1(epsilon - grid[above])).sum()))
    return found[0], found[1]


def _normal(x: np.ndarray, mean: float, deviation: float) -> np.ndarray:
    return np.exp(-(((x - mean) / deviation) ** 2) / 2) / (deviation * math.sqrt(2 * math.pi))


@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.0, 0.2, 8), (2.0, 0.5, 5), (0.8, 0.05, 10)])
def test_dp_sgd_against_a_second_accountant(noise: float, rate: float, steps: int) -> None:
    epsilon = sampled_gaussian_epsilon(noise, rate, steps, DELTA)
    assert max(twin(noise, rate, steps, epsilon)) <= DELTA
    # And by no more than a few percent: at a little less, δ is larger.
    assert max(twin(noise, rate, steps, epsilon * 0.95)) > DELTA


def test_dp_sgd_at_its_ends() -> None:
    assert sampled_gaussian_epsilon(2.0, 1.0, 4, DELTA) == gaussian_epsilon(1.0, DELTA)
    assert sampled_gaussian_epsilon(2.0, 0.1, 0, DELTA) == 0
    assert sampled_gaussian_epsilon(1e-3, 0.5, 1000, DELTA) == math.inf


def test_sampling_steps_and_noise_count_as_they_should() -> None:
    def epsilon(noise: float = 2.0, rate: float = 0.2, steps: int = 10, delta: float = DELTA) -> float:
        return sampled_gaussian_epsilon(noise, rate, steps, delta)

    assert epsilon(rate=0.1) < epsilon() < epsilon(rate=1.0)
    assert epsilon(noise=3.0) < epsilon() < epsilon(steps=20) < 2 * epsilon()
    assert epsilon() < epsilon(delta=1e-7)


def test_noise_for_a_budget() -> None:
    noise = noise_for(2.0, 0.2, 10, DELTA)
    assert 1.9 < sampled_gaussian_epsilon(noise, 0.2, 10, DELTA) <= 2
    assert noise == float(f"{noise:.3g}")
    with pytest.raises(ExperimentError, match="no noise brings ε down to 1e-12"):
        noise_for(1e-12, 0.2, 10, 1e-300)


def test_randomised_response_adds_up() -> None:
    """With δ = 0, nearly, k answers have k times the ε of one; with more δ, less."""
    assert stays(math.log(3), 4) == pytest.approx(0.5)
    assert stays(0.7, 10) / ((1 - stays(0.7, 10)) / 9) == pytest.approx(math.exp(0.7))
    for answers in (1, 2, 5):
        assert randomised_response_epsilon(0.5, 10, answers, 1e-14) == pytest.approx(0.5 * answers, rel=1e-6)
    assert randomised_response_epsilon(0.5, 10, 0, DELTA) == 0
    assert randomised_response_epsilon(0.1, 10, 1000, DELTA) < 20 < 0.1 * 1000


@given(st.floats(0.1, 3), st.integers(2, 4), st.integers(1, 4), st.floats(1e-6, 0.2))
def test_randomised_response_by_all_outcomes(each: float, classes: int, answers: int, delta: float) -> None:
    """δ at the ε found, by all outcomes of all answers, where the two data sets differ in each of them."""
    epsilon = randomised_response_epsilon(each, classes, answers, delta)
    true, other = stays(each, classes), (1 - stays(each, classes)) / (classes - 1)
    found = 0.0
    for outcome in itertools.product(range(classes), repeat=answers):
        here = math.prod(true if one == 0 else other for one in outcome)
        there = math.prod(true if one == 1 else other for one in outcome)
        found += max(0.0, here - math.exp(epsilon) * there)
    assert found <= delta + 1e-9

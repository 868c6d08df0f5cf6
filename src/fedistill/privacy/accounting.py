"""What noise is worth: ε at a given δ, for several kinds of noise, over many releases.

(ε, δ)-differential privacy bounds how far the odds of any outcome differ between two neighbouring data sets.
All functions return upper bounds.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache

import numpy as np
import torch

from fedistill.errors import ExperimentError
from fedistill.privacy.library import opacus

MOST_EPSILON = 1e4
"""A bound above this is no bound: it is given as infinite."""
_TOLERANCE = 0.01
"""Error of the accountant's ε, as a share of it."""
_ORDERS = [*range(2, 64), *range(64, 512, 16)]
"""Orders of the RDP accountant; whole ones take the least time."""
_LEAST_NOISE, _MOST_NOISE = 0.05, 1e4


def gaussian_delta(distance: float, epsilon: float) -> float:
    """Return δ of Gaussian noise at an ε, exactly.

    Args:
        distance: how far the outcomes of neighbouring data sets are apart, in standard deviations of the
            noise.

    Source: Balle and Wang, 2018, arXiv 1805.06530, theorem 8.
    """
    if distance == 0:
        return 0.0
    near, far = distance / 2 - epsilon / distance, -distance / 2 - epsilon / distance
    logs = torch.special.log_ndtr(torch.tensor([near, far], dtype=torch.float64)).tolist()
    return math.exp(logs[0]) - math.exp(epsilon + logs[1])


@lru_cache(maxsize=1024)
def gaussian_epsilon(distance: float, delta: float) -> float:
    """Return ε of Gaussian noise at a δ, exactly: the root of `gaussian_delta`.

    Releases at distances d_1, d_2, ... are one release at the root of the sum of their squares, also where
    each depends on those before it (Dong et al., 2019, arXiv 1905.02383, corollary 3.3).

    Examples:
        >>> round(gaussian_epsilon(1.0, 1e-5), 4)
        4.3772
    """
    if gaussian_delta(distance, MOST_EPSILON) > delta:
        return math.inf
    return _least(lambda epsilon: gaussian_delta(distance, epsilon) <= delta, MOST_EPSILON)


def _least(enough: Callable[[float], bool], most: float) -> float:
    """Return the least ε that is enough, from above, where ``most`` is."""
    if enough(0.0):
        return 0.0
    low, high = 0.0, most
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


@lru_cache(maxsize=1024)
def sampled_gaussian_epsilon(noise: float, rate: float, steps: int, delta: float) -> float:
    """Return ε of DP-SGD: Gaussian noise on sums over batches that are drawn again in each step.

    Args:
        noise: standard deviation of the noise, in units of the largest norm that one record can add.
        rate: probability of each record to be in a batch, independently of all others.
        steps: how often a batch is drawn.

    With rate 1 it is exact (`gaussian_epsilon`). Else it is the upper bound of Opacus' PRV accountant (Gopi
    et al., 2021, arXiv 2106.02848), or, where that fails, of its RDP accountant (Mironov et al., 2019, arXiv
    1908.10530).

    Raises:
        ExperimentError: Opacus is not installed.
    """
    if steps == 0:
        return 0.0
    if rate >= 1:
        return gaussian_epsilon(math.sqrt(steps) / noise, delta)
    bounds = [_renyi_epsilon(noise, rate, steps, delta)]
    if bounds[0] < MOST_EPSILON:
        prv = opacus("accountants").PRVAccountant()
        prv.history = [(noise, rate, steps)]
        with _quiet(), suppress(ArithmeticError, MemoryError, RuntimeError, ValueError):
            bounds.append(float(prv.get_epsilon(delta, eps_error=min(0.5, _TOLERANCE * bounds[0]))))
    found = min((bound for bound in bounds if math.isfinite(bound) and bound > 0), default=math.inf)
    return found if found < MOST_EPSILON else math.inf


def _renyi_epsilon(noise: float, rate: float, steps: int, delta: float) -> float:
    """Return the bound of Opacus' RDP accountant."""
    if rate >= 1:
        return gaussian_epsilon(math.sqrt(steps) / noise, delta)
    rdp = opacus("accountants").RDPAccountant()
    rdp.history = [(noise, rate, steps)]
    with _quiet():
        return float(rdp.get_epsilon(delta, alphas=_ORDERS))


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what accountants warn of: a bound at the end of their range of orders holds all the same."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


@lru_cache(maxsize=256)
def noise_for(epsilon: float, rate: float, steps: int, delta: float) -> float:
    """Return noise, to three digits, with which `sampled_gaussian_epsilon` is at most this ε, and near it.

    Raises:
        ExperimentError: no noise is enough; or Opacus is not installed.
    """
    low, high = _LEAST_NOISE, _MOST_NOISE
    if _renyi_epsilon(high, rate, steps, delta) > epsilon:
        raise ExperimentError(
            f"no noise brings ε down to {epsilon:g} at δ = {delta:g}: raise privacy.epsilon"
        )
    while high / low > 1.005:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if _renyi_epsilon(middle, rate, steps, delta) <= epsilon else (middle, high)
    noise = _rounded_up(high)
    # The other accountant is tighter, and takes seconds: ε falls with about the power 4/3 of the noise.
    share, power = sampled_gaussian_epsilon(noise, rate, steps, delta) / epsilon, 0.75
    for _ in range(4):
        less = _rounded_up(noise * share**power)
        if less >= noise:
            break
        found = sampled_gaussian_epsilon(less, rate, steps, delta) / epsilon
        if found <= 1:
            noise, share = less, found
        else:
            power /= 2
    return noise


def _rounded_up(value: float) -> float:
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.3g}")


@lru_cache(maxsize=1024)
def randomised_response_epsilon(each: float, classes: int, answers: int, delta: float) -> float:
    """Return ε of k-ary randomised response, over several answers, exactly.

    Args:
        each: ε of one answer, which holds with δ = 0; k answers have at most k times as much.
        answers: how many answers are given, all of which may differ between neighbouring data sets.

    The loss of an answer is ``each``, minus that, or 0, with probabilities that follow from `stays`; that of
    all answers is the sum (Kairouz et al., 2015, arXiv 1311.0776, section 4, on how such losses compose).
    """
    if answers == 0:
        return 0.0
    true, other = stays(each, classes), (1 - stays(each, classes)) / (classes - 1)
    one = np.array([other, max(0.0, 1 - true - other), true])
    total = _power(one, answers)
    losses = each * np.arange(-answers, answers + 1)

    def enough(epsilon: float) -> bool:
        above = losses > epsilon
        return float((total[above] * -np.expm1(epsilon - losses[above])).sum()) <= delta

    return _least(enough, answers * each)


def stays(each: float, classes: int) -> float:
    """Return the probability with which randomised response tells the truth, at this ε of an answer."""
    return 1 / (1 + (classes - 1) * math.exp(-each))


def _power(probabilities: np.ndarray, count: int) -> np.ndarray:
    """Return the distribution of a sum of so many independent numbers, by repeated squaring."""
    found, square = np.ones(1), probabilities
    while count:
        if count & 1:
            found = np.convolve(found, square)
        count >>= 1
        if count:
            square = np.convolve(square, square)
    return found

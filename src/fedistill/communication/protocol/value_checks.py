"""Numbers that no correct sender sends: refused where they are decoded, whatever codec carried them."""

import math

import numpy as np

from fedistill.communication.tensor_specs import Content, Floats, TensorSpec
from fedistill.errors import FrameError

_OFF = 0.01  # of a sum of probabilities; fp16 is off by less than a 20th of it
_GROWTH = 100.0
_USUAL = 0.1
_DIVERGES = " (if the client is honest, its training diverges: lower train.optimizer.lr)"


def check_values(values: Floats, spec: TensorSpec) -> float:
    """Check a decoded tensor: finite; rows of probabilities that add up to 1; nothing above ``spec.largest``.

    Returns:
        The largest size of its numbers, 0 if it has none.

    Raises:
        FrameError: it is not so.
    """
    if not values.size:
        return 0.0
    largest = _largest(values)
    if not math.isfinite(largest):
        raise FrameError("it has numbers that are NaN or infinite")
    if spec.content is not Content.PROBS:
        if largest > spec.largest:
            hint = _DIVERGES if spec.content is Content.WEIGHTS else ""
            raise FrameError(f"it has a number of size {largest:.3g}; {spec.largest:.3g} is the most{hint}")
        return largest
    if values.min() < 0:
        raise FrameError(f"it has a probability of {values.min():.3g}")
    sums = values.sum(axis=1, dtype=np.float64)
    wrong = np.abs(sums - 1) > _OFF
    if wrong.any():
        raise FrameError(f"it has rows of probabilities that add up to {sums[wrong][0]:.3g}, not to 1")
    return largest


def _largest(values: Floats) -> float:
    """Return the largest size of any numbers; NaN if there is one."""
    return float(np.maximum(values.max(), -values.min()))  # without copies of all numbers


def mean_size(weights: Floats) -> float:
    """Return the root mean square of weights (P,), 0 if there are none."""
    return float(np.sqrt(np.square(weights, dtype=np.float64).mean())) if weights.size else 0.0


def check_growth(weights: Floats, sent: float, largest: float = math.inf) -> None:
    """Check a client's weights (P,) against those that it was sent.

    Training does not make a model's weights a hundred times as large in a round. A mean with such weights
    would be of them alone, and the other clients would train from it to NaN.

    Args:
        weights: without buffers.
        sent: the root mean square of the weights that the client was sent, 0 if none were.
        largest: no size of a number is above it.

    Raises:
        FrameError: their root mean square is above 100 times that, or 10 if that is more.
    """
    most = _GROWTH * max(sent, _USUAL)
    if largest <= most:  # and so is their mean
        return
    size = mean_size(weights)
    if size > most:
        raise FrameError(
            f"its weights have a root mean square of {size:.3g}; {most:.3g} is the most here{_DIVERGES}"
        )


_TURNED = -0.5
_FEW = 100


class TurnedAround(FrameError):
    """A client's weights point against those that it was sent, which is wrong if the latter are right."""


def check_direction(weights: Floats, sent: Floats) -> None:
    """Check a client's weights (P,) against those that it was sent (P,): not turned around, and not all 0.

    Training starts from what was sent, and seldom leads to the other side of zero, where directions that have
    nothing to do with each other are 1 / sqrt(P) off a right angle. It does where what was sent is broken, so
    that training turns it back. Below a hundred weights, chance alone could do it.

    Args:
        weights, sent: finite, and without buffers.

    Raises:
        FrameError: they are all 0.
        TurnedAround: the cosine between the two is below -0.5.
    """
    if weights @ sent > 0 or len(sent) < _FEW or not sent.any():
        return
    if not weights.any():
        raise FrameError("its weights are all 0")
    one, other = weights.astype(np.float64), sent.astype(np.float64)  # in which tiny numbers have squares
    cosine = float(one @ other) / math.sqrt(float(one @ one) * float(other @ other))
    if cosine < _TURNED:
        raise TurnedAround(
            f"its weights point against those that it was sent (cosine {cosine:.2f}), and those of most"
            f" clients do not{_DIVERGES}"
        )

"""Numbers as integers that can be added up under masks, modulo a power of two that their sum cannot reach.

Each client adds integers from 0 to ``top``. Of k clients the sum is at most ``k top``, and the modulus is the
least power of two above it for all clients of the round, so that no sum wraps around. A masked integer is
uniform below the modulus: it takes all its bits, and no entropy coder can shorten it.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedistill.communication.tensor_specs import Classes
from fedistill.errors import ExperimentError, FrameError, TrainingError

MOST_BITS = 52
"""Of a sum: what a float64 holds exactly."""


@dataclass(frozen=True)
class Addend:
    """What both sides know about numbers that clients add up.

    Attributes:
        shape: of the numbers.
        low: the least number. ``step``: the distance from one to the next; integers have 0 and 1.
        top: the largest integer; it stands for the number ``low + top * step``.
    """

    shape: tuple[int, ...]
    low: float
    step: float
    top: int

    @classmethod
    def integers(cls, shape: tuple[int, ...], most: int) -> "Addend":
        """Return that of whole numbers from 0 to ``most``."""
        return cls(shape, 0.0, 1.0, most)

    @classmethod
    def shares(cls, shape: tuple[int, ...], bits: int) -> "Addend":
        """Return that of numbers from 0 to 1, of which both are exact."""
        top = (1 << bits) - 1
        return cls(shape, 0.0, 1 / top, top)

    @classmethod
    def symmetric(cls, shape: tuple[int, ...], largest: float, bits: int) -> "Addend":
        """Return that of numbers from ``-largest`` to ``largest``; 0 is exact."""
        half = (1 << (bits - 1)) - 1
        return cls(shape, -largest, largest / half, 2 * half)

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def high(self) -> float:
        """The largest number."""
        return self.low + self.top * self.step

    def bits(self, clients: int) -> int:
        """Return the bits of each masked integer, those of the largest sum of so many clients.

        Raises:
            ExperimentError: they are more than `MOST_BITS`.

        Examples:
            Of ten votes for a class, there are eleven sums.

            >>> Addend.integers((3,), most=1).bits(clients=10)
            4
        """
        bits = (clients * self.top).bit_length()
        if bits > MOST_BITS:
            raise ExperimentError(
                f"a sum over {clients} clients of integers up to {self.top} takes {bits} bits, more than the"
                f" {MOST_BITS} that stay exact: lower secure_sums.bits"
            )
        return bits

    def encode(self, values: Tensor, name: str) -> Classes:
        """Return the integers (n,) that stand for numbers of this shape, each rounded to the nearest.

        Raises:
            TrainingError: a number is out of range or not finite, or there are more or fewer of them.
        """
        if tuple(values.shape) != self.shape:
            raise TrainingError(f"{name!r} to add has the shape {tuple(values.shape)}, not {self.shape}")
        exact = values.detach().to(torch.float64).reshape(-1).numpy()
        if not np.isfinite(exact).all():
            raise TrainingError(f"{name!r} to add has numbers that are NaN or infinite")
        rounded = np.rint((exact - self.low) / self.step)
        if rounded.size and (rounded.min() < 0 or rounded.max() > self.top):
            fix = ": set secure_sums.range higher" if self.low < 0 else ""
            raise TrainingError(
                f"{name!r} to add has a number outside of {self.low:.4g} to {self.high:.4g}{fix}"
            )
        return rounded.astype(np.int64)

    def decode(self, total: Classes, clients: int) -> Tensor:
        """Return the sum, float64 of this shape, that a sum (n,) of the integers of clients stands for.

        Raises:
            FrameError: it is none, so that somebody has added something else.
        """
        if total.size and total.max() > clients * self.top:
            raise FrameError(
                f"the sum over {clients} clients has an integer of {int(total.max())}, more than"
                f" {clients * self.top}: one of them has not added what it should"
            )
        found = torch.from_numpy(total).to(torch.float64) * self.step + clients * self.low
        return found.reshape(self.shape)

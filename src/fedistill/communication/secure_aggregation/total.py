"""What the server learns of a round with secure sums."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SecureTotal:
    """A sum.

    Attributes:
        clients: whose numbers are in it, ascending.
        sums: float64, by the name of the addend and in its shape.
    """

    clients: tuple[int, ...]
    sums: Mapping[str, Tensor]

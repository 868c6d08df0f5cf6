"""The settings of secure sums: what an arm's `secure_sums` may be."""

import math
from typing import Annotated

from pydantic import BeforeValidator, Field

from fedistill.config.section import Positive, Raw, RawTable, Section

LEAST = 3
"""Of two clients, each would learn from the sum what the other has added."""


class SecureSums(Section):
    """Clients add masks to what they send, which cancel in the sum: the server learns sums alone."""

    threshold: float = Field(
        default=2 / 3,
        gt=0.5,
        le=1,
        description="share of a round's clients that must remain, so that the sum can be unmasked",
    )
    bits: int = Field(
        default=16,
        ge=4,
        le=32,
        description="of each number that is rounded for the sum; whole numbers are not rounded",
    )
    range: Positive | None = Field(
        default=None,
        description="the largest size of a number without a natural range: of weights, by default 4, above"
        " which the arm ends; of features, by default 32, to which larger ones are cut",
    )

    def needed(self, clients: int) -> int:
        """Return how many of so many clients must remain: more than half, and at least `LEAST`.

        Examples:
            >>> SecureSums(threshold=0.6).needed(10), SecureSums(threshold=0.6).needed(3)
            (6, 3)
        """
        # 0.6 of 5 clients are 3, although 0.6 * 5 may be a little more in floating point.
        return max(LEAST, clients // 2 + 1, math.ceil(self.threshold * clients - 1e-9))


def _table(wanted: Raw) -> SecureSums | RawTable | None:
    if wanted is None or wanted is False:
        return None
    if wanted is True:
        return {}
    if isinstance(wanted, SecureSums | dict):
        return wanted
    raise ValueError(f"{wanted!r} must be true, false, or a table of settings such as {{ threshold = 0.8 }}")


AnySecureSums = Annotated[
    SecureSums | None,
    BeforeValidator(_table),
    Field(description="true, or a table of settings: the server learns sums of replies alone"),
]

"""What crosses, and which way."""

from enum import IntEnum
from typing import Literal

Direction = Literal["up", "down"]
"""From a client to the server, or to a client."""


class Kind(IntEnum):
    """What a frame carries; the ledger counts bytes by kind. Numbers are never used again."""

    WEIGHTS = 1
    CLASS_OUTPUTS = 2
    LOGITS = 3
    SOFT_LABELS = 4
    VOCABULARY = 5
    VOTES = 6
    FRESH_LABELS = 7
    DUE_LABELS = 8
    REFRESH = 9
    PROTOTYPES = 10
    WEIGHTS_AND_OUTPUTS = 11
    GENERATOR = 12
    CHOSEN_LABELS = 13
    PRIVATE_OUTPUTS = 14
    PRIVATE_LOGITS = 15

    @property
    def label(self) -> str:
        return self.name.lower().replace("_", "-")

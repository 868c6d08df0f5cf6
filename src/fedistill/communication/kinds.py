"""The kinds of frames, and their directions."""

from enum import IntEnum
from typing import Literal

Direction = Literal["up", "down"]
"""From a client to the server, or from the server to a client."""


CUSTOM = range(64, 128)
"""Kinds for messages of other packages; the uplink and the downlink message of a method may share one."""


class Kind(IntEnum):
    """What a frame carries; the ledger counts bytes by kind. Numbers are below 64 and never reused."""

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
    STATISTICS_REQUEST = 16
    WORD_COUNTS = 17
    FEATURE_MOMENTS = 18
    BRIDGE_REQUEST = 19
    BRIDGE_REPLY = 20
    TALLY_REQUEST = 21
    TALLY_REPLY = 22
    SCORED_LABELS = 23
    SCORED_WEIGHTS = 24
    MASKED_REQUEST = 25
    MASKED_REPLY = 26
    EVALUATED_MODEL = 27
    COLUMN_SUMS = 28
    RECORD_ENCODING = 29
    SECURE_KEYS = 40
    SECURE_SHARES = 41
    SECURE_ADDENDS = 42
    SECURE_UNMASKING = 43

    @property
    def label(self) -> str:
        return self.name.lower().replace("_", "-")


SECURE_TURNS = (Kind.SECURE_KEYS, Kind.SECURE_SHARES, Kind.SECURE_UNMASKING)
"""What the server sends in a secure sum, once a client has done its work."""


def kind_of(number: int) -> int:
    """Return the member of `Kind` with this number, or the number itself if it is in `CUSTOM`.

    Raises:
        ValueError: it is neither.
    """
    return number if number in CUSTOM else Kind(number)


def kind_label(kind: int) -> str:
    """Return the name under which the ledger counts a kind."""
    return f"custom-{kind}" if kind in CUSTOM else Kind(kind).label

"""What each client holds out of its own samples, to test on; nobody trains on it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedistill.data.table import Rows
from fedistill.rng import numpy_stream

Keys = NDArray[np.bytes_]
"""A digest of each sample, by position; equal inputs have equal digests."""


def hold_out_own(
    parts: Sequence[Rows], keys: Keys, share: float, seed: int, purpose: str = "own-test"
) -> tuple[list[Rows], list[Rows]]:
    """Return the positions of the samples that are left to each client, and of those that it holds out.

    What another client has a copy of is not held out: the copy would reveal the label.

    Args:
        parts: positions of each client's samples.
        share: as in `hold_out`.
        purpose: names the random streams (`fedistill.rng`).
    """
    owned, clients = np.unique(np.concatenate([np.unique(keys[part]) for part in parts]), return_counts=True)
    shared = owned[clients > 1]
    divided = [
        hold_out(part, keys[part], share, numpy_stream(seed, purpose, client), shared)
        for client, part in enumerate(parts)
    ]
    return [rest for rest, _ in divided], [held for _, held in divided]


def hold_out(
    part: Rows, keys: Keys, share: float, generator: np.random.Generator, shared: Keys | None = None
) -> tuple[Rows, Rows]:
    """Return what is left of one client's samples, and what it holds out; equal inputs stay on one side.

    Args:
        keys: of the samples of ``part``, in its order.
        share: of the samples, rounded to a whole number, that are held out at most; at least one sample is
            left, so that a client with one sample, or very few, holds out none.
        shared: keys that are not held out.
    """
    room = min(round(share * len(part)), len(part) - 1)
    found, group, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    free = np.ones(len(found), dtype=bool) if shared is None else ~np.isin(found, shared)
    chosen = []
    for one in generator.permutation(np.flatnonzero(free)):
        if sizes[one] <= room:
            chosen.append(one)
            room -= sizes[one]
    held = np.isin(group, chosen)
    return part[~held], part[held]

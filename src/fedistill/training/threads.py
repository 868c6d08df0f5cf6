"""How many threads torch computes with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

TORCH_THREADS = 1
"""Of each process, unless said otherwise: another number rounds otherwise."""


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Have torch compute with this many threads inside, and with as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

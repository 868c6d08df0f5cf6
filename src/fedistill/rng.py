"""Named random streams: what is drawn depends on the name alone, never on earlier draws.

A stream is named by the run's seed, a purpose, a client and a round. Streams are created where they are
used, so none of their state has to be saved: a resumed run, a worker process and a serial loop draw the
same numbers.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

SERVER = -1
"""The client number that stands for the server in the name of a stream."""


def derive(seed: int, purpose: str, client: int = SERVER, round: int = 0) -> int:
    """Return the seed of the named stream, an integer in ``[0, 2**63)``.

    Examples:
        >>> derive(0, "private", client=3, round=1) == derive(0, "private", client=3, round=1)
        True
        >>> derive(0, "private", client=3, round=1) == derive(0, "private", client=3, round=2)
        False
    """
    name = f"{seed}/{purpose}/{client}/{round}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") >> 1


def stream(seed: int, purpose: str, client: int = SERVER, round: int = 0) -> torch.Generator:
    """Return a torch generator for the named stream.

    Examples:
        What was drawn from one stream changes nothing in another, or in the same one made again.

        >>> first = torch.rand(3, generator=stream(0, "private", client=3, round=1))
        >>> _ = torch.rand(100, generator=stream(0, "distil", client=3, round=1))
        >>> torch.equal(first, torch.rand(3, generator=stream(0, "private", client=3, round=1)))
        True
    """
    return torch.Generator().manual_seed(derive(seed, purpose, client, round))


def numpy_stream(seed: int, purpose: str, client: int = SERVER, round: int = 0) -> np.random.Generator:
    """Return a NumPy generator for the named stream."""
    return np.random.default_rng(derive(seed, purpose, client, round))


def generator_of(device: torch.device) -> torch.Generator:
    """Return the generator that layers on a device draw from: ``cuda`` with an index, or ``mps``."""
    if device.type == "cuda":
        found: torch.Generator = torch.cuda.default_generators[device.index]
        return found
    return torch.mps._get_default_mps_generator()  # torch has no public name for it


_of_devices: list[torch.Generator] = []
"""The generators of devices on which this process computes."""


@contextmanager
def also_scoped(generator: torch.Generator) -> Iterator[None]:
    """Have `scoped` seed and restore this generator, too, inside: that of a device."""
    _of_devices.append(generator)
    try:
        yield
    finally:
        _of_devices.remove(generator)


@contextmanager
def scoped(
    seed: int, purpose: str, client: int = SERVER, round: int = 0, *, torch_alone: bool = False
) -> Iterator[None]:
    """Run code that knows only global generators (layer init, dropout, a custom model) on a named stream.

    These are torch's, also those of devices (`also_scoped`), Python's and NumPy's. Their states are restored
    on leaving, so the caller's own draws are unaffected.

    Args:
        torch_alone: leave Python's and NumPy's as they are, for code that is known not to draw from them: to
            save and restore NumPy's takes 0.2 ms, as long as a training step of a small model.
    """
    # `torch.manual_seed` would also format three stack traces for absent devices, a millisecond each.
    generators = [torch.default_generator, *_of_devices]
    states = [generator.get_state() for generator in generators]
    before = None if torch_alone else (random.getstate(), np.random.get_state(legacy=False))
    drawn = derive(seed, purpose, client, round)
    for generator in generators:
        generator.manual_seed(drawn)
    if before is not None:
        random.seed(drawn)
        np.random.seed(drawn % 2**32)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        if before is not None:
            random.setstate(before[0])
            np.random.set_state(before[1])

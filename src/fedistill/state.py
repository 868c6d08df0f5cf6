"""State as plain data, and the only way in which it is saved: safetensors, without pickle.

A state is a dictionary, nested to any depth, whose leaves are tensors, numbers, strings, booleans, None,
or lists of these without tensors. A client's state, the server's state and a checkpoint are such
dictionaries; the bytes sent to a worker process are those written to disk.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

State = dict[str, Any]
_SEPARATOR = "/"
_META = "state"


def encode_state(state: State) -> bytes:
    """Return the bytes of a state; equal states have equal bytes."""
    tensors: dict[str, Tensor] = {}
    plain: State = {}
    _flatten(state, "", tensors, plain)
    meta = {_META: json.dumps(plain, sort_keys=True)}
    return bytes(save_tensors({name: tensors[name] for name in sorted(tensors)}, meta))


def decode_state(data: bytes) -> State:
    """Return the state that bytes hold, its keys sorted at every depth.

    Raises:
        ValueError: the bytes are not those of a state.
    """
    try:
        tensors = load_tensors(data)
        size = int.from_bytes(data[:8], "little")
        plain = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][_META])
        state: State = {}
        for name, value in [*plain.items(), *tensors.items()]:
            *parents, last = name.split(_SEPARATOR)
            place = state
            for part in parents:
                place = place.setdefault(part, {})
            place[last] = value
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a saved state: {error}") from None
    return ordered(state)


def ordered(state: State) -> State:
    """Return the state with its keys sorted at every depth, as `decode_state` does.

    A method may iterate over its state, and the sums that it forms must not depend on whether the state
    stayed in memory or came from disk.
    """
    return {key: ordered(value) if isinstance(value, dict) else value for key, value in sorted(state.items())}


def write_file(path: Path, data: bytes) -> None:
    """Write a file completely or not at all: no reader, and no crash, ever finds half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _flatten(state: State, prefix: str, tensors: dict[str, Tensor], plain: State) -> None:
    for key, value in state.items():
        if not isinstance(key, str) or _SEPARATOR in key or not key:
            raise TypeError(f"state key {key!r} must be a non-empty string without {_SEPARATOR!r}")
        name = prefix + key
        if isinstance(value, Tensor):
            tensors[name] = torch.empty_like(value, memory_format=torch.contiguous_format).copy_(
                value.detach()
            )
        elif isinstance(value, dict) and value:
            _flatten(value, name + _SEPARATOR, tensors, plain)
        elif value is None or isinstance(value, bool | int | float | str | list | dict):
            plain[name] = value
        else:
            raise TypeError(f"state value {name} is a {type(value).__name__}, not plain data")

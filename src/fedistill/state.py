"""State as plain data, and the only way in which it is saved: safetensors, without pickle.

A state is a dictionary, nested to any depth, whose leaves are tensors, numbers, strings, booleans, None, or
lists of these without tensors. The state of a method is a dataclass, which `to_plain` turns into such a
dictionary of its fields and `from_plain` restores. The bytes sent to a worker process are those written to
disk.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from fedistill.errors import TrainingError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Value = Any
"""What a state holds under a key: a leaf, a dictionary, or, before `to_plain`, a dataclass."""
State = dict[str, Value]
T = TypeVar("T")
Bytes = bytes | memoryview
"""What can be written to a file or hashed, without a copy."""
_SEPARATOR = "/"
_META = "state"
_TYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
"""The names of types in safetensors; tensors of the last ones lie first in a file."""
_ORDER = {kind: place for place, kind in enumerate(_TYPES)}
_KINDS = {name: kind for kind, name in _TYPES.items()}
_ALIGNMENT = 8
"""Of the first tensor, in bytes; and of the number that a file begins with, the length of its header."""


@dataclass(frozen=True)
class Joined:
    """In a state for `state_pieces`: a tensor as its parts along the first axis, which are not copied.

    Attributes:
        parts: at least one; all of one type, and of one shape but for the first axis.
    """

    parts: Sequence[Tensor]


def encode_state(state: "State | DataclassInstance") -> bytes:
    """Return the bytes of a state, a dictionary or a dataclass; equal states have equal bytes.

    Raises:
        TrainingError: the state has something in it that is not plain data.
    """
    return b"".join(state_pieces(to_plain(state) if is_dataclass(state) else state))


def state_pieces(state: State) -> Iterator[Bytes]:
    """Yield the bytes of a state, which `encode_state` would return, piece by piece and without copies.

    A state may have values of type `Joined` here.

    Raises:
        TrainingError: the state has something in it that is not plain data.
    """
    tensors, meta = _flat(state)
    try:
        order = sorted(tensors, key=lambda name: (-_ORDER[tensors[name].parts[0].dtype], name))
    except KeyError as error:
        raise TrainingError(f"a state cannot keep tensors of type {error}") from None
    header: State = {"__metadata__": meta}
    end = 0
    for name in order:
        parts = tensors[name].parts
        rows = [sum(map(len, parts))] if parts[0].ndim else []
        start, end = end, end + sum(part.nbytes for part in parts)
        shape = [*rows, *parts[0].shape[1:]]
        header[name] = {"dtype": _TYPES[parts[0].dtype], "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    yield len(encoded).to_bytes(_ALIGNMENT, "little") + encoded
    for name in order:
        for part in tensors[name].parts:
            yield _memory(part)


def _memory(value: Tensor) -> memoryview:
    """Return the bytes of a tensor, where they are if they lie one behind the other."""
    flat = value.detach().contiguous().reshape(-1)
    # A tensor of one number may have any stride.
    return flat.as_strided((len(flat),), (1,)).view(torch.uint8).numpy().data


def state_in(data: Tensor) -> State:
    """Return the state whose bytes are in ``data``, uint8 (n,); its tensors are views of that, not copies.

    Raises:
        ValueError: the bytes are not those of a state.
    """
    try:
        start = _ALIGNMENT + int.from_bytes(data[:_ALIGNMENT].numpy().tobytes(), "little")
        header = json.loads(data[_ALIGNMENT:start].numpy().tobytes())
        plain = json.loads(header.pop("__metadata__")[_META])
        content = data[start:]
        tensors = {name: _view(content, **about) for name, about in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"not a saved state: {error}") from None
    return _nested(plain, tensors)


def _view(content: Tensor, dtype: str, shape: list[int], data_offsets: list[int]) -> Tensor:
    begin, end = data_offsets
    if not 0 <= begin <= end <= len(content):
        raise ValueError("it is cut short")
    return content[begin:end].view(_KINDS[dtype]).reshape(shape)


def decode_state(data: bytes) -> State:
    """Return the state that bytes hold, its keys sorted at every depth.

    Raises:
        ValueError: the bytes are not those of a state.
    """
    try:
        tensors = load_tensors(data)
        size = int.from_bytes(data[:8], "little")
        plain = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][_META])
        return _nested(plain, tensors)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a saved state: {error}") from None


def _nested(plain: State, tensors: Mapping[str, Tensor]) -> State:
    """Invert `_flatten`."""
    state: State = {}
    for name, value in [*plain.items(), *tensors.items()]:
        *parents, last = name.split(_SEPARATOR)
        place = state
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = value
    return ordered(state)


def ordered(state: State) -> State:
    """Return the state with its keys sorted at every depth, as `decode_state` does.

    A method may iterate over its state, and the sums that it forms must not depend on whether the state
    stayed in memory or came from disk.
    """
    return {key: ordered(value) if isinstance(value, dict) else value for key, value in sorted(state.items())}


def as_tensor(data: bytes) -> Tensor:
    """Return bytes as a tensor (n,) of uint8, which a state may hold."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def as_bytes(tensor: Tensor) -> bytes:
    """Return the bytes that `as_tensor` made a tensor of."""
    return tensor.numpy().tobytes()


def blob_digest(data: bytes) -> bytes:
    """Return the 16 bytes by which equal bytes are known."""
    return hashlib.blake2b(data, digest_size=16).digest()


def write_file(path: Path, data: bytes | Iterable[Bytes]) -> None:
    """Write a file completely or not at all: no reader, and no crash, ever finds half of it."""
    write_files(path.parent, {path.name: data})


def write_files(folder: Path, contents: Mapping[str, bytes | Iterable[Bytes]]) -> None:
    """Write several files by name, each as `write_file` does; no crash after that undoes any of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        _write_whole(folder / name, data)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """See that names that are new in a folder survive a crash."""
    if os.name == "posix":  # elsewhere a folder cannot be opened, nor need it be
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def move_into_place(part: Path) -> None:
    """Give a complete file its name, which is that of the part without ``.part``."""
    part.replace(part.with_suffix(""))


def _write_whole(path: Path, data: bytes | Iterable[Bytes]) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        for piece in [data] if isinstance(data, bytes) else data:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    move_into_place(part)


def _flat(state: State) -> tuple[dict[str, Joined], dict[str, str]]:
    """Return the tensors of a state by name, and the rest as the metadata of a file."""
    tensors: dict[str, Joined] = {}
    plain: State = {}
    _flatten(state, "", tensors, plain)
    try:
        return tensors, {_META: json.dumps(plain, sort_keys=True)}
    except TypeError as error:
        raise TrainingError(f"a list in the state is not plain data: {error}") from None


def _flatten(state: State, prefix: str, tensors: dict[str, Joined], plain: State) -> None:
    for key, value in state.items():
        if not isinstance(key, str) or _SEPARATOR in key or not key:
            raise TrainingError(f"state key {key!r} must be a non-empty string without {_SEPARATOR!r}")
        name = prefix + key
        if isinstance(value, Joined | Tensor):
            tensors[name] = value if isinstance(value, Joined) else Joined([value])
        elif isinstance(value, dict) and value:
            _flatten(value, name + _SEPARATOR, tensors, plain)
        elif value is None or isinstance(value, bool | int | float | str | list | dict):
            plain[name] = value
        else:
            raise TrainingError(
                f"state value {name} is a {type(value).__name__}; a state keeps tensors, numbers, strings,"
                " booleans, None, and lists and dictionaries of these"
            )


def to_plain(value: Value) -> Value:
    """Return a dataclass as a dictionary of its fields, at every depth; other values are returned unchanged.

    Keys of dictionaries become strings; fields that are None are left out.
    """
    if is_dataclass(value) and not isinstance(value, type):
        content = {field.name: getattr(value, field.name) for field in fields(value)}
        return {name: to_plain(inner) for name, inner in content.items() if inner is not None}
    if isinstance(value, Mapping):
        return {str(key): to_plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def from_plain(kind: type[T], plain: State) -> T:
    """Return the dataclass ``kind`` that `to_plain` turned into ``plain``, dictionaries sorted by key.

    Raises:
        ValueError: ``plain`` does not have the fields of ``kind``.
    """
    hints = _hints(kind)  # type: ignore[arg-type]  # mypy: a type is hashable
    unknown = sorted(plain.keys() - hints.keys())
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {', '.join(unknown)}")
    try:
        return kind(**{name: _restored(hints[name], value) for name, value in plain.items()})
    except TypeError as error:
        raise ValueError(f"not a saved {kind.__name__}: {error}") from None


@cache
def _hints(kind: type) -> dict[str, Any]:
    if not is_dataclass(kind):
        raise TypeError(f"{kind.__name__} is not a dataclass, so it cannot be a state")
    return get_type_hints(kind)


def _restored(hint: Any, value: Value) -> Value:
    """Return a value in the form of its annotation: a dataclass, a dictionary with integer keys, a tuple."""
    if get_origin(hint) in (Union, UnionType):
        inner = [one for one in get_args(hint) if one is not NoneType]
        return None if value is None else _restored(inner[0], value)
    if isinstance(hint, type) and is_dataclass(hint):
        return from_plain(hint, value)
    if get_origin(hint) is dict:
        key, inner = get_args(hint)
        return {name: _restored(inner, value[str(name)]) for name in sorted(map(key, value))}
    return tuple(value) if get_origin(hint) is tuple else value

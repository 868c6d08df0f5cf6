"""One module per process and name, which every state is loaded into, and which forgets what no state holds.

A freshly built module is the reference. Buffers outside a state are set back to its values. Whatever else a
forward pass may leave behind (an attribute, an advanced generator, a buffer replaced by another tensor, a
frozen parameter moved by hand) is found by its fingerprint, and ends the module: a new one is built.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from hashlib import blake2b
from itertools import count
from random import Random
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType

import numpy as np
import torch
from torch import Tensor, nn

_HOOKS = frozenset(name for name in vars(nn.Module()) if "hooks" in name)
_OF_TORCH = frozenset(vars(nn.Module())) - _HOOKS
"""Attributes that every module has: tensors and parts, and the mode, which each use sets."""
_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device)
_BY_IDENTITY = (type, BuiltinFunctionType, ModuleType)
_UNLIKE = count()
"""Numbers for what cannot be looked into and may have moved: no two fingerprints of it are equal."""


class ReusedModule:
    """A module that is built once, and again whenever a use has changed more than a state can hold."""

    def __init__(self, build: Callable[[], nn.Module], custom: bool) -> None:
        """Build it; only custom models are watched: those of the ladder keep nothing but weights."""
        self._build, self._custom = build, custom
        self._renew()

    def fresh(self) -> nn.Module:
        """Return the module; all but its trainable parameters and persistent buffers is as freshly built."""
        if self._custom and _fingerprint(self._module) != self._expected:
            self._renew()
        with torch.no_grad():
            for buffer, value in zip(self._module.buffers(), self._values, strict=True):
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
        return self._module

    def _renew(self) -> None:
        self._module = self._build()
        self._expected = _fingerprint(self._module) if self._custom else None
        self._values = [buffer.detach().clone() for buffer in self._module.buffers()]


def _fingerprint(module: nn.Module) -> Hashable:
    """Return what stays the same in a module as long as nothing changes but weights and values in buffers.

    It sees plain data, containers, tensors, generators, other objects' attributes, and what functions such as
    hooks have closed over. Of what it cannot look into, such as a class, it sees the identity.
    """
    seen: dict[int, object] = {}
    return tuple((name, _of_module(part, seen)) for name, part in module.named_modules())


def _of_module(module: nn.Module, seen: dict[int, object]) -> Hashable:
    seen[id(module)] = module
    return (
        tuple((name, _of_parameter(value)) for name, value in module._parameters.items()),
        tuple(
            (name, None if value is None else (id(value), value.shape, value.dtype))
            for name, value in module._buffers.items()
        ),
        tuple((name, id(part)) for name, part in module._modules.items()),
        tuple(
            (name, _of_value(value, seen)) for name, value in vars(module).items() if name not in _OF_TORCH
        ),
    )


def _of_parameter(parameter: nn.Parameter | None) -> Hashable:
    if parameter is None:
        return None
    frozen = () if parameter.requires_grad else (parameter._version, parameter.data_ptr())
    return (id(parameter), parameter.shape, parameter.requires_grad, *frozen)


def _of_value(value: object, seen: dict[int, object]) -> Hashable:
    plain = _of_plain(value)
    if plain is not None:
        return plain
    if isinstance(value, Tensor):
        return id(value), value._version, value.data_ptr()
    if id(value) in seen:
        return id(value)
    seen[id(value)] = value  # held, so that no other object gets its identity
    if isinstance(value, nn.Module):
        return _of_module(value, seen)
    if isinstance(value, Mapping):
        return tuple((_of_value(key, seen), _of_value(inner, seen)) for key, inner in value.items())
    if isinstance(value, AbstractSet):
        return frozenset(_of_value(inner, seen) for inner in value)
    if isinstance(value, Sequence | deque):
        return (id(type(value)), *(_of_value(inner, seen) for inner in value))
    if isinstance(value, _BY_IDENTITY):
        return id(value)
    if isinstance(value, FunctionType):
        return (id(value), *(_of_value(inner, seen) for inner in _closed_over(value)))
    if isinstance(value, MethodType):
        return (id(value), _of_value(value.__self__, seen))
    if isinstance(value, partial):
        return (id(value), *(_of_value(inner, seen) for inner in (value.func, value.args, value.keywords)))
    return (id(value), *((name, _of_value(inner, seen)) for name, inner in _attributes(value)))


def _of_plain(value: object) -> Hashable:
    """Return the fingerprint of plain data or of a generator; None for all else."""
    if value is None or isinstance(
        value, bool | int | float | complex | str | bytes | torch.dtype | torch.device
    ):
        return type(value).__name__, repr(value)
    if isinstance(value, torch.Generator):
        return "generator", value.get_state().numpy().tobytes()
    if isinstance(value, Random):
        return "generator", value.getstate()
    if isinstance(value, np.random.Generator):
        return "generator", repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return "generator", repr([np.asarray(part).tolist() for part in value.get_state(legacy=True)])
    if isinstance(value, np.ndarray | np.generic):
        return "array", value.shape, blake2b(value.tobytes()).digest()
    if isinstance(value, count):
        return "count", repr(value)
    if isinstance(value, Iterator):
        return "iterator", next(_UNLIKE)
    return None


def _closed_over(function: FunctionType) -> Iterator[object]:
    """Yield what a function keeps between calls: defaults, its attributes, and variables around it."""
    yield from (function.__defaults__, function.__kwdefaults__, function.__dict__)
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            yield None


def _attributes(value: object) -> Iterator[tuple[str, object]]:
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        names = [slots] if isinstance(slots, str) else slots
        yield from ((name, getattr(value, name)) for name in names if hasattr(value, name))
    yield from getattr(value, "__dict__", {}).items()

"""A device that is not there: its arithmetic is the processor's, its rules are those of a device.

Each storage is either the processor's or the device's, and only a move takes numbers from one to the other.
An operation on tensors of both raises what torch raises, and so does a look at the device's memory as a NumPy
array. Since the arithmetic is the same, results must be those of the processor to the bit.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import embedding_bag
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedistill.training import devices

PRETEND = torch.device("cuda", 0)
_aten = torch.ops.aten
_MAY_CROSS = {_aten.copy_, _aten.set_}
_TAKES_INDICES = {_aten.index, _aten.index_put_, _aten._index_put_impl_}
"""Operations that accept places (int64, or flags) in the processor's memory for a tensor of the device."""


class _Memory:
    """Which storages are the device's; one is forgotten when nothing holds it any more."""

    def __init__(self) -> None:
        self._held: dict[int, StorageWeakRef] = {}

    def has(self, value: Tensor) -> bool:
        key = _key(value)
        return key in self._held and not self._held[key].expired()  # type: ignore[no-untyped-call]  # torch

    def take(self, value: Tensor) -> None:
        if (key := _key(value)) is not None:
            self._held[key] = StorageWeakRef(value.untyped_storage())  # type: ignore[no-untyped-call]  # torch

    def give_up(self, value: Tensor) -> None:
        if (key := _key(value)) is not None:
            self._held.pop(key, None)


def _key(value: Tensor) -> int | None:
    if value.layout != torch.strided:  # of oneDNN, say, which a device does not use
        return None
    return int(value.untyped_storage()._cdata)


class _Rules(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    def __init__(self, memory: _Memory) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._memory = memory
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        there = [one for one in given if self._memory.has(one)]
        if there and packet not in _MAY_CROSS:
            self.operations += 1
            here = [one for one in given if not self._memory.has(one)]
            if packet in _TAKES_INDICES:
                here = [one for one in here if one.dtype not in (torch.int64, torch.bool)]
            changed = func._schema.is_mutable and not self._memory.has(given[0])
            if changed or any(one.dim() for one in here):
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two devices,"
                    f" cuda:0 and cpu! ({func})"
                )
        found = func(*args, **kwargs)
        if there and packet not in _MAY_CROSS:
            for one in tree_leaves(found):
                if isinstance(one, Tensor):
                    self._memory.take(one)
        return found


class _Moves(TorchFunctionMode):
    def __init__(self, memory: _Memory) -> None:
        super().__init__()
        self._memory = memory

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:
            return PRETEND if self._memory.has(args[0]) else func(*args)
        if func is torch.Tensor.register_hook:  # it runs in the backward pass, where this mode is off
            hook = partial(self._within, args[1])
            return func(args[0], hook)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if func is embedding_bag and self._memory.has(args[0]) and args[0].dim() == 2:
            # It would make these itself, on the device that it takes its input to be on without this mode.
            starts = self._moved(torch.arange(0, args[0].numel(), args[0].shape[1]), there=True)
            return func(args[0].flatten(), args[1], **kwargs | {"offsets": starts})
        if func is torch.Tensor.cpu:
            return self._moved(args[0], there=False)
        if func is torch.Tensor.to:
            return self._to(*args, **kwargs)
        if func is torch.Tensor.numpy and self._memory.has(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func is torch.Tensor.new_tensor:
            made = func(*args, **kwargs)
            return self._moved(made, there=self._memory.has(args[0]))
        wanted = kwargs.get("device")
        if wanted is not None and torch.device(wanted).type == PRETEND.type:
            return self._moved(func(*args, **kwargs | {"device": "cpu"}), there=True)
        return func(*args, **kwargs)

    def _within(self, hook: Callable[[Tensor], Any], gradient: Tensor) -> Any:
        with self:
            return hook(gradient)

    def _to(self, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        places = [one for one in (*args, kwargs.pop("device", None)) if isinstance(one, torch.device | str)]
        rest = [one for one in args if not isinstance(one, torch.device | str)]
        assert not any(isinstance(one, Tensor) for one in rest), "not pretended here"
        if rest or kwargs:
            value = torch.Tensor.to(value, *rest, **kwargs)
        return self._moved(value, there=torch.device(places[0]).type == PRETEND.type) if places else value

    def _moved(self, value: Tensor, there: bool) -> Tensor:
        if self._memory.has(value) == there:
            return value
        moved: Tensor = _Move.apply(value, self._memory, there)  # type: ignore[no-untyped-call]  # torch
        return moved


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, memory: _Memory, there: bool) -> Tensor:
        ctx.memory, ctx.there = memory, there
        return _copied(value, memory, there)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _copied(gradient, ctx.memory, not ctx.there), None, None


def _copied(value: Tensor, memory: _Memory, there: bool) -> Tensor:
    copy = value.detach().clone()
    (memory.take if there else memory.give_up)(copy)
    return copy


@contextmanager
def pretended_device(patch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Have ``runtime.device = "cuda"`` find a device inside; yields what counts the operations on it."""
    memory = _Memory()
    generator = torch.Generator()
    with patch.context() as inside:
        inside.setattr(devices, "_is_there", lambda name: name == "cuda")
        inside.setattr(devices, "_usable", lambda name: PRETEND)
        inside.setattr(devices, "generator_of", lambda device: generator)
        inside.setattr(torch.cuda, "get_device_name", lambda device: "a device that is not there")
        rules = _Rules(memory)
        with rules, _Moves(memory):
            yield lambda: rules.operations

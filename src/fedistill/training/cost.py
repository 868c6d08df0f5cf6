"""What a client's computation costs: multiply-adds, and the memory of its training.

Both are counted, not timed: they follow from the shapes of tensors alone.

- *Multiply-adds* are those of the operations in `fedistill.training.multiply_adds`, forwards and backwards.
  What others call FLOPs is twice as many.
- *Memory* is what the largest training step holds: the model's parameters and buffers, a gradient of each
  parameter that gets one, the optimizer's buffers, and all tensors that autograd saves for the backward
  pass, the batch among them, each storage once; with early stopping, also the copy of the best epoch.
  Samples that wait for their batch, messages and work space inside an operation are not in it. Prediction
  needs less, since it can take samples one by one.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from fedistill.training.multiply_adds import Operand, multiply_adds
from fedistill.training.optimizers import Optimizer


@dataclass(frozen=True, slots=True)
class Cost:
    """What some work costs.

    Attributes:
        multiply_adds: see the module.
        memory: bytes of the largest training step; 0 where nothing is trained.
    """

    multiply_adds: int = 0
    memory: int = 0


class CostCounter(TorchDispatchMode):
    """Adds up the cost of what runs inside it; `counting` and `counting_loops` make one.

    Attributes:
        rests: whether it counts only what wakes it (`awake`).
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._multiply_adds = self._memory = 0
        self.rests = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to leave torch's compiler out takes an import of it, three seconds in each process

    @property
    def cost(self) -> Cost:
        """What has been counted so far."""
        return Cost(self._multiply_adds, self._memory)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Count what runs inside, also if it rests."""
        if not self.rests:
            yield
            return
        self.rests = False
        try:
            with self:
                yield
        finally:
            self.rests = True

    def add(self, more: int) -> None:
        """Add multiply-adds that are known."""
        self._multiply_adds += more

    def hold(self, memory: int) -> None:
        """Note what a training step holds, in bytes."""
        self._memory = max(self._memory, memory)

    def __torch_dispatch__(
        self,
        func: Operand,
        types: Operand,
        args: tuple[Operand, ...] = (),
        kwargs: dict[str, Operand] | None = None,
    ) -> Operand:
        given = kwargs or {}
        if torch.is_inference_mode_enabled():
            # There a linear layer arrives whole, not as the product that it consists of.
            with self:
                parts = func.decompose(*args, **given)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **given)
        self._multiply_adds += multiply_adds(func, out, args)
        return out


_active: ContextVar[CostCounter | None] = ContextVar("active", default=None)


@contextmanager
def counting() -> Iterator[CostCounter]:
    """Count what runs inside, in this thread; results keep their bits.

    The loops of `fedistill.training.loop` and all others that use `BatchCosts` take hardly longer for it; any
    other code is counted operation by operation, at some 20 microseconds for each.
    """
    counter = CostCounter()
    before = _active.set(counter)
    try:
        with counter:
            yield counter
    finally:
        _active.reset(before)


@contextmanager
def counting_loops() -> Iterator[CostCounter]:
    """Count, of what runs inside, the loops alone that use `BatchCosts`; all else runs at full speed."""
    counter = CostCounter()
    counter.rests = True
    before = _active.set(counter)
    try:
        yield counter
    finally:
        _active.reset(before)


_Declared = nn.Module | Callable[[Tensor, Tensor], Tensor]
"""A model or a loss."""
_declared: WeakKeyDictionary[_Declared, Hashable] = WeakKeyDictionary()


def declare_by_shapes(part: _Declared, kind: Hashable) -> None:
    """Declare that what a model or a loss computes follows from the shapes and types of its inputs alone.

    Then a process counts a batch of a shape once for all loops with this kind of model and of loss, and not
    once in each. A copy of the model is not declared: who copies one may change it.

    Args:
        kind: the same for models, or losses, that compute the same for the same shapes, and for no others.
    """
    _declared[part] = kind


def kind_by_shapes(part: _Declared) -> Hashable | None:
    """Return the kind that `declare_by_shapes` was given, or None if nothing is declared."""
    try:
        return _declared.get(part)
    except TypeError:  # a callable that has no hash, or none that can be referred to weakly
        return None


_counted: dict[Hashable, dict[int, Cost]] = {}
"""What batches of each size cost in each kind of loop that this process has met."""


def known_cost(kind: Hashable, size: int) -> Cost | None:
    """Return what a batch of a size costs in loops of a kind, if this process has counted one."""
    return _counted.get(kind, {}).get(size)


class BatchCosts:
    """Counts the batches of one loop: the first of each size stands for the others of that size.

    So most batches run at full speed. Where what a batch computes depends on more than its size, the sum is
    an estimate.
    """

    def __init__(self, kind: Hashable | None = None) -> None:
        """Begin a loop.

        Args:
            kind: stands for all that the cost of a batch depends on besides its size, so that the first batch
                stands for those of other loops too; None if there may be more.
        """
        self._by_size: dict[int, Cost] = {} if kind is None else _counted.setdefault(kind, {})

    @contextmanager
    def batch(self, size: int) -> Iterator[None]:
        """Count one batch that runs inside; does nothing where nobody counts."""
        counter = _active.get()
        if counter is None or not _can_pause(counter):
            yield
        elif size in self._by_size:
            with self._known(counter, size):
                yield
        else:
            before = counter.cost.multiply_adds
            with counter.awake():
                yield
            self._by_size[size] = Cost(counter.cost.multiply_adds - before)

    @contextmanager
    def step(
        self, size: int, model: nn.Module, optimizer: Optimizer, *, keeps_best: bool = False
    ) -> Iterator[None]:
        """Count one training step, from its forward pass to that of the optimizer, and its memory.

        Args:
            keeps_best: whether a copy of what training changes is kept beside, as for early stopping.
        """
        counter = _active.get()
        if counter is None:
            yield
            return
        if size in self._by_size and _can_pause(counter):
            with self._known(counter, size):
                yield
            return
        held = [*model.parameters(), *model.buffers()]
        with self.batch(size), _saved(held) as saved:
            yield
        gradients = [value for value in model.parameters() if value.grad is not None]
        entries = [value for entry in optimizer.state().values() for value in entry.values()]
        buffers = [value for value in entries if isinstance(value, Tensor)]
        copied = [value for value in held if value.requires_grad or not isinstance(value, nn.Parameter)]
        copies = (*copied, *buffers) if keeps_best else ()
        held_in_all = (*held, *gradients, *buffers, *copies)
        memory = sum(value.nbytes for value in held_in_all) + sum(saved.values())
        counter.hold(memory)
        if size in self._by_size:
            self._by_size[size] = replace(self._by_size[size], memory=memory)

    @contextmanager
    def _known(self, counter: CostCounter, size: int) -> Iterator[None]:
        counter.add(self._by_size[size].multiply_adds)
        counter.hold(self._by_size[size].memory)
        with uncounted():
            yield


@contextmanager
def uncounted() -> Iterator[None]:
    """Run at full speed what is not counted."""
    counter = _active.get()
    if counter is None or not _can_pause(counter):
        yield
        return
    before = _active.set(None)
    if not counter.rests:
        counter.__exit__(None, None, None)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    try:
        yield
    finally:
        if not counter.rests:
            counter.__enter__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        _active.reset(before)


@contextmanager
def counting_batches() -> Iterator[None]:
    """Count only the batches of a loop that runs inside, by its `BatchCosts`: the rest multiplies nothing."""
    counter = _active.get()
    if counter is None or counter.rests or not _can_pause(counter):
        yield
        return
    counter.__exit__(None, None, None)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    counter.rests = True
    try:
        yield
    finally:
        counter.rests = False
        counter.__enter__()  # type: ignore[no-untyped-call]  # torch leaves it untyped


def _can_pause(counter: CostCounter) -> bool:
    """Return whether no mode of somebody else has begun since."""
    return counter.rests or _get_current_dispatch_mode() is counter


@contextmanager
def _saved(held: list[Tensor]) -> Iterator[dict[int, int]]:
    """Collect the bytes of each storage that autograd saves inside, besides those that are held anyway."""
    apart = {value.untyped_storage().data_ptr() for value in held}
    found: dict[int, int] = {}
    kept: list[torch.UntypedStorage] = []

    def save(value: Tensor) -> Tensor:
        if value.layout is torch.strided:
            storage = value.untyped_storage()
            if storage.data_ptr() not in apart:
                found[storage.data_ptr()] = storage.nbytes()
                kept.append(storage)  # as long as it is there, no other has its address
        # Kept as it is, an output of an operation would keep itself alive.
        return value if value.grad_fn is None else value.detach()

    with saved_tensors_hooks(save, lambda value: value):
        yield found

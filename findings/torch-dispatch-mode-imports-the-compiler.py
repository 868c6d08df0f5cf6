"""The first operation under a `TorchDispatchMode` of one's own imports torch's compiler, for seconds.

    python findings/torch-dispatch-mode-imports-the-compiler.py

Its `__torch_dispatch__` is wrapped so that the compiler leaves it out, and the wrapper imports the compiler
(torch 2.13). A mode whose `_should_skip_dynamo` returns False is not wrapped.
"""

import sys
import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Plain(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return func(*args, **(kwargs or {}))


class Unwrapped(Plain):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return func(*args, **(kwargs or {}))


for mode in (Unwrapped, Plain):
    started = time.perf_counter()
    with mode():  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.ones(2) + 1
    took = time.perf_counter() - started
    print(f"{mode.__name__}: {took:.3f} s, compiler imported: {'torch._dynamo' in sys.modules}")

#!/usr/bin/env bash
# torch 2.13.0: the first operation under a `TorchDispatchMode` of one's own imports torch's compiler.
#
# A mode that does nothing but pass operations on makes `torch.ones(2) + 1` take seconds in a new process, since its
# `__torch_dispatch__` is wrapped so that the compiler leaves it out, and the wrapper imports the compiler. A program
# that counts operations pays this in each of its processes. A mode whose `_should_skip_dynamo` returns False is
# not wrapped.
#
# Seen, and held here: `torch._dynamo` is imported by the plain mode, and not by the other.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check "torch==2.13.0" "numpy<3"

cat >mode.py <<'PY'
import sys
import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Plain(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Unwrapped(Plain):
    @classmethod
    def _should_skip_dynamo(cls):
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


started = time.perf_counter()
with {"plain": Plain, "unwrapped": Unwrapped}[sys.argv[1]]():
    torch.ones(2) + 1
took = time.perf_counter() - started
print(f"torch {torch.__version__}, {sys.argv[1]}: {took:.2f} s, imported: {'torch._dynamo' in sys.modules}")
PY

plain=$(venv/bin/python mode.py plain)
unwrapped=$(venv/bin/python mode.py unwrapped)
printf '%s\n' "$plain" "$unwrapped"
[[ $plain == *"imported: True" && $unwrapped == *"imported: False" ]]

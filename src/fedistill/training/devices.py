"""Where models compute: on the processor, or on a device that has memory of its own.

Samples, messages, states and whatever is pooled stay in the processor's memory. The loops of
`fedistill.training.loop` have a module on the device for one training or one prediction: its batches go
there, and its logits come back, so that losses are computed on the processor, whatever they consist of.
Afterwards the module is where it was, so that thousands of clients share the memory of one device.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from itertools import chain

import torch
from torch import Tensor, nn

from fedistill.config.schema import RuntimeConfig
from fedistill.errors import ExperimentError
from fedistill.rng import also_scoped, generator_of
from fedistill.training.cost import uncounted
from fedistill.training.optimizers import Optimizer

CPU = torch.device("cpu")
_current: ContextVar[torch.device] = ContextVar("device", default=CPU)


def find_device(wanted: str) -> torch.device:
    """Return the device of a name: ``cpu``, ``cuda``, ``mps``, or ``auto`` for the best one that is there.

    Raises:
        ExperimentError: it is not there, or nothing can be computed on it.
    """
    if wanted == "cpu":
        return CPU
    there = [name for name in ("cuda", "mps") if _is_there(name)]
    if wanted == "auto":
        return find_device([*there, "cpu"][0])
    again = 'set runtime.device = "cpu", or "auto" for whatever there is'
    if wanted not in there:
        raise ExperimentError(
            f"runtime.device = {wanted!r}: torch {version('torch')} finds no such device here; {again}"
        )
    try:
        return _usable(wanted)
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        raise ExperimentError(
            f"runtime.device = {wanted!r}: nothing can be computed on it ({why}); {again}"
        ) from None


def _usable(wanted: str) -> torch.device:
    """Return a device that is there; raise what torch raises if it cannot be used."""
    torch.zeros(1, device=wanted).add_(1).cpu()
    return torch.device(wanted, torch.cuda.current_device() if wanted == "cuda" else 0)


def _is_there(device: str) -> bool:
    return torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()


def device_name(device: torch.device) -> str:
    """Return the model of a device, as its maker calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def current_device() -> torch.device:
    """Return where models compute here and now."""
    return _current.get()


@contextmanager
def computing(settings: RuntimeConfig) -> Iterator[None]:
    """Have the loops of `fedistill.training.loop` compute on the device that is set, inside, in this thread.

    On CUDA, float32 is not rounded further for speed, algorithms give the same bits each time, unless the
    settings allow others, and the random numbers of layers come from the streams of `fedistill.rng`.

    Raises:
        ExperimentError: the device is not there.
    """
    device = find_device(settings.device)
    before = _current.set(device)
    try:
        with ExitStack() as stack:
            if device != CPU:
                stack.enter_context(also_scoped(generator_of(device)))
            if device.type == "cuda":
                stack.enter_context(_exact(settings.deterministic))
            yield
    finally:
        _current.reset(before)


@contextmanager
def placed(
    module: nn.Module, optimizer: Optimizer | None = None, device: torch.device | None = None
) -> Iterator[None]:
    """Have a module, and the buffers of its optimizer, on a device inside, by default the current one.

    There it begins without gradients, and leaves without them.

    Parameters and buffers stay the same objects, so that whoever holds them, such as an optimizer, a hook or
    a fingerprint (`fedistill.models.reuse`), still does; only where their numbers are changes.
    """
    device = device or current_device()
    if device == CPU or any(value.device == device for value in _tensors(module)):
        yield
        return
    with uncounted():
        homes = [(value, value.data, value._version) for value in _tensors(module)]
        for value, home, _ in homes:
            _put(value, home.to(device))
        _arrived(module, optimizer)
    try:
        with explaining():
            yield
    finally:
        with uncounted():
            for value, home, version in homes:
                # What is frozen may be large, and has hardly ever changed.
                if value.requires_grad or not isinstance(value, nn.Parameter) or value._version != version:
                    home.copy_(value.data)
                _put(value, home)
            for value in _tensors(module):  # a forward pass may have put another tensor in a buffer's place
                if value.device != CPU:
                    _put(value, value.data.cpu())
            _arrived(module, optimizer)


@contextmanager
def explaining() -> Iterator[None]:
    """Have errors that only devices have say what to do about them."""
    try:
        yield
    except RuntimeError as error:
        said, fix = str(error).splitlines()[0], ""
        if isinstance(error, torch.OutOfMemoryError):
            fix = "set runtime.workers or train.batch_size lower"
        elif "deterministic" in said:
            fix = "take another layer, or set runtime.deterministic = false, and runs may differ"
        elif any(words in said for words in ("same device", "should be the same", "expected it to be on")):
            fix = "a tensor of the model that is neither parameter nor buffer stays behind: register it"
        if not fix:
            raise
        raise RuntimeError(f'{said} ({fix}; or set runtime.device = "cpu")') from error


def _tensors(module: nn.Module) -> list[Tensor]:
    return list(chain(module.parameters(), module.buffers()))


def _put(value: Tensor, numbers: Tensor) -> None:
    """Have a parameter or a buffer hold other numbers, wherever they are."""
    value.grad = None
    value.data = numbers


def _arrived(module: nn.Module, optimizer: Optimizer | None) -> None:
    """Have what depends on where a module is follow it."""
    if optimizer is not None:
        optimizer.follow()
    for part in module.modules():
        if isinstance(part, nn.RNNBase):
            part.flatten_parameters()  # cuDNN wants the weights of a layer in one piece


@contextmanager
def _exact(deterministic: bool) -> Iterator[None]:
    """Set what the arithmetic of CUDA depends on; afterwards it is as before."""
    # Without it, torch refuses products of matrices as not deterministic.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cudnn = torch.backends.cudnn
    # In these, torch would round float32 to a mantissa of 10 bits (TF32) for speed.
    products, tf32 = [], None
    if hasattr(cudnn, "conv"):
        products = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]
    else:  # before torch 2.9, which rounds convolutions alone unless told not to
        tf32, cudnn.allow_tf32 = cudnn.allow_tf32, False
    precisions = [one.fp32_precision for one in products]
    refuses = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    chosen = cudnn.benchmark, cudnn.deterministic
    try:
        for one in products:
            one.fp32_precision = "ieee"
        torch.use_deterministic_algorithms(deterministic)
        cudnn.benchmark, cudnn.deterministic = False, deterministic
        yield
    finally:
        for one, precision in zip(products, precisions, strict=True):
            one.fp32_precision = precision
        if tf32 is not None:
            cudnn.allow_tf32 = tf32
        torch.use_deterministic_algorithms(refuses, warn_only=warns)
        cudnn.benchmark, cudnn.deterministic = chosen

"""Files without a name: data may be larger than memory, and nothing is left of them, however a run ends.

The system's file cache holds what is in use, and may drop it whenever memory is wanted for something else.
"""

import contextlib
import mmap
import os
import sys
import tempfile
import weakref
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Self

import torch
from torch import Tensor

from fedistill.errors import RuntimeFailure
from fedistill.state import Bytes

if sys.platform == "win32":
    import msvcrt

_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000) if sys.platform == "linux" else None
"""``MAP_NORESERVE``, which `mmap` has from Python 3.13: Linux refuses to map more than its memory without."""
_IN_MEMORY = 64 << 20
"""Bytes that a `TensorStore` keeps in memory at most, while it has less than eight times as many on disk."""


class NamelessFile:
    """A file that the system deletes when the last process that has it open ends; only Windows lists it.

    Args:
        folder: on whose disk it lies; it need not exist. Default: the system's folder for temporary files.

    Raises:
        RuntimeFailure: no file can be made there.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = None if folder is None else _nearest(folder.absolute())
        try:
            with tempfile.TemporaryFile(dir=self._folder, prefix="fedistill-") as file:
                self._hold(os.dup(file.fileno()))
        except OSError as error:
            raise self._failure(error) from None

    @classmethod
    def received(cls, handle: int) -> Self:
        """Return the file whose handle another process has passed to this one."""
        file = cls.__new__(cls)
        file._folder = None
        if sys.platform == "win32":
            handle = msvcrt.open_osfhandle(handle, os.O_RDONLY)
        file._hold(handle)
        return file

    @property
    def handle(self) -> int:
        """What another process needs to open the file: `multiprocessing.reduction.send_handle` passes it."""
        if sys.platform == "win32":
            return msvcrt.get_osfhandle(self._descriptor)
        return self._descriptor

    def write(self, pieces: Iterable[Bytes]) -> None:
        """Write pieces one behind the other, from the start of the file.

        Raises:
            RuntimeFailure: the disk is full or fails.
        """
        with self._opened() as file:
            for piece in pieces:
                file.write(piece)

    def write_at(self, pieces: Iterable[tuple[int, Bytes]]) -> None:
        """Write each piece at its position; what is between them reads as zeros.

        Raises:
            RuntimeFailure: the disk is full or fails.
        """
        with self._opened() as file:
            for position, piece in pieces:
                file.seek(position)
                file.write(piece)

    def mapped(self, size: int | None = None) -> Tensor:
        """Return the content, uint8 (n,), which is read when it is used; changes to it do not reach the file.

        Args:
            size: make the file as long as this first.
        """
        if size is not None:
            os.truncate(self._descriptor, size)
        if not os.fstat(self._descriptor).st_size:
            return torch.empty(0, dtype=torch.uint8)
        return map_file(self._descriptor)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        try:
            with open(self._descriptor, "wb", closefd=False) as file:
                yield file
        except OSError as error:
            raise self._failure(error) from None

    def _hold(self, descriptor: int) -> None:
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def _failure(self, error: OSError) -> RuntimeFailure:
        folder = self._folder or tempfile.gettempdir()
        return RuntimeFailure(
            f"{folder}: a file for the samples of the task cannot be written there ({error.strerror}): make"
            " room, or choose a folder on another disk"
        )


def _nearest(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that exists."""
    return next(one for one in (folder, *folder.parents) if one.is_dir())


def map_file(descriptor: int) -> Tensor:
    """Return the content of an open file that is not empty, as `NamelessFile.mapped` does."""
    if _NO_RESERVE is None:
        return torch.frombuffer(mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY), dtype=torch.uint8)
    private = mmap.mmap(
        descriptor, 0, flags=mmap.MAP_PRIVATE | _NO_RESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE
    )
    return torch.frombuffer(private, dtype=torch.uint8)


class TensorStore:
    """Tensors by key, that are moved to nameless files when they are too many for memory."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._kept: dict[Hashable, Tensor] = {}
        self._fresh: list[Hashable] = []
        self._bytes = self._on_disk = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def __getitem__(self, key: Hashable) -> Tensor:
        return self._kept[key]

    def put(self, key: Hashable, value: Tensor) -> None:
        """Keep a tensor of at least one axis.

        Raises:
            RuntimeFailure: the disk is full or fails.
        """
        self._kept[key] = value
        self._fresh.append(key)
        self._bytes += value.nbytes
        if self._bytes > max(_IN_MEMORY, self._on_disk // 8):
            self._move()

    def _move(self) -> None:
        file = NamelessFile(self._folder)
        values = [self._kept[key] for key in self._fresh]
        file.write(value.contiguous().numpy().data for value in values)
        parts = torch.split(file.mapped(), [value.nbytes for value in values])
        for key, value, part in zip(self._fresh, values, parts, strict=True):
            self._kept[key] = part.view(value.dtype).reshape(value.shape)
        self._on_disk += self._bytes
        self._fresh, self._bytes = [], 0

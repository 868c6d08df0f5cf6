"""Saved states by their digests, in append-only files: a few of them for any number of clients.

A blob, which is any bytes, is known by the digest of its bytes, and is written once however often it is put.
Blobs gather in memory, or beside the store once there are too many, until `StateStore.seal` writes those that
are needed as one segment, which never changes again::

    states-N.bin    blobs, one after the other; then an index: digest, length, form and base of each

A blob is stored as it is, deflated, or deflated with another as its dictionary ("base"), so that only the
difference takes space; a base has no base itself. Which segments there are, and the digest of each one's
index, is for a manifest to say; no byte of a blob is used before its digest has been compared. A segment in
which little is still needed gives that to the next one, and can then be removed.
"""

import os
import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from fedistill.config.section import Section
from fedistill.state import blob_digest, move_into_place, sync_folder

NAME = re.compile(r"states-(\d+)\.bin")
_ROW = struct.Struct("<16sQB16s")
_PLAIN, _DEFLATED = 0, 1
_NO_BASE = b""
_MOST_IN_MEMORY = 64 << 20
_MOST_SEGMENTS = 64
_LARGEST = 3
"""Times what is needed, which segments may be large before some are emptied."""


class Damaged(Exception):
    """Something is not as it was written."""


class SegmentEntry(Section):
    """What a manifest says of a segment.

    Attributes:
        blobs: their bytes, after which the index begins.
        index: digest of the index, in hexadecimal.
    """

    blobs: int = Field(ge=0)
    index: str


class _Stored(NamedTuple):
    """A blob as it is stored, and where, unless it is in memory."""

    form: int
    base: bytes
    length: int
    segment: str = ""
    start: int = 0


class StateStore:
    """The blobs of an arm's checkpoints, in their folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stored: dict[bytes, _Stored] = {}
        self._waiting: dict[bytes, bytes] = {}
        self._bytes_waiting = 0
        self._segments: dict[str, SegmentEntry] = {}
        self._begin()

    def open(self, segments: Mapping[str, SegmentEntry]) -> None:
        """Forget everything else, and read what these segments hold.

        Raises:
            Damaged: one is missing, or its index is not as it was written.
        """
        self._stored, self._waiting, self._bytes_waiting = {}, {}, 0
        self._segments = dict(segments)
        for name, entry in segments.items():
            self._stored |= self._index(name, entry)
        self._forget_differences_to_nothing()
        self._begin()

    def put(self, data: bytes, *, deflate: bool = False, like: bytes = _NO_BASE) -> bytes:
        """Take a blob; return its digest.

        Args:
            deflate: whether it is worth the time, as it is not for weights.
            like: the digest of a blob that it differs little from, if one is held.
        """
        digest = blob_digest(data)
        if digest in self._stored:
            return digest
        if not deflate:
            self._add(digest, _Stored(_PLAIN, _NO_BASE, len(data)), data)
            return digest
        base = self._base(like)
        stored = _deflated(data, self.get(base)) if base else b""
        if not base or len(stored) > self._stored[base].length // 2:
            base, stored = _NO_BASE, _deflated(data, b"")
        self._add(digest, _Stored(_DEFLATED, base, len(stored)), stored)
        return digest

    def get(self, digest: bytes) -> bytes:
        """Return a blob.

        Raises:
            Damaged: it is not there, or not as it was put.
        """
        if digest not in self._stored:
            raise Damaged(f"{digest.hex()} is in no segment")
        place = self._stored[digest]
        data = self._bytes(digest, place)
        if place.form == _DEFLATED:
            inflater = zlib.decompressobj(zdict=self.get(place.base) if place.base else b"")
            try:
                data = inflater.decompress(data) + inflater.flush()
            except zlib.error:
                data = b""
        if blob_digest(data) != digest:
            raise Damaged(f"{place.segment or self._next} is not as it was written")
        return data

    def with_bases(self, digests: Iterable[bytes]) -> set[bytes]:
        """Return these digests with those of the blobs that they are stored as differences to."""
        found = set(digests)
        return found | {base for digest in found if (base := self._stored[digest].base)}

    def seal(self, needed: set[bytes]) -> dict[str, SegmentEntry]:
        """Write blobs that are not in a segment yet; return what a manifest must say to find all of them.

        Args:
            needed: digests of the blobs that are still needed, bases among them.

        Raises:
            Damaged: a blob that was to be moved to the new segment is not as it was written.
        """
        for digest in [digest for digest in self._waiting if digest not in needed]:
            self._bytes_waiting -= len(self._waiting.pop(digest))
            del self._stored[digest]
        self._forget_differences_to_nothing()
        for segment in self._to_empty(needed):
            for digest in sorted(needed):
                place = self._stored[digest]
                if place.segment == segment:
                    self.get(digest)
                    self._add(digest, place._replace(segment="", start=0), self._bytes(digest, place))
        if self._waiting or self._written:
            self._write_segment()
        return {name: self._segments[name] for name in sorted(self._live(needed), key=_number)}

    def remove_all_but(self, names: set[str]) -> None:
        """Remove segments with other names, and what was begun of one."""
        for path in self.folder.glob("states-*"):
            if path.name not in names:
                path.unlink()
        self._segments = {name: entry for name, entry in self._segments.items() if name in names}
        self._stored = {
            digest: place
            for digest, place in self._stored.items()
            if not place.segment or place.segment in names
        }
        self._forget_differences_to_nothing()

    def _forget_differences_to_nothing(self) -> None:
        """Forget blobs whose base is gone, though their segment is not: if they come again, they are new."""
        self._stored = {
            digest: place
            for digest, place in self._stored.items()
            if not place.base or place.base in self._stored
        }

    def _begin(self) -> None:
        """Begin a segment with a number that none has had."""
        found = [NAME.match(path.name) for path in self.folder.glob("states-*")]
        self._next = f"states-{max([int(match[1]) for match in found if match], default=0) + 1}.bin"
        self._written: list[bytes] = []
        self._size = 0

    def _base(self, like: bytes) -> bytes:
        """Return the digest of a blob that has no base itself, or nothing."""
        return (self._stored[like].base or like) if like in self._stored else _NO_BASE

    def _add(self, digest: bytes, place: _Stored, stored: bytes) -> None:
        self._stored[digest], self._waiting[digest] = place, stored
        self._bytes_waiting += len(stored)
        if self._bytes_waiting > _MOST_IN_MEMORY:
            self._append(b"")

    def _append(self, end: bytes, *, last: bool = False) -> None:
        """Write what waits in memory, and an end, to the segment that was begun."""
        self.folder.mkdir(parents=True, exist_ok=True)
        placed, size = dict[bytes, _Stored](), self._size
        with self._part.open("r+b" if self._written else "wb") as file:
            file.seek(size)
            file.truncate()  # what a write left that was interrupted
            for digest, stored in self._waiting.items():
                file.write(stored)
                placed[digest] = self._stored[digest]._replace(segment=self._next, start=size)
                size += len(stored)
            file.write(end)
            if last:
                file.flush()
                os.fsync(file.fileno())
        self._stored |= placed
        self._written += placed
        self._size, self._waiting, self._bytes_waiting = size, {}, 0

    def _write_segment(self) -> None:
        self._append(b"")
        index = zlib.compress(
            b"".join(
                _ROW.pack(digest, place.length, place.form, place.base)
                for digest in self._written
                for place in [self._stored[digest]]
            )
        )
        self._append(index, last=True)
        move_into_place(self._part)
        sync_folder(self.folder)
        self._segments[self._next] = SegmentEntry(blobs=self._size, index=blob_digest(index).hex())
        self._begin()

    @property
    def _part(self) -> Path:
        return self.folder / f"{self._next}.part"

    def _live(self, needed: set[bytes]) -> dict[str, int]:
        """Return the bytes that are needed of each segment in which any are."""
        found: dict[str, int] = {}
        for digest in needed:
            place = self._stored[digest]
            if place.segment:
                found[place.segment] = found.get(place.segment, 0) + place.length
        return found

    def _to_empty(self, needed: set[bytes]) -> list[str]:
        """Return the segments of which what is needed is to be moved, the least of it first."""
        live = self._live(needed)
        live.pop(self._next, None)
        new = self._size + self._bytes_waiting
        most = _LARGEST * (new + sum(live.values()))
        size = new + sum(self._segments[name].blobs for name in live)
        found: list[str] = []
        for name in sorted(live, key=lambda name: (live[name], name)):
            if size <= most and len(live) - len(found) < _MOST_SEGMENTS:
                break
            size -= self._segments[name].blobs - live[name]
            found.append(name)
        return found

    def _index(self, name: str, entry: SegmentEntry) -> dict[bytes, _Stored]:
        try:
            with (self.folder / name).open("rb") as file:
                file.seek(entry.blobs)
                index = file.read()
        except OSError as error:
            raise Damaged(f"{name}: {error.strerror}") from None
        if blob_digest(index).hex() != entry.index:
            raise Damaged(f"{name} is not as it was written")
        found, start = {}, 0
        for digest, length, form, base in _ROW.iter_unpack(zlib.decompress(index)):
            found[digest] = _Stored(form, base.rstrip(b"\0") and base, length, name, start)
            start += length
        return found

    def _bytes(self, digest: bytes, place: _Stored) -> bytes:
        """Return a blob as it is stored."""
        if not place.segment:
            return self._waiting[digest]
        path = self._part if place.segment == self._next else self.folder / place.segment
        try:
            with path.open("rb") as file:
                file.seek(place.start)
                return file.read(place.length)
        except OSError as error:
            raise Damaged(f"{place.segment}: {error.strerror}") from None


def _deflated(data: bytes, base: bytes) -> bytes:
    deflater = zlib.compressobj(zdict=base) if base else zlib.compressobj()
    return deflater.compress(data) + deflater.flush()


def _number(name: str) -> int:
    match = NAME.fullmatch(name)
    assert match is not None
    return int(match[1])

"""Text files, a part at a time: in whatever encoding they are, compressed or not; readers get UTF-8."""

import codecs
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from fedistill.config.task import Source
from fedistill.data.table import place_of
from fedistill.errors import ExperimentError

_MARKS = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
"""Byte order marks, which programs for spreadsheets write."""
_PART = 1 << 20


class TextFile:
    """A file of text in the encoding of its byte order mark, or else in that of the settings.

    Raises:
        ExperimentError: it is not text in that encoding.
    """

    def __init__(self, path: Path, source: Source) -> None:
        self._path, self._source = path, source
        first = next(self._bytes(), b"")
        marked = next((name for mark, name in _MARKS.items() if first.startswith(mark)), None)
        self._encoding = marked or _with_byte_order(source.encoding)
        self._check()

    def text(self) -> str:
        """Return all of it."""
        return "".join(self.parts())

    def parts(self) -> Iterator[str]:
        """Yield the text, some at a time."""
        decoder = codecs.getincrementaldecoder(self._encoding)()
        for part in self._bytes():
            yield decoder.decode(part)
        yield decoder.decode(b"", final=True)

    def lines(self) -> Iterator[str]:
        r"""Yield what lies between line feeds, and only these (``\n``)."""
        begun: list[str] = []
        for part in self.parts():
            first, *others = part.split("\n")
            begun.append(first)
            for other in others:
                yield "".join(begun)
                begun = [other]
        yield "".join(begun)

    def utf8(self) -> io.BufferedReader:
        """Return the text in UTF-8, without what line ends it begins with."""
        return io.BufferedReader(_Encoded(_without_line_ends(self.parts())), _PART)

    def _bytes(self) -> Iterator[bytes]:
        with pa.input_stream(str(self._path), compression="detect") as stream:
            while part := stream.read(_PART):
                yield bytes(part)

    def _check(self) -> None:
        decoder = codecs.getincrementaldecoder(self._encoding)()
        lines, wrong = 0, None
        may_have_zeros = self._encoding.lower().startswith(("utf-16", "utf_16", "utf-32", "utf_32"))
        for part in self._bytes_and_end():
            if b"\0" in part and not may_have_zeros:
                raise ExperimentError(f"cannot be read as {self._source.format} (it is not a text file)")
            try:
                if wrong is None:
                    decoder.decode(part, final=not part)
            except UnicodeDecodeError as error:
                given = bytes(error.object)
                left = given[: max(0, len(given) - len(part))]  # of the part before
                line = lines - left.count(b"\n") + given[: error.start].count(b"\n") + 1
                wrong = line, given[error.start]
            lines += part.count(b"\n")
        if wrong is not None:
            raise ExperimentError(
                f"cannot be read as {self._source.format} (line {wrong[0]} is not text in {self._encoding}:"
                f" byte {wrong[1]:#04x}): set {place_of(self._source)}.encoding, for example to 'latin-1' or"
                " 'cp1252'"
            )

    def _bytes_and_end(self) -> Iterator[bytes]:
        yield from self._bytes()
        yield b""


class _Encoded(io.RawIOBase):
    """Parts of a text as a file in UTF-8."""

    def __init__(self, parts: Iterator[str]) -> None:
        self._parts, self._left = parts, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # as it is called
        while not self._left:
            part = next(self._parts, None)
            if part is None:
                return 0
            self._left = memoryview(part.encode())
        taken = self._left[: len(buffer)]
        buffer[: len(taken)] = taken
        self._left = self._left[len(taken) :]
        return len(taken)


def _without_line_ends(parts: Iterator[str]) -> Iterator[str]:
    for part in parts:
        if rest := part.lstrip("\r\n"):
            yield rest
            break
    yield from parts


def _with_byte_order(encoding: str) -> str:
    """Return the name of an encoding; one that needs a byte order mark gets this machine's order."""
    if codecs.lookup(encoding).name in ("utf-16", "utf-32"):
        return f"{codecs.lookup(encoding).name}-{'le' if sys.byteorder == 'little' else 'be'}"
    return encoding

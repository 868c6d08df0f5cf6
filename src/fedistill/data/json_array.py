"""The objects of a JSON file that is one array of them, without all of it in memory."""

import json
import re
from collections.abc import Iterable, Iterator

from fedistill.config.section import RawTable

_BLANK = re.compile(r"[ \t\n\r]*")


class NoArrayOfObjects(Exception):
    """A text is not JSON, or not an array of objects, of which there is at least one."""


def begins_array(parts: Iterable[str]) -> bool:
    """Whether a text, of which these are the parts, would be an array if it is JSON."""
    return next(filter(None, (part.lstrip() for part in parts)), "").startswith("[")


def objects_of(parts: Iterable[str]) -> Iterator[RawTable]:
    """Yield the objects of an array; no more of the text than some parts and one object is held.

    Raises:
        NoArrayOfObjects: it is something else, be it after some objects.
    """
    text = _Text(iter(parts))
    if text.mark() != "[":
        raise NoArrayOfObjects
    mark = ","
    while mark == ",":
        yield text.object()
        mark = text.mark()
    if mark != "]" or text.mark():
        raise NoArrayOfObjects


class _Text:
    """Reads parts of a text as they are wanted, and forgets what has been taken."""

    def __init__(self, parts: Iterator[str]) -> None:
        self._parts, self._held, self._at = parts, "", 0
        self._decode = json.JSONDecoder().raw_decode

    def mark(self) -> str:
        """Return the next character that is not blank; an empty string at the end."""
        self._skip_blanks()
        found = self._held[self._at : self._at + 1]
        self._at += len(found)
        return found

    def object(self) -> RawTable:
        self._skip_blanks()
        while self._held[self._at : self._at + 1] == "{":
            try:
                found, self._at = self._decode(self._held, self._at)
            except json.JSONDecodeError:  # it ends in a later part, if it does
                if not self._read_on():
                    break
            else:
                return dict(found)
        raise NoArrayOfObjects

    def _skip_blanks(self) -> None:
        while True:
            blank = _BLANK.match(self._held, self._at)
            assert blank is not None
            self._at = blank.end()
            if self._at < len(self._held) or not self._read_on():
                return

    def _read_on(self) -> bool:
        """Hold as much again as is left, so that a long object is tried a few times; False at the end."""
        more = [self._held[self._at :]]
        left, wanted = len(more[0]), max(1, len(more[0]))
        for part in self._parts:
            more.append(part)
            wanted -= len(part)
            if wanted <= 0:
                break
        self._held, self._at = "".join(more), 0
        return len(self._held) > left

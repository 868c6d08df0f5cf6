"""Orders to SuperNodes and what they reply, by a Flower grid; nothing that a node sends is trusted."""

import contextlib
import resource
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
from flwr.app import Message
from flwr.serverapp import Grid

from fedistill.errors import FrameError, RuntimeFailure
from fedistill.federation.executor import TransportOverhead
from fedistill.federation.failures import ClientFailure, describe_error
from fedistill.flower.serde import Answer, Order, Reply, Words, carried, open_reply, overhead, seal_order

_BRIEFLY = 0.05
_SPARE = 1 << 30
_LONGEST_SHOWN = 500
LONGEST_TEXT = 20_000
"""Characters of what a node says of itself or of a client, such as an error, beside what it was asked for."""


class Transport:
    """Sends orders and pulls replies, and counts the bytes around the frames."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._pulls: dict[str, _Pull] = {}
        self._asked: dict[str, tuple[frozenset[int], int]] = {}
        self._up = self._down = self._late = 0

    def nodes(self) -> set[int]:
        """The SuperNodes that are there."""
        return set(self._grid.get_node_ids())

    def push(self, orders: Mapping[int, Order], kind: str, asked: int) -> dict[str, int]:
        """Hand orders to Flower; return which message is for which node, of those that it took.

        Args:
            asked: characters, or numbers, that no named value of a reply reaches which was asked for.
        """
        if not orders:
            return {}
        messages = [seal_order(order, node, kind) for node, order in orders.items()]
        framed = [order.frames.values() for order in orders.values()]
        sizes = [overhead(message, frames) for message, frames in zip(messages, framed, strict=True)]
        # Flower answers with nothing where all together are too much, and with None for one that it refuses.
        ids: list[str | None] = [*self._grid.push_messages(messages)] or [None] * len(messages)
        taken = {}
        for message, (node, order), size in zip(ids, orders.items(), sizes, strict=True):
            if message is not None:
                taken[message] = node
                self._asked[message] = frozenset(order.frames), LONGEST_TEXT + asked
                self._down += size
        return taken

    def pull(self, message: str) -> Reply | ClientFailure | None:
        """The reply to a message, or None if it has not arrived completely.

        Flower names a reply as soon as its head is there, and then waits for the parts that its sender has
        named: for hours, if they never come. So each is pulled in a thread, and nobody waits for it.

        Raises:
            RuntimeFailure: the SuperLink cannot be reached.
        """
        pull = self._pulls.pop(message, None) or _Pull(self._grid, message, *self._asked[message])
        if not pull.done.is_set():
            self._pulls[message] = pull
            return None
        if isinstance(pull.error, httpx.HTTPError):
            raise RuntimeFailure(
                f"the SuperLink does not answer: {describe_error(pull.error)}"
            ) from pull.error
        if pull.error is not None:
            del self._asked[message]
            return ClientFailure(
                brief(f"its reply cannot be read: {describe_error(pull.error)}"), reached=True
            )
        if pull.reply is None:
            return None
        self._up += pull.around
        del self._asked[message]
        return pull.reply

    def count(self, answer: Answer) -> None:
        """Count a frame that has crossed and gets into no ledger."""
        self._up += len(answer.frame)

    def late(self, reply: Reply | ClientFailure) -> None:
        """Count a reply that comes after its round."""
        self._late += 1
        if isinstance(reply, Reply):
            for answer in reply.answers.values():
                self.count(answer)

    def transport_overhead(self) -> TransportOverhead:
        """What has been carried since this was last asked."""
        found = TransportOverhead(self._up, self._down, self._late)
        self._up = self._down = self._late = 0
        return found


class _Pull:
    """One look for a reply, in a thread of its own.

    Attributes:
        done: it is over. ``reply``: what it says, if it was there; ``around``: the bytes around its frames.
        error: what went wrong, if it could not even be read.
    """

    def __init__(self, grid: Grid, message: str, asked: frozenset[int], longest: int) -> None:
        self._grid, self._message, self._asked, self._longest = grid, message, asked, longest
        self.reply: Reply | ClientFailure | None = None
        self.around = 0
        self.error: Exception | None = None
        self.done = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()
        self.done.wait(_BRIEFLY)

    def _run(self) -> None:
        try:
            for message in self._grid.pull_messages([self._message]):
                self.reply, self.around = _read(message, self._asked, self._longest)
        except Exception as error:  # whatever Flower raises of bytes that a node has made
            self.error = error
        self.done.set()


@contextlib.contextmanager
def bounded(frames: int) -> Iterator[None]:
    """Let this process take no more memory than ``frames`` bytes of frames need, where the system can tell.

    Flower puts a reply together before anybody may look at its length, and a part of a megabyte may be named
    a thousand times in it. What is too much is then a `MemoryError` of that reply.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        yield
        return
    held = next(line for line in status.read_text().splitlines() if line.startswith("VmData:"))
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = 1024 * int(held.split()[1]) + 4 * frames + _SPARE
    limits = [one for one in (limit, soft, hard) if one != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def brief(text: str) -> str:
    """What a node says, cut off and without what could disturb a terminal or a log."""
    shown = "".join(sign if sign.isprintable() else " " for sign in text[: _LONGEST_SHOWN + 1])
    return shown if len(shown) <= _LONGEST_SHOWN else shown[:_LONGEST_SHOWN] + "…"


def _read(message: Message, asked: frozenset[int], longest: int) -> tuple[Reply | ClientFailure, int]:
    """Return what a node says, and the bytes around its frames."""
    if message.has_error():
        return ClientFailure(
            brief(f"Flower says: {message.error.reason or message.error.code}"), reached=True
        ), 0
    try:
        reply = open_reply(message, asked, longest)
    except FrameError as error:
        return ClientFailure(brief(str(error)), reached=True), carried(message)
    around = overhead(message, [answer.frame for answer in reply.answers.values()])
    return failed(reply.words) or reply, around


def failed(words: Words) -> ClientFailure | None:
    """Return the failure that a node says, of all of its work or of one client's, or None."""
    return ClientFailure(brief(str(words["error"])), reached=True) if "error" in words else None

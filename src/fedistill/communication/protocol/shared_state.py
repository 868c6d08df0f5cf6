"""The state that both sides of a link share after their exchanges, and the id by which a frame names it."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from fedistill.communication.protocol.frame import StateId
from fedistill.state import State, as_bytes, as_tensor, blob_digest, decode_state, encode_state


class StatePart:
    """One part of a shared state; equal parts have equal digests.

    It is held as plain data, as bytes, or as both, whichever was asked for last: thousands of parts lie as
    bytes, or elsewhere, until the next exchange.
    """

    __slots__ = ("_data", "_digest", "_load", "_value")

    def __init__(self, value: State) -> None:
        self._value: State | None = value
        self._data: bytes | None = None
        self._digest: bytes | None = None
        self._load: Callable[[bytes], bytes] | None = None

    @classmethod
    def of_bytes(cls, data: bytes) -> "StatePart":
        """Return the part whose `data` these are."""
        part = cls({})
        part._value, part._data = None, data
        return part

    @property
    def value(self) -> State:
        """The part as plain data."""
        if self._value is None:
            self._value = decode_state(self.data)
        return self._value

    @property
    def data(self) -> bytes:
        """The part as bytes."""
        if self._load is not None:
            return self._load(self.digest)
        if self._data is None:
            assert self._value is not None
            self._data = encode_state(self._value)
        return self._data

    @property
    def digest(self) -> bytes:
        if self._digest is None:
            self._digest = blob_digest(self.data)
        return self._digest

    def pack(self) -> None:
        """Hold it as bytes alone."""
        if self._load is None:
            self._digest, self._data = self.digest, self.data
        self._value = None

    @property
    def is_elsewhere(self) -> bool:
        """Whether its bytes lie where `lie` has said."""
        return self._load is not None

    def lie(self, load: Callable[[bytes], bytes]) -> None:
        """Hold its digest alone: its bytes lie elsewhere.

        Args:
            load: returns them by the digest, whenever they are used.
        """
        self._digest, self._load = self.digest, load
        self._data = self._value = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StatePart) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


@dataclass(frozen=True)
class SharedState:
    """What both sides hold after their exchanges.

    Attributes:
        version: the number of exchanges behind it.
        parts: each is present only if something in the arm uses it. ``up`` and ``down``: the codecs' own
            memories; ``reference``: the weights that the client last decoded; ``told`` and ``said``: the last
            label (a class) for each public sample, on the downlink and on the uplink; ``cache``: labels of
            public samples, and their turn; ``once-up`` and ``once-down``: the last payloads of the fields
            in `Message.once`.
    """

    version: int = 0
    parts: Mapping[str, StatePart] = field(default_factory=dict)

    @cached_property
    def state_id(self) -> StateId | None:
        """The id of this state in a frame, or None if the state is empty."""
        if not self.version and not self.parts:
            return None
        digest = hashlib.blake2b(self.version.to_bytes(8, "little"), digest_size=4)
        for name in sorted(self.parts):
            digest.update(name.encode() + b"\0" + self.parts[name].digest)
        return StateId(self.version, digest.digest())

    def value(self, name: str) -> State:
        """Return a part, or an empty one if there is none."""
        return self.parts[name].value if name in self.parts else {}

    def plain(self) -> State:
        """Return the state as plain data, in which each part is its bytes, as a tensor."""
        parts = {name: as_tensor(part.data) for name, part in self.parts.items()}
        return {"version": self.version, "parts": parts}

    @classmethod
    def of(cls, plain: State) -> "SharedState":
        """Return the state that `plain` made plain data of."""
        parts = {name: StatePart.of_bytes(as_bytes(data)) for name, data in plain["parts"].items()}
        return cls(plain["version"], parts)

    def pack(self) -> None:
        """Hold all parts as bytes alone, until they are used."""
        for part in self.parts.values():
            part.pack()

    def pack_memories(self) -> None:
        """Hold the codecs' memories as bytes alone, of which each client has its own, until they are used."""
        for name in MEMORIES & self.parts.keys():
            self.parts[name].pack()


EMPTY = SharedState()
MEMORIES = {"up", "down"}
"""The parts that are codecs' own memories."""


def dump_held(shared_states: Mapping[int, SharedState]) -> State:
    """Return the shared states of many clients as plain data, in which each part is its digest."""
    return {
        str(client): {
            "version": shared.version,
            "parts": {name: part.digest.hex() for name, part in shared.parts.items()},
        }
        for client, shared in shared_states.items()
    }


def dump_states(shared_states: Mapping[int, SharedState]) -> State:
    """Return the shared states of many clients as plain data, each different part once."""
    parts = {part for shared in shared_states.values() for part in shared.parts.values()}
    return {
        "held": dump_held(shared_states),
        "parts": {part.digest.hex(): as_tensor(part.data) for part in parts},
    }


def load_states(plain: State) -> dict[int, SharedState]:
    """Return what `dump_states` made plain data of; clients share the parts that they have in common."""
    return load_held(plain["held"], lambda digest: as_bytes(plain["parts"][digest.hex()]))


def load_held(held: State, data: Callable[[bytes], bytes]) -> dict[int, SharedState]:
    """Return what `dump_held` made plain data of; clients share the parts that they have in common.

    Args:
        data: returns the bytes of a part by its digest.
    """
    names = {digest for one in held.values() for digest in one["parts"].values()}
    parts = {digest: StatePart.of_bytes(data(bytes.fromhex(digest))) for digest in names}
    return {
        int(client): SharedState(
            one["version"], {name: parts[digest] for name, digest in one["parts"].items()}
        )
        for client, one in held.items()
    }

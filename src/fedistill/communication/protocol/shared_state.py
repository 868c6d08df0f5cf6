"""The state that both sides of a link share after their exchanges, and the id by which a frame names it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from fedistill.communication.protocol.frame import StateId
from fedistill.state import State, encode_state


@dataclass(frozen=True, eq=False)
class StatePart:
    """One part of a shared state, as plain data; equal parts have equal digests."""

    value: State

    @cached_property
    def digest(self) -> bytes:
        return hashlib.blake2b(encode_state(self.value), digest_size=16).digest()

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
        """Return the state as plain data."""
        parts = {name: part.value for name, part in self.parts.items()}
        return {"version": self.version, "parts": parts}

    @classmethod
    def of(cls, plain: State) -> "SharedState":
        """Return the state that `plain` made plain data of."""
        return cls(plain["version"], {name: StatePart(value) for name, value in plain["parts"].items()})


EMPTY = SharedState()


def dump_states(shared_states: Mapping[int, SharedState]) -> State:
    """Return the shared states of many clients as plain data, each different part once."""
    parts: State = {}
    held: State = {}
    for client, shared in shared_states.items():
        digests = {name: part.digest.hex() for name, part in shared.parts.items()}
        held[str(client)] = {"version": shared.version, "parts": digests}
        parts |= {part.digest.hex(): part.value for part in shared.parts.values()}
    return {"held": held, "parts": parts}


def load_states(plain: State) -> dict[int, SharedState]:
    """Return what `dump_states` made plain data of; clients share the parts that they have in common."""
    parts = {digest: StatePart(value) for digest, value in plain["parts"].items()}
    return {
        int(client): SharedState(
            held["version"], {name: parts[digest] for name, digest in held["parts"].items()}
        )
        for client, held in plain["held"].items()
    }

"""The saved states of clients between rounds, wherever they lie: in memory, or on a shelf on disk."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Protocol

from torch import Tensor

from fedistill.state import State, Value, as_bytes, as_tensor, blob_digest, decode_state, encode_state

METHOD, LINK, PRIVACY = "method", "link", "privacy"
"""The parts of a client's state: the method's, what its link shares with the server, and the answers that it
has made private."""
_WHOLE = {METHOD, PRIVACY}
"""Those of which each is one blob."""


class Shelf(Protocol):
    """Where states lie; equal states may have one key."""

    def put(self, state: bytes) -> bytes:
        """Take a state that is not empty; return its key."""

    def get(self, key: bytes) -> bytes:
        """Return the state, bit for bit."""


class InMemory:
    """A shelf for runs that are not saved: a state is its own key."""

    def put(self, state: bytes) -> bytes:
        return state

    def get(self, key: bytes) -> bytes:
        return key


class ClientStates(MutableMapping[int, bytes]):
    """The states of clients (`ClientResult.state`), each read from its shelf when it is asked for.

    Attributes:
        keys_by_client: the key of each client's state on the shelf, empty for an empty state.
    """

    def __init__(self, shelf: Shelf | None = None, keys: Mapping[int, bytes] | None = None) -> None:
        self._shelf: Shelf = InMemory() if shelf is None else shelf
        self.keys_by_client: dict[int, bytes] = dict(keys or {})

    def __getitem__(self, client: int) -> bytes:
        key = self.keys_by_client[client]
        return self._shelf.get(key) if key else b""

    def __setitem__(self, client: int, state: bytes) -> None:
        self.keys_by_client[client] = self._shelf.put(state) if state else b""

    def __delitem__(self, client: int) -> None:
        del self.keys_by_client[client]

    def __iter__(self) -> Iterator[int]:
        return iter(self.keys_by_client)

    def __len__(self) -> int:
        return len(self.keys_by_client)

    def __contains__(self, client: object) -> bool:
        return client in self.keys_by_client  # without reading the state, as `Mapping` would

    def on(self, shelf: Shelf) -> "ClientStates":
        """Return these states on a shelf, to which they are moved if they lie elsewhere."""
        if shelf is self._shelf:
            return self
        moved = ClientStates(shelf)
        moved.update(self)
        return moved

    def none(self) -> "ClientStates":
        """Return no states, on the same shelf: for those that a round brings."""
        return ClientStates(self._shelf)

    def after(self, newer: "ClientStates") -> "ClientStates":
        """Return these states with newer ones from the same shelf in their place, without empty ones."""
        keys = {**self.keys_by_client, **newer.keys_by_client}
        return ClientStates(self._shelf, {client: key for client, key in keys.items() if key})


def split_state(state: bytes) -> tuple[bytes, dict[str, bytes]]:
    """Return a client's state as a list of blobs, many of which it may have in common with others or earlier.

    These are what the method keeps, the private answers, and each thing that the link does
    (`ClientEndpoint.kept`), by their place, for example ``link/after/memory/parts/up``; in the list, their
    digests stand in their place.
    """
    plain = decode_state(state)
    blobs: dict[str, bytes] = {}

    def take(place: str, value: Value) -> Value:
        if not isinstance(value, Tensor):
            return value
        blobs[place] = as_bytes(value)
        return blob_digest(blobs[place]).hex()

    for part in _WHOLE & plain.keys():
        plain[part] = as_tensor(encode_state(plain[part]))
    return encode_state(_changed(plain, take)), blobs


def join_state(listed: bytes, blob: Callable[[bytes], bytes]) -> bytes:
    """Return the state of which `split_state` returned this list, bit for bit.

    Args:
        blob: returns a blob by its digest.
    """

    def put_back(place: str, value: Value) -> Value:
        return as_tensor(blob(bytes.fromhex(value))) if isinstance(value, str) else value

    plain = _changed(decode_state(listed), put_back)
    for part in _WHOLE & plain.keys():
        plain[part] = decode_state(as_bytes(plain[part]))
    return encode_state(plain)


def blobs_of(listed: bytes) -> set[bytes]:
    """Return the digests in a list that `split_state` returned."""
    found: set[bytes] = set()

    def note(place: str, value: Value) -> Value:
        if isinstance(value, str):
            found.add(bytes.fromhex(value))
        return value

    _changed(decode_state(listed), note)
    return found


def _changed(state: State, change: Callable[[str, Value], Value], parent: str = "") -> State:
    """Return a state with every value changed, given its place."""
    return {
        key: _changed(value, change, f"{parent}{key}/")
        if isinstance(value, dict)
        else change(parent + key, value)
        for key, value in state.items()
    }

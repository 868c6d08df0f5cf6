"""Clients' states in a `StateStore`: what they have in common once, what changes little as differences."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from fedistill.errors import RuntimeFailure
from fedistill.experiment.state_store import Damaged, SegmentEntry, StateStore
from fedistill.federation.client_states import ClientStates, blobs_of, join_state, split_state
from fedistill.state import blob_digest

_AFTER, _BEFORE, _MEMORY = "/after/", "/before/", "/memory/"


class StateShelf:
    """A `fedistill.federation.client_states.Shelf` in the store of an arm."""

    def __init__(self, store: StateStore, arm: str) -> None:
        self._store, self._arm = store, arm
        self._blobs: dict[bytes, set[bytes]] = {}
        self._list = b""

    def put(self, state: bytes) -> bytes:
        listed, blobs = split_state(state)
        digests = {place: blob_digest(data) for place, data in blobs.items()}
        with self._machine_failing():
            # What was before an exchange is mostly held already, and what came after it differs little.
            for place in sorted(blobs, reverse=True):
                like = digests.get(place.replace(_AFTER, _BEFORE, 1), b"")
                self._store.put(blobs[place], deflate=_MEMORY in place, like=like)
            key = self._list = self._store.put(listed, deflate=True, like=self._list)
        self._blobs[key] = set(digests.values())
        return key

    def get(self, key: bytes) -> bytes:
        with self._machine_failing():
            return join_state(self._store.get(key), self._store.get)

    def blob(self, digest: bytes) -> bytes:
        """Return a blob of the store that may be one of a state."""
        with self._machine_failing():
            return self._store.get(digest)

    def seal(self, needed: set[bytes]) -> dict[str, SegmentEntry]:
        """Write what is new, as `StateStore.seal`; ``needed`` need not have the bases."""
        with self._machine_failing():
            return self._store.seal(self._store.with_bases(needed))

    @contextmanager
    def _machine_failing(self) -> Iterator[None]:
        """Let a disk's failure be that of the machine, and not of the arm that was played."""
        try:
            yield
        except Damaged as error:
            raise RuntimeFailure(
                f"arm {self._arm!r}: its checkpoint in {self._store.folder} has been damaged since the run"
                f" began ({error}): resume the run"
            ) from None
        except OSError as error:
            raise RuntimeFailure(
                f"arm {self._arm!r}: states cannot be written to {self._store.folder} ({error}): make room,"
                " then resume the run"
            ) from None

    def check(self, keys: Iterable[bytes]) -> None:
        """See that states are whole.

        Raises:
            Damaged: one is not.
        """
        self._blobs = {}
        for key in keys:
            self._blobs[key] = blobs_of(self._store.get(key))
        for blob in {blob for blobs in self._blobs.values() for blob in blobs}:
            self._store.get(blob)

    def blobs(self, states: ClientStates) -> set[bytes]:
        """Return the digests of all blobs of these states; forget what others had."""
        keys = set(states.keys_by_client.values())
        self._blobs = {key: self._blobs[key] for key in keys}
        return keys.union(*self._blobs.values())

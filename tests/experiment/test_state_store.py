"""The store of states: whatever is put comes back bit for bit, or not at all, and little space is wasted."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedistill.errors import RuntimeFailure
from fedistill.experiment import state_store
from fedistill.experiment.state_shelf import StateShelf
from fedistill.experiment.state_store import Damaged, SegmentEntry, StateStore
from fedistill.federation.client_states import ClientStates, blobs_of, join_state, split_state
from fedistill.state import as_tensor, blob_digest, encode_state

blobs = st.binary(max_size=300)
puts = st.tuples(blobs, st.booleans(), st.integers(0, 5))


def noise(seed: int, size: int = 1000) -> bytes:
    return random.Random(seed).randbytes(size)


@settings(max_examples=60)
@given(rounds=st.lists(st.tuples(st.lists(puts, max_size=5), st.sets(st.integers(0, 20))), max_size=6))
def test_what_is_needed_comes_back_after_any_rounds(
    rounds: list[tuple[list[tuple[bytes, bool, int]], set[int]]], tmp_path_factory: Any
) -> None:
    """Compared with a dictionary; read by the store that wrote it, and by one that opens its files."""
    folder = tmp_path_factory.mktemp("store")
    store = StateStore(folder)
    kept: list[bytes] = []
    for given_blobs, dropped in rounds:
        for data, deflate, back in given_blobs:
            like = kept[-back - 1] if back < len(kept) else b""
            assert store.put(data, deflate=deflate, like=blob_digest(like)) == blob_digest(data)
            kept.append(data)
        kept = [data for place, data in enumerate(kept) if place not in dropped]
        segments = store.seal(store.with_bases({blob_digest(data) for data in kept}))
        store.remove_all_but(set(segments))
        assert {path.name for path in folder.glob("*")} == set(segments)
        again = StateStore(folder)
        again.open(segments)
        for data in kept:
            assert store.get(blob_digest(data)) == again.get(blob_digest(data)) == data


def test_equal_blobs_are_written_once(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    digests = {store.put(noise(1)) for _ in range(50)}
    (name,) = store.seal(digests)
    assert (tmp_path / name).stat().st_size < 1000 + 100
    store.put(noise(1))
    assert set(store.seal(digests)) == {name}
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_blob_that_differs_little_takes_little(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    data = bytearray(noise(1, 20_000))
    kept = [store.put(bytes(data), deflate=True)]
    for place in range(10):
        data[place * 700] ^= 1
        kept.append(store.put(bytes(data), deflate=True, like=kept[-1]))
    (name,) = store.seal(store.with_bases(kept))
    assert (tmp_path / name).stat().st_size < 20_100 + 10 * 300


def test_a_difference_that_has_grown_is_written_whole(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    first = store.put(noise(1), deflate=True)
    half = store.put(noise(1)[:400] + noise(2)[:600], deflate=True, like=first)
    assert store.with_bases({half}) == {half}
    near = store.put(noise(1)[:900] + noise(2)[:100], deflate=True, like=first)
    assert store.with_bases({near}) == {near, first}
    # A base has no base itself: no chain of differences can grow.
    nearer = store.put(noise(1)[:900] + noise(2)[:90] + noise(3)[:10], deflate=True, like=near)
    assert store.with_bases({nearer}) == {nearer, first}


def test_a_blob_whose_base_has_gone_is_written_again_if_it_comes_back(tmp_path: Path) -> None:
    """Its segment stays, for the sake of another blob; a store that opens the files must not see it."""
    base, other = noise(1, 4000), noise(2, 3000)
    near = base[:3990] + noise(3, 10)
    store = StateStore(tmp_path)
    first = store.put(base, deflate=True)
    store.remove_all_but(set(store.seal({first})))
    difference, kept = store.put(near, deflate=True, like=first), store.put(other)
    store.remove_all_but(set(store.seal(store.with_bases({difference, kept}))))
    segments = store.seal({kept})
    store.remove_all_but(set(segments))
    reopened = StateStore(tmp_path)
    reopened.open(segments)
    for again in (store, reopened):
        found = again.put(near, deflate=True)
        assert again.get(found) == near
        assert again.with_bases({found}) == {found}


def test_many_blobs_wait_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_store, "_MOST_IN_MEMORY", 2500)
    store = StateStore(tmp_path)
    digests = [store.put(noise(seed)) for seed in range(7)]
    assert (tmp_path / "states-1.bin.part").stat().st_size == 6000
    assert [store.get(digest) for digest in digests] == [noise(seed) for seed in range(7)]
    segments = store.seal({*digests})
    assert [path.name for path in tmp_path.iterdir()] == ["states-1.bin"]
    again = StateStore(tmp_path)
    again.open(segments)
    assert [again.get(digest) for digest in digests] == [noise(seed) for seed in range(7)]


def test_a_write_that_was_interrupted_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_store, "_MOST_IN_MEMORY", 1500)
    store = StateStore(tmp_path)
    digests = [store.put(noise(seed)) for seed in range(2)]
    with (tmp_path / "states-1.bin.part").open("ab") as file:
        file.write(b"what a stop has left")
    digests += [store.put(noise(seed)) for seed in range(2, 5)]
    store.seal({*digests})
    assert [store.get(digest) for digest in digests] == [noise(seed) for seed in range(5)]


def test_a_segment_of_which_little_is_needed_is_emptied(tmp_path: Path) -> None:
    """One blob of ten lives long; space stays a small multiple of what is needed."""
    store = StateStore(tmp_path)
    lasting: list[bytes] = []
    for round in range(40):
        fresh = [store.put(noise(100 * round + place)) for place in range(10)]
        if round < 10:
            lasting.append(fresh[0])
        segments = store.seal({*lasting, *fresh})
        store.remove_all_but(set(segments))
        needed = 1000 * (len(lasting) + 9)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3 * needed + 2000
    assert [store.get(digest) for digest in lasting] == [noise(100 * round) for round in range(10)]


def test_there_are_few_files_however_many_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_store, "_MOST_SEGMENTS", 5)
    store = StateStore(tmp_path)
    needed: list[bytes] = []
    for round in range(20):
        needed.append(store.put(noise(round)))
        segments = store.seal({*needed})
        store.remove_all_but(set(segments))
        assert len(list(tmp_path.iterdir())) <= 5
    assert [store.get(digest) for digest in needed] == [noise(round) for round in range(20)]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(place: int) -> Callable[[Path], None]:
    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)

    return flip


HARM = {"cut": _cut, "first": _flip(0), "middle": _flip(1500), "index": _flip(-5), "gone": Path.unlink}


@pytest.mark.parametrize("name", HARM)
@pytest.mark.parametrize("deflate", [False, True])
def test_a_damaged_segment_gives_nothing_wrong(name: str, deflate: bool, tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    digests = [store.put(noise(seed), deflate=deflate) for seed in range(2)]
    segments = store.seal({*digests})
    HARM[name](tmp_path / "states-1.bin")
    again = StateStore(tmp_path)
    with pytest.raises(Damaged, match=r"^states-1\.bin"):
        read_all(again, segments, digests)


def read_all(store: StateStore, segments: dict[str, SegmentEntry], digests: list[bytes]) -> list[bytes]:
    store.open(segments)
    return [store.get(digest) for digest in digests]


def test_no_flipped_bit_gives_other_bytes(tmp_path: Path) -> None:
    """All but a few are found; those say how well a blob was deflated, which changes nothing."""
    store = StateStore(tmp_path)
    blobs = [noise(1, 40), noise(1, 39) + b"x", noise(2, 10)]
    first = store.put(blobs[0], deflate=True)
    digests = [first, store.put(blobs[1], deflate=True, like=first), store.put(blobs[2])]
    segments = store.seal({*digests})
    path = tmp_path / "states-1.bin"
    whole, unfound = path.read_bytes(), 0
    for place in range(len(whole)):
        path.write_bytes(whole)
        _flip(place)(path)
        try:
            assert read_all(StateStore(tmp_path), segments, digests) == blobs
        except Damaged:
            continue
        unfound += 1
    assert unfound <= 4


# Clients' states


def client_state(weight: float, up: int, before: int | None, told: int) -> bytes:
    """As a client keeps it: its model, and both sides of its last exchange."""

    def pair(number: int) -> Any:
        parts = {"up": as_tensor(noise(number, 3000)), "told": as_tensor(noise(told, 500))}
        return {"memory": {"version": number, "parts": parts}, "own": as_tensor(b"{}")}

    link = {"after": pair(up), "before": pair(up if before is None else before)}
    return encode_state({"method": {"model": {"weights": torch.full((100,), weight)}}, "link": link})


leaves = st.one_of(st.integers(), st.text(max_size=9), st.binary(max_size=20).map(as_tensor))
links = st.recursive(
    st.one_of(st.integers(), st.binary(max_size=20).map(as_tensor)),
    lambda inner: st.dictionaries(st.text("ab", min_size=1, max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(
    method=st.dictionaries(st.text("cd", min_size=1, max_size=3), leaves, max_size=3),
    link=st.dictionaries(st.text("ab", min_size=1, max_size=3), links, max_size=3),
)
def test_a_state_is_split_and_joined_bit_for_bit(method: Any, link: Any) -> None:
    parts = {"method": method, "link": link}
    state = encode_state({name: part for name, part in parts.items() if part})
    listed, found = split_state(state)
    held = {blob_digest(data): data for data in found.values()}
    assert join_state(listed, lambda digest: held[digest]) == state
    assert blobs_of(listed) == set(held)


def test_clients_share_what_they_have_in_common(tmp_path: Path) -> None:
    """30 clients' states of 7.5 kB, in which 400 bytes are of a client alone, and 3,000 of an exchange."""
    store = StateStore(tmp_path)
    shelf = StateShelf(store, "arm")
    states = ClientStates(shelf)
    for client in range(30):
        states[client] = client_state(client, up=1, before=2, told=3)
    segments = store.seal(shelf.blobs(states))
    assert sum((tmp_path / name).stat().st_size for name in segments) < 7000 + 30 * 1400
    again = StateStore(tmp_path)
    again.open(segments)
    reread = ClientStates(StateShelf(again, "arm"), states.keys_by_client)
    for client in range(30):
        assert states[client] == reread[client] == client_state(client, up=1, before=2, told=3)


def test_only_the_newer_side_of_an_exchange_is_new(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    shelf = StateShelf(store, "arm")
    states = ClientStates(shelf)
    sizes = []
    for round in range(2, 6):
        states[0] = client_state(0, up=round, before=round - 1, told=round)
        segments = store.seal(shelf.blobs(states))
        sizes.append((tmp_path / max(segments, key=str)).stat().st_size)
        store.remove_all_but(set(segments))
        assert states[0] == client_state(0, up=round, before=round - 1, told=round)
    assert all(size < sizes[0] - 2500 for size in sizes[1:])


def test_damage_while_a_run_plays_is_the_machines_failure(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    shelf = StateShelf(store, "arm")
    states = ClientStates(shelf)
    states[7] = client_state(0, 1, 2, 3)
    store.seal(shelf.blobs(states))
    (tmp_path / "states-1.bin").unlink()
    with pytest.raises(RuntimeFailure, match=r"^arm 'arm': its checkpoint in .* has been damaged since the"):
        states[7]


def test_a_disk_that_cannot_be_written_is_the_machines_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_store, "_MOST_IN_MEMORY", 100)
    (tmp_path / "file").touch()
    states = ClientStates(StateShelf(StateStore(tmp_path / "file"), "arm"))
    with pytest.raises(RuntimeFailure, match=r"cannot be written to .*make room, then resume the run"):
        states[0] = client_state(0, 1, 2, 3)


def test_states_in_memory_are_those_that_were_given() -> None:
    states = ClientStates()
    states[3] = b"state"
    states[1] = b""
    newer = states.none()
    newer[2], newer[3] = b"two", b""
    assert dict(newer) == {2: b"two", 3: b""}
    assert dict(states) == {3: b"state", 1: b""}
    assert dict(states.after(newer)) == {2: b"two"}
    assert 3 in newer
    assert 4 not in newer

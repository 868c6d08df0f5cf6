"""State: whatever is saved comes back, to the bit, and bad bytes are refused."""

import json
import math
import os
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from fedistill.errors import TrainingError
from fedistill.state import (
    _TYPES,
    Joined,
    State,
    decode_state,
    encode_state,
    ordered,
    state_in,
    state_pieces,
    write_file,
)

keys = st.text(
    alphabet=st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1, max_size=6
)
numbers = st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none() | st.text(max_size=8)
shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool]
tensors = st.builds(
    lambda shape, dtype, seed: torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).to(
        dtype
    ),
    shapes,
    st.sampled_from(DTYPES),
    st.integers(0, 10),
)
plain = numbers | st.lists(numbers | st.lists(numbers, max_size=2), max_size=3)
states = st.recursive(
    st.dictionaries(keys, plain | tensors, max_size=4),
    lambda inner: st.dictionaries(keys, plain | tensors | inner, max_size=3),
    max_leaves=6,
)


def same(one: Any, other: Any) -> bool:
    """Equal in value and type at every depth."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        both = isinstance(other, dict) and one.keys() == other.keys()
        return both and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        long = isinstance(other, list) and len(one) == len(other)
        return long and all(same(a, b) for a, b in zip(one, other, strict=True))
    return type(one) is type(other) and bool(one == other)


def reversed_order(state: State) -> State:
    """The same state, its keys put in from the other end."""
    return {
        key: reversed_order(value) if isinstance(value, dict) else value
        for key, value in reversed(state.items())
    }


@settings(max_examples=300)
@given(states)
def test_round_trip(state: State) -> None:
    assert same(decode_state(encode_state(state)), state)


@settings(max_examples=300)
@given(states)
def test_equal_states_have_equal_bytes(state: State) -> None:
    data = encode_state(state)
    assert encode_state(reversed_order(state)) == data
    assert encode_state(decode_state(data)) == data


@given(states)
def test_keys_come_back_in_order(state: State) -> None:
    """Else a sum over the entries of a state would depend on whether it came from disk."""

    def walk(state: State) -> list[Any]:
        return [(key, walk(value) if isinstance(value, dict) else None) for key, value in state.items()]

    assert walk(decode_state(encode_state(reversed_order(state)))) == walk(ordered(state))
    assert list(ordered(state)) == sorted(state)


def flat(state: State, prefix: str = "") -> dict[str, Any]:
    """The leaves of a state by their path; an empty dictionary is a leaf."""
    found: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}/")
        else:
            found[prefix + key] = value
    return found


def saved_by_safetensors(state: State) -> bytes:
    leaves = flat(state)
    held = {name: value for name, value in leaves.items() if isinstance(value, Tensor)}
    rest = {name: value for name, value in leaves.items() if name not in held}
    return bytes(
        save({name: held[name] for name in sorted(held)}, {"state": json.dumps(rest, sort_keys=True)})
    )


@given(states)
def test_the_bytes_are_those_of_safetensors(state: State) -> None:
    assert encode_state(state) == saved_by_safetensors(state)


def test_every_type_of_tensor_is_written_as_safetensors_writes_it() -> None:
    """They lie in the order of their types there, which no text of the format has."""
    state = {chr(97 + place): torch.zeros(3).to(kind) for place, kind in enumerate(_TYPES)}
    assert encode_state(state) == saved_by_safetensors(state)


def test_a_number_that_stands_for_many_is_written_once_for_each() -> None:
    one = torch.tensor(5)
    found = decode_state(encode_state({"a": one.expand(1), "b": one.expand(3), "c": torch.arange(6)[::2]}))
    assert {name: value.tolist() for name, value in found.items()} == {"a": [5], "b": [5] * 3, "c": [0, 2, 4]}


def mapped(data: bytes) -> State:
    return state_in(torch.frombuffer(bytearray(data), dtype=torch.uint8))


@given(states)
def test_a_state_is_read_from_the_bytes_in_place(state: State) -> None:
    data = torch.frombuffer(bytearray(encode_state(state)), dtype=torch.uint8)
    found = state_in(data)
    assert same(found, ordered(state))
    data[:] = 0
    assert not any(value.any() for value in flat(found).values() if isinstance(value, Tensor))


def test_parts_of_a_tensor_are_written_one_behind_the_other() -> None:
    values = torch.arange(12).reshape(4, 3)
    joined = Joined([values[:1], values[1:1], values[1:]])
    written = b"".join(state_pieces({"a": {"b": joined}, "c": 1}))
    assert written == encode_state({"a": {"b": values}, "c": 1})


@pytest.mark.parametrize("size", [4, 8, 40, 200])
def test_what_is_cut_short_is_no_state_in_place_either(size: int) -> None:
    data = encode_state({"a": torch.arange(20), "b": "text"})
    assert size < len(data)
    with pytest.raises(ValueError, match="not a saved state"):
        mapped(data[:size])


def test_a_state_keeps_no_tensor_of_a_type_that_safetensors_lacks() -> None:
    with pytest.raises(TrainingError, match=r"complex128"):
        encode_state({"a": torch.zeros(2, dtype=torch.complex128)})


def test_states_that_differ_have_other_bytes() -> None:
    found = [
        {"a": torch.zeros(2)},
        {"a": torch.zeros(2, 1)},
        {"a": torch.zeros(2, dtype=torch.float64)},
        {"b": torch.zeros(2)},
        {"a": torch.ones(2)},
        {"a": [0.0, 0.0]},
        {"a": {"b": 1}},
        {"a": {}},
        {"a": None},
        {},
    ]
    assert len({encode_state(state) for state in found}) == len(found)


def test_channels_last_tensors_come_back_equal() -> None:
    values = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    other = values.contiguous(memory_format=torch.channels_last)
    assert not other.is_contiguous()
    assert encode_state({"a": other}) == encode_state({"a": values})
    back = decode_state(encode_state({"a": other}))["a"]
    assert torch.equal(back, values)
    assert back.is_contiguous()


def test_views_and_shared_tensors() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = {"row": base[1], "column": base[:, 2], "turned": base.t(), "whole": base, "again": base}
    assert same(decode_state(encode_state(state)), {key: value.clone() for key, value in state.items()})


def test_what_is_dumped_is_a_copy() -> None:
    values = torch.zeros(3)
    data = encode_state({"a": values})
    values += 1
    assert decode_state(data)["a"].tolist() == [0, 0, 0]


def test_a_tensor_with_a_gradient() -> None:
    back = decode_state(encode_state({"a": torch.ones(2, requires_grad=True)}))["a"]
    assert back.tolist() == [1, 1]
    assert not back.requires_grad


def test_zero_dimensional_and_empty_tensors() -> None:
    state = {"step": torch.tensor(7.0), "none": torch.zeros(0, 3), "yes": torch.tensor(True)}
    back = decode_state(encode_state(state))
    assert back["step"].shape == ()
    assert back["none"].shape == (0, 3)
    assert same(back, state)


def test_empty_dictionaries_at_every_depth() -> None:
    for state in ({}, {"a": {}}, {"a": {"b": {}, "c": {"d": {}}}, "e": {}}):
        assert decode_state(encode_state(state)) == state


def test_odd_numbers() -> None:
    state = {"inf": math.inf, "minus": -math.inf, "zero": -0.0, "large": 2**200, "third": 1 / 3}
    back = decode_state(encode_state(state))
    assert back == state
    assert math.copysign(1, back["zero"]) == -1
    assert math.isnan(decode_state(encode_state({"nan": math.nan}))["nan"])
    weights = torch.tensor([math.nan, -0.0, 1e-45])
    assert decode_state(encode_state({"w": weights}))["w"].numpy().tobytes() == weights.numpy().tobytes()


@pytest.mark.parametrize("key", ["a/b", "", 3, None])
def test_odd_keys_are_refused(key: Any) -> None:
    with pytest.raises(TrainingError, match=r"state key .* must be a non-empty string without '/'"):
        encode_state({"x": {key: 1}})


@pytest.mark.parametrize("value", [(1, 2), {1}, b"x", object()])
def test_what_is_not_plain_data_is_refused_by_name(value: Any) -> None:
    with pytest.raises(TrainingError, match=r"state value x/y is a \w+; a state keeps tensors, numbers"):
        encode_state({"x": {"y": value}})


def test_a_tensor_in_a_list_is_refused() -> None:
    with pytest.raises(TrainingError, match="a list in the state is not plain data"):
        encode_state({"x": [torch.zeros(1)]})


@settings(max_examples=500)
@given(st.binary(max_size=60))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a saved state"):
        decode_state(data)


GOOD = encode_state({"a": torch.arange(3.0), "b": {"c": 1, "d": "text"}})


def test_truncations_are_refused() -> None:
    for size in range(len(GOOD)):
        with pytest.raises(ValueError, match="not a saved state"):
            decode_state(GOOD[:size])


@settings(max_examples=500)
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_changed_bytes_give_a_state_or_are_refused(place: int, byte: int) -> None:
    damaged = bytearray(GOOD)
    damaged[place] = byte
    try:
        found = decode_state(bytes(damaged))
    except ValueError:
        return
    assert isinstance(found, dict)


@pytest.mark.parametrize(
    "meta",
    [None, {}, {"other": "{}"}, *({"state": json.dumps(x)} for x in ([], 3, None, "x", {"x": 1}))],
)
def test_safetensors_that_are_no_state_are_refused(meta: dict[str, str] | None) -> None:
    with pytest.raises(ValueError, match="not a saved state"):
        decode_state(save({"x/y": torch.zeros(1)}, meta))


def test_write_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_file(path, b"one")
    write_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("broken", ["write", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        if broken == "write":
            # A real one: this device is always full.
            (tmp_path / "file.part").symlink_to("/dev/full")
        elif broken == "fsync":
            patched.setattr(os, "fsync", fail)
        else:
            patched.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="No space left"):
            write_file(path, b"new" * 10_000)
        assert path.read_bytes() == b"old"
    (tmp_path / "file.part").unlink()
    write_file(path, b"new")
    assert path.read_bytes() == b"new"


def test_part_names_do_not_collide(tmp_path: Path) -> None:
    for letter in string.ascii_lowercase[:3]:
        write_file(tmp_path / f"{letter}.safetensors", letter.encode())
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{x}.safetensors" for x in "abc"]

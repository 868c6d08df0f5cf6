"""What is remembered: how it is named, saved and shared."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedistill import parse
from fedistill.communication.codecs.registry import CODECS
from fedistill.communication.protocol.shared_state import (
    EMPTY,
    SharedState,
    StatePart,
    dump_states,
    load_states,
)
from fedistill.communication.tensor_specs import Content
from fedistill.config.schema import Experiment
from fedistill.experiment.run_folder import RunFolder
from fedistill.experiment.runner import prepare
from fedistill.federation.arm import ReadyArm
from fedistill.federation.history import ArmRun
from fedistill.federation.local_executor import SerialExecutor
from fedistill.federation.round import play_round
from fedistill.federation.setup import start_run
from fedistill.state import decode_state, encode_state

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**40), 2**40),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=3),
    st.lists(st.integers(-9, 9), max_size=4).map(torch.tensor),
    st.lists(st.floats(width=32, allow_nan=False), max_size=4).map(torch.tensor),
)
keys = st.text(alphabet="abc-0", min_size=1, max_size=3)
states = st.dictionaries(keys, st.one_of(leaves, st.dictionaries(keys, leaves, max_size=2)), max_size=3)
names = st.sampled_from(["up", "down", "reference", "told", "said", "cache"])
pool = st.lists(states.map(StatePart), min_size=1, max_size=4)


@st.composite
def many(draw: Any) -> dict[int, SharedState]:
    """Memories of some clients, of parts that some have in common."""
    parts = st.sampled_from(draw(pool))
    shared_states = st.builds(SharedState, st.integers(0, 2**40), st.dictionaries(names, parts, max_size=4))
    found: dict[int, SharedState] = draw(st.dictionaries(st.integers(0, 200), shared_states, max_size=5))
    return found


def described(shared_states: dict[int, SharedState]) -> Any:
    return {
        client: (memory.version, memory.state_id, {name: part.digest for name, part in memory.parts.items()})
        for client, memory in shared_states.items()
    }


def part(value: int) -> StatePart:
    return StatePart({"classes": torch.tensor([value])})


def test_a_memory_of_nothing_has_no_name() -> None:
    assert EMPTY.state_id is None
    assert SharedState(0, {}).state_id is None
    assert EMPTY.value("up") == {}


def test_each_thing_in_a_memory_is_in_its_name() -> None:
    shared_states = [
        SharedState(1),
        SharedState(2),
        SharedState(0, {"up": part(1)}),
        SharedState(1, {"up": part(1)}),
        SharedState(1, {"up": part(2)}),
        SharedState(1, {"down": part(1)}),
        SharedState(1, {"up": part(1), "down": part(1)}),
        SharedState(1, {"up": part(1), "down": part(2)}),
        SharedState(1, {"up": part(2), "down": part(1)}),
    ]
    bases = [memory.state_id for memory in shared_states]
    assert None not in bases
    assert len({state_id.hash for state_id in bases if state_id}) == len(shared_states)
    assert [state_id.version for state_id in bases if state_id] == [
        memory.version for memory in shared_states
    ]
    assert all(len(state_id.hash) == 4 for state_id in bases if state_id)


def test_a_name_is_the_same_on_every_machine() -> None:
    """Frames of one release are read by another machine's: this never changes within a format version."""
    memory = SharedState(
        3, {"up": part(1), "told": StatePart({"classes": torch.tensor([0, -1], dtype=torch.int16)})}
    )
    assert str(memory.state_id) == "3 (32afd2c7)"


def test_the_order_of_parts_and_of_their_keys_does_not_matter() -> None:
    one = SharedState(1, {"up": StatePart({"a": 1, "b": torch.ones(2)}), "down": part(1)})
    other = SharedState(1, {"down": part(1), "up": StatePart({"b": torch.ones(2), "a": 1})})
    assert one.state_id == other.state_id


def test_type_and_shape_of_a_tensor_matter() -> None:
    values = [torch.ones(4), torch.ones(4).double(), torch.ones(2, 2), torch.ones(4).int(), torch.zeros(4)]
    assert len({StatePart({"x": value}).digest for value in values}) == len(values)
    assert StatePart({"x": torch.ones(4, 2).t()}).digest == StatePart({"x": torch.ones(2, 4)}).digest


@given(many())
def test_saved_and_loaded_memories_are_the_same(shared_states: dict[int, SharedState]) -> None:
    again = load_states(decode_state(encode_state(dump_states(shared_states))))
    assert described(again) == described(shared_states)
    assert encode_state(dump_states(again)) == encode_state(dump_states(shared_states))


@given(many())
def test_one_memory_saved_and_loaded_is_the_same(shared_states: dict[int, SharedState]) -> None:
    again = {
        client: SharedState.of(decode_state(encode_state(memory.plain())))
        for client, memory in shared_states.items()
    }
    assert described(again) == described(shared_states)


@given(many())
def test_what_clients_have_in_common_is_saved_once_and_shared_again(
    shared_states: dict[int, SharedState],
) -> None:
    different = {part.digest for memory in shared_states.values() for part in memory.parts.values()}
    plain = dump_states(shared_states)
    assert len(plain["parts"]) == len(different)
    held: dict[bytes, set[int]] = {}
    for memory in load_states(decode_state(encode_state(plain))).values():
        for one in memory.parts.values():
            held.setdefault(one.digest, set()).add(id(one))
    assert all(len(objects) == 1 for objects in held.values())


def test_a_thousand_clients_that_share_weights_are_saved_in_little_more_than_one() -> None:
    weights = StatePart({"weights": torch.ones(10_000)})
    shared_states = {client: SharedState(1, {"reference": weights}) for client in range(1000)}
    assert len(encode_state(dump_states(shared_states))) < 40_000 + 200 * 1000


# Whole runs

LABELS = [name for name, codec in CODECS.items() if codec.remembers and Content.PROBS in codec.codes]
WEIGHTS = [name for name, codec in CODECS.items() if codec.relative and Content.WEIGHTS in codec.codes]
ARMS: list[dict[str, Any]] = [
    *({"method": "dsfl", "codec": name} for name in LABELS),
    *({"method": "fedavg", "codec": name} for name in WEIGHTS),
    {"method": "feddf", "codec": {"up": WEIGHTS[0], "down": WEIGHTS[-1]}},
    {"method": "scarlet", "samples": 40},
]


def ready(arm: dict[str, Any]) -> tuple[Experiment, ReadyArm]:
    wanted = parse(
        {
            "rounds": 4,
            "task": {"name": "digits", "clients": 3, "limit": 120, "public": 60},
            "models": {"clients": ["mlp-s"], "server": "mlp-s"},
            "train": {"batch_size": 16, "optimizer": {"lr": 0.05}},
            "sampling": {"fraction": 0.75, "dropout": 0.3},
            "evaluate": {"every": 4},
            "arms": [arm],
        },
        "test",
    )
    return wanted, prepare(wanted)[1][0]


def links(run: ArmRun) -> bytes:
    return encode_state(dump_states(run.shared_states))


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: f"{arm['method']}-{arm.get('codec', '')}")
def test_a_resumed_run_remembers_what_it_would_have(arm: dict[str, Any], tmp_path: Any) -> None:
    wanted, first = ready(arm)
    with SerialExecutor(wanted, first.task) as executor:
        folder = RunFolder.create(tmp_path / "run", wanted, "test")
        run = start_run(first)
        for _ in range(2):
            play_round(run, first, executor)
            folder.add_round(first, run)
            folder.save(first, run)
        assert any(memory.state_id for memory in run.shared_states.values())
        _, again = ready(arm)
        loaded = RunFolder.open(tmp_path / "run").restore(again)
        assert links(loaded) == links(run)
        for _ in range(2):
            play_round(run, first, executor)
            play_round(loaded, again, executor)
            assert links(loaded) == links(run)
        assert loaded.ledger == run.ledger


def test_a_part_that_lies_elsewhere_is_the_same_and_is_read_when_it_is_used() -> None:
    one, read = StatePart({"a": torch.arange(5), "b": 7}), []
    digest, data = one.digest, one.data

    def load(wanted: bytes) -> bytes:
        read.append(wanted)
        return data

    assert not one.is_elsewhere
    one.lie(load)
    assert one.is_elsewhere
    assert one.digest == digest
    assert read == []
    assert torch.equal(one.value["a"], torch.arange(5))
    assert one.value["b"] == 7
    assert read == [digest], "the value is held until it is packed"
    one.pack()
    assert one.data == data
    assert one.value["b"] == 7
    assert read == [digest] * 3
    assert one == StatePart({"b": 7, "a": torch.arange(5)})


def test_memories_are_packed_and_weights_are_not() -> None:
    parts = {name: StatePart({"x": torch.ones(3)}) for name in ("up", "down", "reference")}
    SharedState(1, parts).pack_memories()
    assert {name: part._value is None for name, part in parts.items()} == {
        "up": True,
        "down": True,
        "reference": False,
    }

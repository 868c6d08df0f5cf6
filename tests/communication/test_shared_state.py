"""What is remembered: how it is named, saved and shared."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedistill import parse
from fedistill.communication.codecs.registry import CODECS
from fedistill.communication.protocol.shared_state import NOTHING, Memory, Part, dump_all, load_all
from fedistill.communication.tensor_specs import Content
from fedistill.config.schema import Experiment
from fedistill.experiment.run_folder import RunFolder
from fedistill.experiment.runner import prepare
from fedistill.federation.arm import ReadyArm, start_run
from fedistill.federation.history import ArmRun
from fedistill.federation.local_executor import Serial
from fedistill.federation.round import play
from fedistill.state import dump, load

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
pool = st.lists(states.map(Part), min_size=1, max_size=4)


@st.composite
def many(draw: Any) -> dict[int, Memory]:
    """Memories of some clients, of parts that some have in common."""
    parts = st.sampled_from(draw(pool))
    memories = st.builds(Memory, st.integers(0, 2**40), st.dictionaries(names, parts, max_size=4))
    found: dict[int, Memory] = draw(st.dictionaries(st.integers(0, 200), memories, max_size=5))
    return found


def described(memories: dict[int, Memory]) -> Any:
    return {
        client: (memory.version, memory.base, {name: part.digest for name, part in memory.parts.items()})
        for client, memory in memories.items()
    }


def part(value: int) -> Part:
    return Part({"classes": torch.tensor([value])})


def test_a_memory_of_nothing_has_no_name() -> None:
    assert NOTHING.base is None
    assert Memory(0, {}).base is None
    assert NOTHING.value("up") == {}


def test_each_thing_in_a_memory_is_in_its_name() -> None:
    memories = [
        Memory(1),
        Memory(2),
        Memory(0, {"up": part(1)}),
        Memory(1, {"up": part(1)}),
        Memory(1, {"up": part(2)}),
        Memory(1, {"down": part(1)}),
        Memory(1, {"up": part(1), "down": part(1)}),
        Memory(1, {"up": part(1), "down": part(2)}),
        Memory(1, {"up": part(2), "down": part(1)}),
    ]
    bases = [memory.base for memory in memories]
    assert None not in bases
    assert len({base.hash for base in bases if base}) == len(memories)
    assert [base.version for base in bases if base] == [memory.version for memory in memories]
    assert all(len(base.hash) == 4 for base in bases if base)


def test_a_name_is_the_same_on_every_machine() -> None:
    """Frames of one release are read by another machine's: this never changes within a format version."""
    memory = Memory(3, {"up": part(1), "told": Part({"classes": torch.tensor([0, -1], dtype=torch.int16)})})
    assert str(memory.base) == "3 (32afd2c7)"


def test_the_order_of_parts_and_of_their_keys_does_not_matter() -> None:
    one = Memory(1, {"up": Part({"a": 1, "b": torch.ones(2)}), "down": part(1)})
    other = Memory(1, {"down": part(1), "up": Part({"b": torch.ones(2), "a": 1})})
    assert one.base == other.base


def test_type_and_shape_of_a_tensor_matter() -> None:
    values = [torch.ones(4), torch.ones(4).double(), torch.ones(2, 2), torch.ones(4).int(), torch.zeros(4)]
    assert len({Part({"x": value}).digest for value in values}) == len(values)
    assert Part({"x": torch.ones(4, 2).t()}).digest == Part({"x": torch.ones(2, 4)}).digest


@given(many())
def test_saved_and_loaded_memories_are_the_same(memories: dict[int, Memory]) -> None:
    again = load_all(load(dump(dump_all(memories))))
    assert described(again) == described(memories)
    assert dump(dump_all(again)) == dump(dump_all(memories))


@given(many())
def test_one_memory_saved_and_loaded_is_the_same(memories: dict[int, Memory]) -> None:
    again = {client: Memory.of(load(dump(memory.plain()))) for client, memory in memories.items()}
    assert described(again) == described(memories)


@given(many())
def test_what_clients_have_in_common_is_saved_once_and_shared_again(memories: dict[int, Memory]) -> None:
    different = {part.digest for memory in memories.values() for part in memory.parts.values()}
    plain = dump_all(memories)
    assert len(plain["parts"]) == len(different)
    held: dict[bytes, set[int]] = {}
    for memory in load_all(load(dump(plain))).values():
        for one in memory.parts.values():
            held.setdefault(one.digest, set()).add(id(one))
    assert all(len(objects) == 1 for objects in held.values())


def test_a_thousand_clients_that_share_weights_are_saved_in_little_more_than_one() -> None:
    weights = Part({"weights": torch.ones(10_000)})
    memories = {client: Memory(1, {"reference": weights}) for client in range(1000)}
    assert len(dump(dump_all(memories))) < 40_000 + 200 * 1000


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
    return dump(dump_all(run.memories))


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: f"{arm['method']}-{arm.get('codec', '')}")
def test_a_resumed_run_remembers_what_it_would_have(arm: dict[str, Any], tmp_path: Any) -> None:
    wanted, first = ready(arm)
    with Serial(wanted, first.task) as runtime:
        folder = RunFolder.create(tmp_path / "run", wanted, "test")
        run = start_run(first)
        for _ in range(2):
            play(run, first, runtime)
            folder.save(first, run)
        assert any(memory.base for memory in run.memories.values())
        _, again = ready(arm)
        loaded = RunFolder.open(tmp_path / "run").load(again)
        assert links(loaded) == links(run)
        for _ in range(2):
            play(run, first, runtime)
            play(loaded, again, runtime)
            assert links(loaded) == links(run)
        assert loaded.ledger == run.ledger

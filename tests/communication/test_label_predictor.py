"""The predictor of labels: what it remembers, that both sides agree, and that it foresees."""

import copy
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedistill.communication.codecs.label_history import LabelHistory
from fedistill.communication.codecs.label_predictor import Predictor
from fedistill.communication.entropy_coding.adaptive_model import blocks
from fedistill.communication.entropy_coding.symbol_io import SymbolReader, SymbolWriter
from fedistill.communication.tensor_specs import Classes, Content, SharedKnowledge, TensorSpec
from fedistill.state import State, decode_state, encode_state


def spec_of(classes: int, rows: Classes | None, count: int = 0, population: int = 0) -> TensorSpec:
    if rows is None:
        return TensorSpec(Content.PROBS, (count, classes))
    return TensorSpec(Content.PROBS, (len(rows), classes), rows=rows, population=population)


def written(labels: Classes, spec: TensorSpec, known: SharedKnowledge) -> tuple[bytes, State]:
    model, writer = Predictor(spec, known), SymbolWriter()
    model.code(writer, labels.copy())
    return writer.finish(), model.memory(labels)


def read(payload: bytes, spec: TensorSpec, known: SharedKnowledge) -> tuple[Classes, State]:
    model, reader = Predictor(spec, known), SymbolReader(payload)
    labels = np.zeros(spec.shape[0], np.int64)
    model.code(reader, labels)
    reader.finish()
    return labels, model.memory(labels)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([2, 3, 10, 46, 1000]),
    st.sampled_from([0, 1, 2, 90, 777]),
    st.sampled_from([0.0, 0.3, 1.0]),
)
@settings(max_examples=60)
def test_both_sides_stay_equal_whatever_is_drawn_told_and_lost(
    seed: int, classes: int, count: int, noise: float
) -> None:
    random = np.random.default_rng(seed)
    population = count + int(random.integers(0, 50))
    truth = random.integers(0, classes, population)
    ours, theirs = State(), State()
    for _ in range(5):
        rows = np.sort(random.choice(population, count, replace=False))
        spec = spec_of(classes, rows, population=population)
        stray = random.random(count) < noise
        labels = np.where(stray, random.integers(0, classes, count), truth[rows])
        other_labels = None if random.random() < 0.3 else random.integers(-1, classes, count)
        payload, after = written(labels, spec, SharedKnowledge(ours, other_labels=other_labels))
        found, heard = read(payload, spec, SharedKnowledge(theirs, other_labels=other_labels))
        np.testing.assert_array_equal(found, labels)
        assert encode_state(after) == encode_state(heard)
        if random.random() < 0.8:  # else the exchange does not happen, and both go on from before
            ours, theirs = after, decode_state(encode_state(heard))


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("lasting", [False, True])
def test_fifty_thousand_labels(classes: int, lasting: bool) -> None:
    random = np.random.default_rng(classes)
    labels = (random.random(50_000) ** 2 * classes).astype(np.int64)
    spec = spec_of(classes, np.arange(50_000) if lasting else None, 50_000, 50_000)
    payload, memory = written(labels, spec, SharedKnowledge())
    found, heard = read(payload, spec, SharedKnowledge())
    np.testing.assert_array_equal(found, labels)
    assert encode_state(memory) == encode_state(heard)
    counts = np.bincount(labels, minlength=classes)
    shares = counts[counts > 0] / len(labels)
    entropy = -(shares * np.log2(shares)).sum() * len(labels) / 8
    # Unknown beforehand: the frequencies have to be learnt, at a few bytes for each class.
    assert entropy * 0.995 < len(payload) < entropy * 1.005 + 4 * classes
    again, _ = written(labels, spec, SharedKnowledge(memory))
    assert len(again) < len(payload) / (20 if lasting else 0.999)


def test_memory_is_a_new_value_each_time() -> None:
    rows = np.arange(20)
    spec = spec_of(3, rows, population=25)
    _, first = written(rows % 3, spec, SharedKnowledge())
    before = copy.deepcopy(first)
    _, second = written((rows + 1) % 3, spec, SharedKnowledge(first, other_labels=rows % 3))
    assert encode_state(first) == encode_state(before)
    assert encode_state(second) != encode_state(first)


def test_no_memory_where_rows_have_no_place() -> None:
    labels = np.arange(30) % 4
    payload, memory = written(labels, spec_of(4, None, 30), SharedKnowledge(other_labels=labels))
    assert memory == {}
    # What is told helps nevertheless.
    assert len(payload) < len(written(labels, spec_of(4, None, 30), SharedKnowledge())[0])


def test_tables_by_hand() -> None:
    """Two samples of three are drawn in each of three messages."""
    memory: State = {}
    for rows, labels, other_labels in (
        ([0, 1], [2, 1], None),
        ([0, 2], [0, 1], [2, -1]),
        ([0, 1], [0, 2], [1, 2]),
    ):
        spec = spec_of(3, np.array(rows), population=3)
        known = SharedKnowledge(memory, other_labels=None if other_labels is None else np.array(other_labels))
        _, memory = written(np.array(labels), spec, known)
    tables: Any = memory["samples"]
    assert tables["last"].tolist() == [0, 2, 1]
    assert tables["previous"].tolist() == [2, 1, -1]
    assert tables["told"].tolist() == [1, 2, -1]
    # Sample 0 changed in its second message of three and differed from what was told in two of them.
    assert tables["history"].tolist() == [0b0011_0010, 0b0000_0001, 0]
    assert {name: table.dtype for name, table in tables.items()} == {
        "last": torch.int16,
        "previous": torch.int16,
        "told": torch.int16,
        "history": torch.uint8,
    }


def test_questions_are_not_asked_twice() -> None:
    def classes(*values: int) -> Classes:
        return np.array(values)

    past = LabelHistory(
        last=classes(-1, 1, 1, 1, 1),
        previous=classes(-1, -1, 2, 0, 2),
        other_labels=classes(1, 1, 2, 2, -1),
        other_labels_before=classes(-1, -1, -1, -1, -1),
        history=classes(0, 0, 0, 0, 0),
    )
    assert past.candidates().tolist() == [[-1, 1, 1, 1, 1], [1, -1, 2, 2, -1], [-1, -1, -1, 0, 2]]


def test_blocks_grow_by_a_third() -> None:
    cuts = [(block.start, block.stop) for block in blocks(200)]
    assert cuts == [(0, 16), (16, 32), (32, 48), (48, 64), (64, 85), (85, 113), (113, 150), (150, 200)]
    assert [block.stop - block.start for block in blocks(100, most=4)] == [16] * 6 + [4]
    assert list(blocks(0)) == []


def test_it_foresees_better_than_changes_alone() -> None:
    """Samples of which some waver; a client that follows what it was told, half of the time."""
    random = np.random.default_rng(0)
    count, classes = 3000, 10
    rows = np.arange(count)
    spec = spec_of(classes, rows, population=count)
    truth, wavers = random.integers(0, classes, count), random.random(count) < 0.25
    memory: State = {}
    labels, sizes, changes = truth, [], []
    for message in range(8):
        other_labels = np.where(random.random(count) < 0.5, (truth + 1) % classes, truth)
        follows = wavers & (random.random(count) < 0.5)
        before, labels = labels, np.where(follows, other_labels, truth)
        payload, memory = written(labels, spec, SharedKnowledge(memory, other_labels=other_labels))
        if message >= 3:
            sizes.append(len(payload))
            changed = (labels != before).mean()
            each = changed * np.log2(9 / changed) + (1 - changed) * np.log2(1 / (1 - changed))
            changes.append(each * count / 8)
    assert sum(sizes) < 0.55 * sum(changes)


def test_space_is_bounded_for_many_classes() -> None:
    """No table over pairs of classes: 50,000 labels of 1,000 classes take a few tables over the samples."""
    labels = np.arange(50_000) % 1000
    spec = spec_of(1000, np.arange(50_000), population=50_000)
    _, memory = written(labels, spec, SharedKnowledge())
    assert len(encode_state(memory)) < 8 * 50_000 + 60_000
    tracemalloc.start()
    written(labels, spec, SharedKnowledge(memory, other_labels=labels[::-1].copy()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 300 * len(labels)

"""Every method through one table: a new method is one row, and is held to all that the others are."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pytest

from fedistill import parse
from fedistill.config.schema import Experiment, TaskConfig
from fedistill.data.build import build_task
from fedistill.data.task import Task
from fedistill.experiment.preflight import examine
from fedistill.experiment.run_folder import RunFolder
from fedistill.federation.arm import ReadyArm, start_run
from fedistill.federation.client import ClientResult
from fedistill.federation.executor import Executor, Job
from fedistill.federation.local_executor import ProcessExecutor, SerialExecutor
from fedistill.federation.round import play_round
from fedistill.methods.registry import METHODS
from fedistill.state import encode_state
from helpers.method_rows import MIXED, ROWS, Row
from helpers.runs import bits, finish

CHANCE = 0.1
LEARNING: dict[str, Any] = {
    "rounds": 6,
    "task": {"limit": 900, "public": 300},
    "train": {"epochs": 2, "batch_size": 16, "optimizer": {"lr": 0.05, "momentum": 0.9}},
    "evaluate": {"every": 6},
}
table = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])


def test_every_method_is_in_the_table() -> None:
    assert {row.method for row in ROWS} == set(METHODS)


def experiment(row: Row, **changes: Any) -> Experiment:
    raw: dict[str, Any] = {
        "rounds": 3,
        "task": {
            "name": "digits",
            "clients": 4,
            "limit": 240,
            "public": 150,
            "partition": {"kind": "dirichlet", "alpha": 0.5},
        },
        "models": row.models,
        "train": {"batch_size": 16, "optimizer": {"lr": 0.05, "momentum": 0.9}},
        "arms": [{"method": row.method, **row.settings}],
    }
    task = {**raw["task"], **changes.get("task", {})}
    return parse({**raw, **changes, "task": task}, "test")


def ready(row: Row, **changes: Any) -> tuple[Experiment, ReadyArm]:
    wanted = experiment(row, **changes)
    task = digits(wanted.task.model_dump_json(), wanted.seed)
    return wanted, ReadyArm.of(wanted.arms[0], wanted, task)


@cache
def digits(task: str, seed: int) -> Task:
    """A task, built once for all methods."""
    return build_task(TaskConfig.model_validate_json(task), seed)


@table
def test_same_seed_same_bits_serial_or_processes(row: Row) -> None:
    wanted, arm = ready(row, sampling={"fraction": 0.75, "dropout": 0.2})
    with SerialExecutor(wanted, arm.task) as executor:
        once = bits(finish(arm, executor))
        assert bits(finish(arm, executor)) == once
    with ProcessExecutor(2, wanted, arm.task) as executor:
        assert bits(finish(arm, executor)) == once
    other, arm = ready(row, seed=1)
    with SerialExecutor(other, arm.task) as executor:
        assert bits(finish(arm, executor)) != once


@table
def test_resumed_ends_as_never_stopped(row: Row, tmp_path: Any) -> None:
    wanted, arm = ready(row, sampling={"fraction": 0.75, "dropout": 0.2})
    with SerialExecutor(wanted, arm.task) as executor:
        whole = bits(finish(arm, executor))
        folder = RunFolder.create(tmp_path / "run", wanted, "test")
        run = start_run(arm)
        for _ in range(2):
            play_round(run, arm, executor)
            folder.save(arm, run)
        _, again = ready(row, sampling={"fraction": 0.75, "dropout": 0.2})
        loaded = RunFolder.open(tmp_path / "run").restore(again)
        assert loaded.round == 2
        assert bits(finish(again, executor, loaded)) == whole


class Spy(Executor):
    """Hands jobs on and keeps the length of every frame that passes, either way."""

    def __init__(self, inner: Executor) -> None:
        self.inner = inner
        self.down: list[int] = []
        self.up: list[int] = []

    def run_clients(self, arm: str, round: int, jobs: Sequence[Job]) -> Iterator[ClientResult]:
        self.down += [len(frame) for _, _, frame in jobs]
        for outcome in self.inner.run_clients(arm, round, jobs):
            self.up.append(len(outcome.frame))
            yield outcome

    def count_correct(self, arm: str, jobs: Sequence[Job]) -> Iterator[list[int]]:
        return self.inner.count_correct(arm, jobs)

    def close(self) -> None:
        self.inner.close()


@table
def test_ledger_is_the_sum_of_frame_lengths(row: Row) -> None:
    wanted, arm = ready(row, sampling={"fraction": 0.75, "dropout": 0.5})
    with Spy(SerialExecutor(wanted, arm.task)) as spy:
        run = finish(arm, spy)
    sums = {way: sum(e.bytes for e in run.ledger.entries if e.direction == way) for way in ("up", "down")}
    assert sums == {"up": sum(spy.up), "down": sum(spy.down)}
    assert run.ledger.total == sums["up"] + sums["down"]
    exchanges = METHODS[row.method].uplink is not None
    assert (run.ledger.total > 0) == exchanges
    needs = "clients" in METHODS[row.method].needs.public
    assert arm.task.public is not None
    assert run.ledger.public == (4 * arm.task.public.bytes if needs else 0)


@table
def test_a_client_that_is_absent_comes_back(row: Row) -> None:
    """With a quarter of the clients a round, each misses rounds between two that it works in."""
    wanted, arm = ready(row, rounds=8, sampling={"fraction": 0.25})
    with SerialExecutor(wanted, arm.task) as executor:
        run = finish(arm, executor)
    if row.method != "server-alone":
        assert all(len(record.clients) == 1 for record in run.records)
        gaps = {record.clients[0] for record in run.records}
        assert len(gaps) > 1
    assert run.records[-1].views


@table
def test_local_training_accumulates(row: Row) -> None:
    """Exchanges in rounds 2, 4 and 5, the last; what a client stays behind, it makes up for there."""
    if METHODS[row.method].uplink is None:
        pytest.skip(f"{row.method}: exchanges nothing, and is refused (tests/test_accumulate.py)")
    wanted, arm = ready(row, rounds=5, arms=[{"method": row.method, **row.settings, "accumulate": 2}])
    with SerialExecutor(wanted, arm.task) as executor:
        run = finish(arm, executor)
    assert [record.local for record in run.records] == [0, 2, 0, 2, 1]
    assert {entry.round for entry in run.ledger.entries if entry.round} == {2, 4, 5}
    assert [bool(record.views) for record in run.records] == [False, True, False, True, True]


@table
def test_adaptive_exchanges_outlast_lost_replies(row: Row) -> None:
    """A round in which nobody was heard says nothing of what exchanges bring: neither never, nor always."""
    if METHODS[row.method].uplink is None:
        pytest.skip(f"{row.method}: exchanges nothing, and is refused (tests/test_accumulate.py)")
    accumulate = {"worth": 1.0, "most": 3}
    wanted, arm = ready(
        row,
        rounds=8,
        sampling={"fraction": 0.5, "dropout": 0.5},
        arms=[{"method": row.method, **row.settings, "accumulate": accumulate}],
    )
    with SerialExecutor(wanted, arm.task) as executor:
        run = finish(arm, executor)
    heard = [set(record.clients) - set(record.dropped) for record in run.records if record.local]
    changes = [record.change for record in run.records if record.local]
    assert len(changes) >= 3
    assert any(not who for who in heard)
    assert all(change is None for change, who in zip(changes, heard, strict=True) if not who)
    assert any(change is not None for change in changes)
    assert sum(record.local for record in run.records) == 8


@table
def test_lost_replies_change_nothing_at_the_server(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    if row.method == "server-alone":
        pytest.skip("server-alone: no replies, so none can be lost")
    wanted, arm = ready(row)
    with SerialExecutor(wanted, arm.task) as executor:
        run = start_run(arm)
        play_round(run, arm, executor)
        before = encode_state(run.server)
        dropouts = "fedistill.federation.round.sample_dropouts"
        monkeypatch.setattr(dropouts, lambda settings, clients, seed, round: clients)
        record = play_round(run, arm, executor)
        assert encode_state(run.server) == before
        assert record.dropped == record.clients == [0, 1, 2, 3]
        monkeypatch.undo()
        after = play_round(run, arm, executor)
        assert after.dropped == []
        assert METHODS[row.method].uplink is None or encode_state(run.server) != before


@table
def test_mixed_models_run_or_are_refused_with_a_fix(row: Row) -> None:
    wanted, arm = ready(row, rounds=1, models=MIXED)
    errors = [str(f) for f in examine(wanted, arm.task, [arm]) if f.level == "error"]
    if row.mixes:
        assert errors == []
        with SerialExecutor(wanted, arm.task) as executor:
            assert finish(arm, executor).records[0].views
    else:
        assert len(errors) == 1
        assert row.refusal in errors[0]
        assert "models = {" in errors[0]


@table
def test_it_learns(row: Row) -> None:
    wanted, arm = ready(row, **LEARNING)
    with ProcessExecutor(2, wanted, arm.task) as executor:
        views = finish(arm, executor).records[-1].views
    view, margin = row.learns
    assert views[view] >= CHANCE + margin
    if row.beats_local is not None:
        control, alone = ready(ROWS[0], **LEARNING)
        with ProcessExecutor(2, control, alone.task) as executor:
            local = finish(alone, executor).records[-1].views
        assert views["client@global"] >= local["client@global"] + row.beats_local

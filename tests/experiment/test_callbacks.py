"""Callbacks: what is told, when, and what becomes of a run whose callback fails."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

import fedistill
from fedistill.errors import RuntimeFailure
from helpers.recorder import Recorder
from helpers.small import write_small

ROUNDS = [
    *("fedavg 0 1/2", "fedavg 0 2/2", "fedavg 0 done"),
    *("dsfl 0 1/2", "dsfl 0 2/2", "dsfl 0 done"),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("callbacks"), "fedavg", "dsfl")


@pytest.fixture(scope="module")
def told(file: Path) -> Recorder:
    """A whole run in one process."""
    recorder = Recorder()
    fedistill.compare(fedistill.load(file), file.parent / "whole", callbacks=[recorder])
    return recorder


def test_a_run_is_told_from_its_start_to_its_end(told: Recorder, file: Path) -> None:
    assert told.told == ["start", *ROUNDS, "end"]
    assert (told.start.path, told.start.resumed) == (file.parent / "whole", False)
    assert told.start.experiment == fedistill.load(file.parent / "whole" / "experiment.toml")


def test_what_is_told_stands_in_the_results(told: Recorder, file: Path) -> None:
    results = json.loads((file.parent / "whole" / "results.json").read_text())
    assert told.results == results
    assert told.outcomes == results["arms"]
    rounds = [entry for arm in results["arms"] for entry in arm["rounds"]]
    assert [{**entry, "bytes_total": None} for entry in rounds] == [
        {**record, "bytes_total": None} for record in told.records
    ]
    sent = fedistill.Run(file.parent / "whole").rounds()["bytes_total"]
    assert [record["bytes_total"] for record in told.records] == sent.tolist()


def test_worker_processes_change_nothing_and_call_nothing(told: Recorder, file: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    apart = fedistill.load(file, ["runtime.kind=processes", "runtime.workers=2"])
    fedistill.compare(apart, tmp_path / "run", callbacks=[recorder])
    assert recorder.told == told.told
    assert recorder.process == os.getpid()
    assert [record["views"] for record in recorder.records] == [record["views"] for record in told.records]


def test_each_seed_is_told_and_the_run_once(file: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    short = fedistill.load(file, ["rounds=1", "seeds=2"])
    run = fedistill.compare(short, tmp_path / "run", callbacks=[recorder])
    each = [(name, seed) for seed in (0, 1) for name in ("fedavg", "dsfl")]
    rounds = [line for name, seed in each for line in (f"{name} {seed} 1/1", f"{name} {seed} done")]
    assert recorder.told == ["start", *rounds, "end"]
    assert recorder.start.path == tmp_path / "run"
    assert recorder.start.experiment.seeds == [0, 1]
    assert recorder.results == run.results


@pytest.mark.parametrize(
    ("fail_at", "place", "left"),
    [
        ("start", "on_run_start failed", ["start", *ROUNDS, "end"]),
        ("fedavg 0 1/2", "on_round_end failed after round 1 of arm 'fedavg'", ["start", *ROUNDS[1:], "end"]),
        ("fedavg 0 done", "on_arm_end failed after arm 'fedavg'", ["start", *ROUNDS[3:], "end"]),
        ("end", "on_run_end failed", ["start", "end"]),
    ],
    ids=["start", "round", "arm", "end"],
)
def test_a_callback_that_fails_leaves_a_run_to_resume(
    fail_at: str, place: str, left: list[str], told: Recorder, file: Path, tmp_path: Path
) -> None:
    """And what was told is not told again."""
    broken, beside = Recorder(fail_at), Recorder()
    with pytest.raises(RuntimeFailure) as caught:
        fedistill.compare(fedistill.load(file), tmp_path / "run", callbacks=[broken, beside])
    assert str(caught.value) == f"callback Recorder.{place}: OSError: the disk of the tracker is full"
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__notes__ == [
        f"Finished rounds are kept; resume with: fedistill.resume({str(tmp_path / 'run')!r})"
    ]
    assert beside.told == broken.told, "the others are told to the end"
    if fail_at != "start":
        assert broken.told[-1] == "end", "so that each can close what it has opened"
    again = Recorder()
    run = fedistill.resume(tmp_path / "run", callbacks=[again])
    assert again.told == left
    assert again.start.resumed
    views = [entry["views"] for name in run.arms for entry in run[name].rounds]
    assert views == [record["views"] for record in told.records]


def test_a_seed_in_which_a_callback_fails_is_resumed(file: Path, tmp_path: Path) -> None:
    short = fedistill.load(file, ["rounds=1", "seeds=2"])
    broken = Recorder("fedavg 1 1/1")
    with pytest.raises(RuntimeFailure, match="after round 1 of arm 'fedavg'"):
        fedistill.compare(short, tmp_path / "run", callbacks=[broken])
    assert broken.told[-1] == "end"
    again = Recorder()
    run = fedistill.resume(tmp_path / "run", callbacks=[again])
    assert again.told == ["start", "dsfl 1 1/1", "dsfl 1 done", "end"]
    assert [run[name].status for name in run.arms] == ["done", "done"]


def test_an_arm_that_fails_is_told(file: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    wanted = fedistill.load(file, ["rounds=1", "arms.fedavg.train.optimizer.lr=1e30"])
    fedistill.compare(wanted, tmp_path / "run", callbacks=[recorder])
    assert recorder.told == ["start", "fedavg 0 failed", "dsfl 0 1/1", "dsfl 0 done", "end"]
    assert recorder.outcomes[0]["error"].startswith("round 1: 0 of 2 clients sent a valid reply")
    assert "lower train.optimizer.lr" in recorder.outcomes[0]["error"]


def test_ctrl_c_in_a_callback_is_ctrl_c(file: Path, tmp_path: Path) -> None:
    class Impatient(Recorder):
        def on_round_end(self, arm: Any, record: Any) -> None:
            raise KeyboardInterrupt

    impatient = Impatient()
    with pytest.raises(KeyboardInterrupt):
        fedistill.compare(fedistill.load(file), tmp_path / "run", callbacks=[impatient])
    assert impatient.told == ["start", "end"]
    assert [arm["status"] for arm in impatient.results["arms"]] == ["stopped", "stopped"]


def test_a_callback_must_be_one(file: Path, tmp_path: Path) -> None:
    wanted: Any = [Recorder]
    with pytest.raises(TypeError, match=r"is not an instance of fedistill\.Callback: write Recorder\(\)$"):
        fedistill.compare(fedistill.load(file), tmp_path / "run", callbacks=wanted)
    assert not (tmp_path / "run").exists()

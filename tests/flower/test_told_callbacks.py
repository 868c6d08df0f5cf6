"""Callbacks of a run on a network are told what those of a run in this process are."""

from pathlib import Path
from typing import Any

import pytest

from fedistill.config.schema import Experiment
from fedistill.experiment.callbacks import Callbacks
from fedistill.experiment.progress import Watcher
from fedistill.experiment.results import ResultsJson
from fedistill.experiment.run_folder import RunFolder
from fedistill.experiment.runner import resume_experiment, run_experiment
from fedistill.federation.local_executor import start_executor
from fedistill.flower import local_trial
from fedistill.flower.event_tail import EventTail
from helpers.flower_trial import Watch, experiment
from helpers.recorder import Recorder

ARMS = [{"method": "fedavg"}, {"method": "dsfl"}]
ROUNDS = [*("fedavg 0 1/2", "fedavg 0 2/2", "fedavg 0 done"), *("dsfl 0 1/2", "dsfl 0 2/2", "dsfl 0 done")]


class Network:
    """Stands for a network: what its server writes is followed from without, as it is there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stop_after: tuple[str, int] | None = None
        monkeypatch.setattr(local_trial, "_play", self._play)

    def _play(self, wanted: Experiment, out: Path, watcher: Watcher) -> ResultsJson:
        news = EventTail(out, watcher)
        server = Watch()
        if self.stop_after is not None:
            arm, round = self.stop_after
            server = Watch(lambda number: self._stop(out, arm) if number == round else None)
        try:
            if RunFolder(out).begun:
                return resume_experiment(out, server, lambda one, task: start_executor(one, task))
            return run_experiment(wanted, out, "test", server)
        finally:
            news.tell()

    def _stop(self, out: Path, arm: str) -> None:
        if RunFolder(out).last_round(arm):
            self.stop_after = None
            raise KeyboardInterrupt


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    return Network(monkeypatch)


def untimed(outcomes: list[Any]) -> list[Any]:
    """Without what differs between equal runs."""
    rounds = [[{**entry, "seconds": 0} for entry in outcome["rounds"]] for outcome in outcomes]
    return [{**outcome, "rounds": played} for outcome, played in zip(outcomes, rounds, strict=True)]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    recorder = Recorder()
    out = tmp_path_factory.mktemp("local") / "run"
    wanted = experiment(arms=ARMS, rounds=2)
    run_experiment(wanted, out, "test", Watch(), callbacks=Callbacks([recorder]))
    return recorder


def test_they_are_told_from_the_start_to_the_end(network: Network, local: Recorder, tmp_path: Path) -> None:
    recorder, watch = Recorder(), Watch()
    wanted = experiment(arms=ARMS, rounds=2)
    results = local_trial.run_trial(wanted, tmp_path / "run", "test", watch, Callbacks([recorder]))
    assert recorder.told == local.told == ["start", *ROUNDS, "end"]
    assert recorder.start.experiment == RunFolder(tmp_path / "run").experiment()
    assert not recorder.start.resumed
    same = [{**record, "seconds": 0} for record in recorder.records]
    assert same == [{**record, "seconds": 0} for record in local.records]
    assert untimed(recorder.outcomes) == untimed(local.outcomes)
    assert recorder.results == results
    assert sorted(watch.records) == [1, 2], "who looks on is told as well"


def test_a_resumed_run_tells_what_it_adds(network: Network, local: Recorder, tmp_path: Path) -> None:
    out, wanted = tmp_path / "run", experiment(arms=ARMS, rounds=2)
    network.stop_after = "dsfl", 1
    first, again = Recorder(), Recorder()
    with pytest.raises(KeyboardInterrupt):
        local_trial.run_trial(wanted, out, "test", Watch(), Callbacks([first]))
    assert first.told == ["start", *ROUNDS[:4], "end"]
    assert [arm["status"] for arm in first.results["arms"]] == ["done", "stopped"]
    (out / "flower" / "app").mkdir(parents=True, exist_ok=True)
    RunFolder(out).session.write_text("a session")
    local_trial.resume_trial(out, Watch(), Callbacks([again]))
    assert again.told == ["start", *ROUNDS[4:], "end"]
    assert again.start.resumed
    assert untimed(again.outcomes) == untimed(local.outcomes[1:])
    sent = [record["bytes_total"] for record in (*first.records, *again.records)]
    assert sent == [record["bytes_total"] for record in local.records]


def test_an_arm_that_fails_is_told(network: Network, tmp_path: Path) -> None:
    recorder = Recorder()
    broken = [{"method": "fedavg", "train": {"optimizer": {"lr": 1e30}}}, {"method": "dsfl"}]
    wanted = experiment(arms=broken, rounds=1)
    local_trial.run_trial(wanted, tmp_path / "run", "test", Watch(), Callbacks([recorder]))
    assert recorder.told == ["start", "fedavg 0 failed", "dsfl 0 1/1", "dsfl 0 done", "end"]
    assert "lower train.optimizer.lr" in recorder.outcomes[0]["error"]


def test_the_run_is_told_once_and_each_seed_as_it_is_played(network: Network, tmp_path: Path) -> None:
    recorder = Recorder()
    wanted = experiment(arms=ARMS[:1], rounds=1, seeds=2)
    local_trial.run_trial(wanted, tmp_path / "run", "test", Watch(), Callbacks([recorder]))
    assert recorder.told == [
        "start",
        *(f"fedavg {seed} {what}" for seed in (0, 1) for what in ("1/1", "done")),
        "end",
    ]

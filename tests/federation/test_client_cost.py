"""What an arm costs its clients, worked out by hand for mlp-s and cnn-s on images of 8 by 8 pixels."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedistill.config.link import PROFILES, Link
from fedistill.experiment.report import link_times
from fedistill.experiment.results import ResultsJson
from fedistill.experiment.run_folder import RunFolder
from fedistill.experiment.runner import resume_experiment, run_experiment
from fedistill.experiment.seeds import run_seeds
from fedistill.experiment.summary import arm_json
from fedistill.federation.client import Stopwatch
from fedistill.federation.history import RoundRecord
from helpers.bad_replies import changing, damaged, only
from helpers.runs import finished, on_digits
from helpers.watchers import Watcher

MLP_S, MLP_S_BACK = 4736, 5376
"""Forward and backward pass of one image; see `training/test_cost.py`."""
CNN_S, CNN_S_BACK = 84_224, 84_224 + 73_728 + 1280
TASK = {"name": "digits", "clients": 4, "limit": 120, "public": 40}


def table(method: str, **more: Any) -> dict[str, Any]:
    return {
        "rounds": 3,
        "task": TASK,
        "models": {"clients": ["mlp-s"], "server": "mlp-s"},
        "train": {"epochs": 2, "batch_size": 16},
        "runtime": {"kind": "serial"},
        "arms": [{"method": method, **more}],
    }


def of_rounds(method: str, **more: Any) -> list[list[int] | None]:
    _, run = finished(table(method, **more))
    return [record.multiply_adds for record in run.records]


def test_weights_are_trained_and_nothing_else() -> None:
    arm, run = finished(table("fedavg"))
    expected = [2 * info.samples * (MLP_S + MLP_S_BACK) for info in arm.federation.clients]
    assert [record.multiply_adds for record in run.records] == [expected] * 3
    # To average is no multiply-add of a loop over samples.
    assert [record.server_multiply_adds for record in run.records] == [0] * 3
    assert sum(info.samples for info in arm.federation.clients) == 120
    found = arm_json(arm, run, "done", None)
    assert found["multiply_adds"] == 3 * 2 * 120 * (MLP_S + MLP_S_BACK)
    assert [entry["multiply_adds"] for entry in found["rounds"]] == [2 * 120 * (MLP_S + MLP_S_BACK)] * 3
    # Weights and gradients; images, activations, probabilities and labels of a batch.
    assert found["memory"] == 4 * 2 * 4810 + 16 * 4 * (64 + 64 + 10) + 16 * 8 + 4
    assert [entry["memory"] for entry in found["rounds"]] == [found["memory"]] * 3


def test_larger_models_are_seen_in_the_figure_of_the_client_that_has_them() -> None:
    arm, run = finished(table("local") | {"models": {"clients": ["mlp-s", "cnn-s"], "server": "mlp-s"}})
    samples = [info.samples for info in arm.federation.clients]
    each = [MLP_S + MLP_S_BACK, CNN_S + CNN_S_BACK] * 2
    (found,) = {tuple(record.multiply_adds or []) for record in run.records}
    assert list(found) == [2 * count * one for count, one in zip(samples, each, strict=True)]
    memory = run.records[0].memory
    assert memory is not None
    assert memory[0] == memory[2] < memory[1] == memory[3]
    assert arm_json(arm, run, "done", None)["memory"] == memory[1]


def test_labels_are_predicted_and_distilled() -> None:
    arm, run = finished(table("dsfl", distill_epochs=3))
    trained = [2 * info.samples * (MLP_S + MLP_S_BACK) for info in arm.federation.clients]
    predicted, distilled = 40 * MLP_S, 3 * 40 * (MLP_S + MLP_S_BACK)
    # Before round 1 there is nothing to distil.
    assert [record.multiply_adds for record in run.records] == [
        [one + predicted for one in trained],
        *([[one + predicted + distilled for one in trained]] * 2),
    ]
    assert [record.server_multiply_adds for record in run.records] == [distilled] * 3


def test_rounds_that_an_exchange_stands_for_are_in_it() -> None:
    each = of_rounds("fedavg")
    assert of_rounds("fedavg", accumulate=3) == [[], [], [3 * one for one in each[0] or []]]


def test_a_client_that_only_takes_statistics_trains_nothing() -> None:
    arm, run = finished(table("gaussian", width=8))
    found = arm_json(arm, run, "done", None)
    assert found["memory"] == 0
    first, *others = [record.multiply_adds or [] for record in run.records]
    assert all(first)
    assert not any(one for played in others for one in played)


def test_a_server_that_is_alone_leaves_its_clients_alone() -> None:
    arm, run = finished(table("server-alone"))
    found = arm_json(arm, run, "done", None)
    assert (found["multiply_adds"], found["memory"]) == (0, 0)
    assert [record.multiply_adds for record in run.records] == [[]] * 3
    assert [record.server_multiply_adds for record in run.records] == [2 * 40 * (MLP_S + MLP_S_BACK)] * 3


def test_work_whose_reply_is_lost_or_refused_has_been_done(tmp_path: Path) -> None:
    asked = on_digits({"method": "fedavg"}, clients=4, rounds=2)
    start = changing(only([2], [1], damaged))
    results = run_experiment(asked, tmp_path / "run", "test", Watcher(), start)
    (whole,) = run_experiment(asked, tmp_path / "whole", "test", Watcher())["arms"]
    assert results["arms"][0]["rounds"][1]["missing"].keys() == {"1"}
    assert results["arms"][0]["multiply_adds"] == whole["multiply_adds"] > 0


@pytest.mark.parametrize("runtime", [{"kind": "serial"}, {"kind": "processes", "workers": 2}])
def test_every_runtime_and_a_resumed_run_count_the_same(tmp_path: Path, runtime: dict[str, Any]) -> None:
    arms = ({"method": "dsfl"}, {"method": "fedprox"}, {"method": "fedproto"})
    sampling = {"fraction": 0.5, "dropout": 0.2}
    task = {**TASK, "clients": 4}
    expected = run_experiment(
        on_digits(*arms, task=task, sampling=sampling, rounds=4), tmp_path / "one", "test", Watcher()
    )

    class Stop(Watcher):
        def round(self, name: str, record: RoundRecord) -> None:
            if (name, record.round) == ("fedprox", 2):
                raise KeyboardInterrupt

    asked = on_digits(*arms, task=task, sampling=sampling, rounds=4, runtime=runtime)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(asked, tmp_path / "two", "test", Stop())
    assert costs(resume_experiment(tmp_path / "two", Watcher())) == costs(expected)
    for arm in ("dsfl", "fedprox", "fedproto"):
        one, two = (RunFolder(tmp_path / name).records(arm) for name in ("one", "two"))
        assert [(r.multiply_adds, r.memory) for r in one] == [(r.multiply_adds, r.memory) for r in two]
        assert [r.server_multiply_adds for r in one] == [r.server_multiply_adds for r in two]
        times = [link_times(PROFILES["3g"], records) for records in (one, two)]
        assert times[0] == times[1] != []


def costs(results: ResultsJson) -> list[Any]:
    return [
        (
            arm["multiply_adds"],
            arm["memory"],
            [(one["multiply_adds"], one["memory"]) for one in arm["rounds"]],
        )
        for arm in results["arms"]
    ]


def test_a_run_that_began_before_costs_were_counted_says_nothing_of_its_sum() -> None:
    arm, run = finished(table("fedavg"))
    earlier = run.records[0].to_json()
    del earlier["multiply_adds"], earlier["memory"]
    run.records[0] = RoundRecord.from_json(earlier)
    assert link_times(PROFILES["3g"], run.records) == []
    assert run.records[0] == replace(run.records[0], multiply_adds=None, memory=None)
    found = arm_json(arm, run, "done", None)
    assert "multiply_adds" not in found
    assert "memory" not in found
    assert ["multiply_adds" in entry for entry in found["rounds"]] == [False, True, True]


def test_simulated_time_is_that_of_bytes_and_counted_work() -> None:
    _, run = finished(table("dsfl") | {"task": TASK | {"clients": 1}})
    link = Link(up=8e3, down=4e3, latency=0.5, compute=1e6, server=2e6)
    spent, expected = 0.0, []
    for record in run.records:
        up, down = (run.ledger.kinds(record.round, way) for way in ("up", "down"))
        (work,), served = record.multiply_adds or [0], record.server_multiply_adds or 0
        spent += sum(up.values()) / 1e3 + 0.5 + work / 1e6 + served / 2e6
        spent += sum(down.values()) / 500 + 0.5 if down else 0.0
        expected.append(spent)
    assert link_times(link, run.records) == pytest.approx(expected)


def test_results_of_several_seeds_have_them_for_each(tmp_path: Path) -> None:
    asked = on_digits({"method": "fedavg"}, clients=4, rounds=1, seeds=[0, 1])
    results = run_seeds(asked, tmp_path / "run", "test", Watcher())
    assert "seeds" in results
    (arm,) = results["arms"]
    assert [one["multiply_adds"] for one in arm["seeds"]] == [
        one["rounds"][0]["multiply_adds"] for one in arm["seeds"]
    ]
    assert all(one["memory"] > 0 for one in arm["seeds"])


def test_a_stopwatch_counts_its_own_stretches_and_what_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: 1 s until it is stopped, 0.25 s of a common step, and 2 s after it goes on."""
    now = iter([10.0, 11.0, 50.0, 52.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    watch = Stopwatch()
    watch.stop()
    assert watch.seconds() == 1.0
    watch.add(0.25)
    watch.start()
    assert watch.seconds() == 3.25

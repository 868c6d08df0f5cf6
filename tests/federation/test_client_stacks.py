"""Runs with `runtime.fast`: as those without but for rounding, and equal where nothing is stacked."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fedistill import parse
from fedistill.config.schema import Experiment
from fedistill.errors import ExperimentError, TrainingError
from fedistill.experiment.changes import check_changes
from fedistill.experiment.preflight import examine
from fedistill.experiment.run_folder import RunFolder
from fedistill.experiment.runner import prepare, resume_experiment, run_experiment
from fedistill.federation.history import ArmRun, RoundRecord
from fedistill.federation.local_executor import _that_stack, start_executor
from fedistill.methods.weights.fedavg import FedAvg
from fedistill.testing.runs import bits, finish, require_same
from helpers.runs import finished
from helpers.watchers import Watcher

FAST, EXACT = {"kind": "serial", "fast": True}, {"kind": "serial"}
TWO = {"kind": "processes", "workers": 2, "fast": True}


def table(runtime: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Eighteen clients with unlike numbers of samples: a whole stack and two more."""
    raw: dict[str, Any] = {
        "rounds": 2,
        "task": {
            "name": "digits",
            "clients": 18,
            "limit": 260,
            "public": 40,
            "partition": {"kind": "dirichlet", "alpha": 1.0},
        },
        "models": {"clients": ["mlp-s"], "server": "mlp-s"},
        "train": {"batch_size": 8, "optimizer": {"lr": 0.05, "momentum": 0.9}},
        "arms": [{"method": "fedavg"}],
    }
    return {**raw, **more, "runtime": runtime}


def both(**more: Any) -> tuple[ArmRun, ArmRun]:
    return finished(table(EXACT, **more))[1], finished(table(FAST, **more))[1]


@pytest.mark.parametrize(
    ("more", "alone"),
    [
        ({}, set()),
        (
            {
                "sampling": {"fraction": 0.5, "dropout": 0.3},
                "attack": {"kind": "label-flip", "clients": [2, 5, 7]},
                "arms": [{"method": "fedavg", "codec": {"up": "int8", "down": "fp16"}}],
            },
            {2, 5, 7},
        ),
        (
            {"arms": [{"method": "feddf"}], "models": {"clients": ["mlp-s", "cnn-s"], "server": "mlp-s"}},
            {*range(1, 18, 2), 16},  # the last one of its stack has nobody to be trained with
        ),
    ],
    ids=["all", "codecs, liars, some away", "two models"],
)
def test_results_are_those_of_the_exact_mode_but_for_rounding(more: dict[str, Any], alone: set[int]) -> None:
    exact, fast = both(**more)
    # A number that is off by one bit may be rounded to the other side by a codec.
    off = 2e-3 if "attack" in more else 2e-5
    torch.testing.assert_close(fast.server.model.weights, exact.server.model.weights, rtol=1e-3, atol=off)
    assert exact.ledger == fast.ledger
    for one, other in zip(exact.records, fast.records, strict=True):
        assert (one.stacked, other.stacked) == (0, len({*one.clients} - alone))
        assert (one.clients, one.dropped, one.missing) == (other.clients, other.dropped, other.missing)
        assert (one.multiply_adds, one.memory) == (other.multiply_adds, other.memory)
        assert sum(other.work) <= other.seconds


@pytest.mark.parametrize(
    "more",
    [{"arms": [{"method": "fedprox"}]}, {"models": {"clients": ["cnn-s"], "server": "cnn-s"}}],
    ids=["method", "model"],
)
def test_what_cannot_be_stacked_has_the_bits_of_the_exact_mode(more: dict[str, Any]) -> None:
    exact, fast = both(**more)
    require_same(fast, bits(exact), "nothing was stacked")
    assert [record.stacked for record in fast.records] == [0, 0]


def test_clients_with_much_longer_batches_are_trained_apart() -> None:
    """Shorter batches are filled up: with 16 samples, three of 40 and one of 100 there are two groups."""
    rows = iter(range(1000))
    partition = {
        "kind": "indices",
        "clients": [[next(rows) for _ in range(size)] for size in (100, 40, 16, 40, 16, 40)],
    }
    task = {"name": "digits", "clients": 6, "partition": partition, "public": 40}
    train = {"batch_size": 128, "optimizer": {"lr": 0.05}}
    exact, fast = both(task=task, train=train)
    torch.testing.assert_close(fast.server.model.weights, exact.server.model.weights, rtol=1e-3, atol=2e-5)
    assert [record.stacked for record in fast.records] == [5, 5]


def test_only_clients_that_are_trained_together_are_handed_out_together() -> None:
    arms = [{"method": "fedavg"}, {"method": "fedprox"}]
    experiment = parse(table(TWO, arms=arms), "test")
    task, _ = prepare(experiment)
    assert _that_stack(experiment, task) == {"fedavg"}


def test_a_method_that_changes_the_step_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a subclass of a user's own would."""
    monkeypatch.delattr(FedAvg, "trains_received")
    monkeypatch.setattr(FedAvg.__mro__[1], "trains_received", True)
    assert [record.stacked for record in finished(table(FAST))[1].records] == [0, 0]


def test_every_number_of_processes_gives_the_same_bits() -> None:
    expected = bits(finished(table(FAST))[1])
    experiment = parse(table(TWO), "test")
    task, (arm,) = prepare(experiment)
    with start_executor(experiment, task) as executor:
        run = finish(arm, executor)
    require_same(run, expected, "stacks do not depend on the processes")
    assert [record.stacked for record in run.records] == [18, 18]


def test_a_resumed_run_gives_the_same_bits(tmp_path: Path) -> None:
    asked = parse(table(FAST), "test")
    run_experiment(asked, tmp_path / "whole", "test", Watcher())

    class Stop(Watcher):
        def round(self, name: str, record: RoundRecord) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiment(asked, tmp_path / "two", "test", Stop())
    results = resume_experiment(tmp_path / "two", Watcher())
    _, (arm,) = prepare(asked)
    one, two = (RunFolder(tmp_path / name).restore(arm) for name in ("whole", "two"))
    require_same(two, bits(one), "a run in stacks is resumed")
    assert [found["stacked"] for found in results["arms"][0]["rounds"]] == [18, 18]


@pytest.mark.parametrize("runtime", [EXACT, FAST])
def test_a_client_whose_training_fails_is_named(runtime: dict[str, Any]) -> None:
    train = {"epochs": 20, "batch_size": 4, "optimizer": {"name": "sgd", "lr": 1e30}}
    with pytest.raises(TrainingError, match=r"client 0.*the loss is (nan|inf)"):
        finished(table(runtime, train=train))


def findings(**more: Any) -> list[str]:
    experiment = parse(table(more.pop("runtime", FAST), **more), "test")
    task, arms = prepare(experiment)
    return [str(one) for one in examine(experiment, task, arms) if "runtime.fast" in str(one)]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "arm 'fedavg': runtime.fast: small models are trained together, up to 16 at a time"),
        ({"arms": [{"method": "dsfl"}]}, "since clients of method dsfl do more than"),
        ({"models": {"clients": ["cnn-s"], "server": "cnn-s"}}, "since cnn-s cannot be stacked"),
        ({"arms": [{"method": "fedavg", "secure_sums": {}}]}, "since secure sums are set"),
        ({"train": {"early_stopping": {}, "epochs": 3}}, "since train.early_stopping is for one"),
    ],
)
def test_the_doctor_tells_who_is_stacked(more: dict[str, Any], said: str) -> None:
    (found,) = findings(**more)
    assert said in found
    assert findings(**more, runtime=EXACT) == []


@pytest.mark.parametrize(
    ("more", "said"),
    [({"fast": True}, r"fast \(false, now true\)"), ({"server_threads": 2}, r"server_threads \(1, now 2\)")],
)
def test_a_run_is_resumed_as_it_began(more: dict[str, Any], said: str) -> None:
    def changed(**more: Any) -> Experiment:
        return parse(table({"kind": "serial", **more}), "test")

    assert not check_changes(changed(**more), changed(**more), Path("experiment.toml"))
    with pytest.raises(ExperimentError, match=rf"runtime\.{said}"):
        check_changes(changed(), changed(**more), Path("experiment.toml"))

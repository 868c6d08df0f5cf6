"""A finished run goes on with one site more: a new run from the saved model, as docs/evaluation.md has it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedistill import parse
from fedistill.config.schema import Experiment
from fedistill.data.task import Task
from fedistill.experiment.runner import prepare, run_experiment
from fedistill.federation.arm import ReadyArm
from fedistill.federation.local_executor import SerialExecutor
from fedistill.federation.round import play_round
from fedistill.federation.setup import start_run
from fedistill.models.registry import build_model
from fedistill.rng import SERVER
from fedistill.training.model_state import flatten
from helpers.files import Files
from helpers.watchers import Watcher


def experiment(files: list[str], test: str, **models: Any) -> Experiment:
    tables = {
        "rounds": 1,
        "task": {"format": "parquet", "train": files, "test": test, "own_test_share": 0.0},
        "models": {"clients": ["mlp-s"], "server": "mlp-s", **models},
        "train": {"epochs": 1},
        "runtime": {"kind": "serial"},
        "arms": [{"method": "fedavg"}],
    }
    return parse(tables, "test")


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three hospitals of a first run, a fourth that came later, and the test set."""
    files = Files(tmp_path_factory.mktemp("sites"))
    sizes = {"north": 30, "south": 24, "east": 18, "west": 26, "test": 12}
    return [
        files.images(f"{name}.parquet", files.pixels(size, seed=seed), labels=["a", "b"] * (size // 2))
        for seed, (name, size) in enumerate(sizes.items())
    ]


@pytest.fixture(scope="module")
def first(sites: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("first") / "run"
    run_experiment(experiment(sites[:3], sites[-1]), out, "test", Watcher())
    return out


@pytest.fixture(scope="module")
def wanted(sites: list[str], first: Path) -> Experiment:
    return experiment(sites[:4], sites[-1], start=str(first))


@pytest.fixture(scope="module")
def again(wanted: Experiment) -> tuple[Task, ReadyArm]:
    task, (arm,) = prepare(wanted)
    return task, arm


def by_name(task: Task) -> dict[str, Any]:
    return dict(zip(task.client_names, task.clients, strict=True))


def test_the_sites_of_the_first_run_have_what_they_had(
    sites: list[str], again: tuple[Task, ReadyArm]
) -> None:
    before, _ = prepare(experiment(sites[:3], sites[-1]))
    old, new = by_name(before), by_name(again[0])
    assert new.keys() - old.keys() == {"west"}
    for name, data in old.items():
        assert torch.equal(new[name].samples, data.samples)
        assert torch.equal(new[name].labels, data.labels)


def test_the_server_goes_on_where_the_first_run_ended(first: Path, again: tuple[Task, ReadyArm]) -> None:
    _, arm = again
    model = build_model("mlp-s", arm.signature("mlp-s"), 5, SERVER)
    model.load_state_dict(load_file(first / "models" / "fedavg" / "server" / "model.safetensors"))
    assert torch.equal(start_run(arm).server.model.weights, flatten(model))


def test_the_new_site_takes_part_like_any_other(wanted: Experiment, again: tuple[Task, ReadyArm]) -> None:
    """It is sent what all are sent, and its work counts by its samples as theirs does."""
    task, arm = again
    run = start_run(arm)
    with SerialExecutor(wanted, task) as executor:
        record = play_round(run, arm, executor)
    new = task.client_names.index("west")
    down = {entry.client: entry.bytes for entry in record.traffic if entry.direction == "down"}
    assert record.clients == [0, 1, 2, 3]
    assert len(set(down.values())) == 1
    assert arm.federation.samples[new] == 26

"""Models of runs that were stopped or have failed: those after the last complete round."""

from pathlib import Path
from typing import Any

import pytest
import torch

import fedistill
from fedistill.config.schema import Experiment
from fedistill.errors import TrainingError
from fedistill.experiment import runner
from fedistill.experiment.api import Run
from fedistill.experiment.runner import resume_experiment, run_experiment
from fedistill.federation.history import RoundRecord
from helpers.runs import on_digits
from helpers.watchers import Watcher


@pytest.fixture
def experiment() -> Experiment:
    arms = [{"method": "local"}, {"method": "dsfl"}]
    return on_digits(*arms, rounds=4, models={"clients": ["mlp-s"], "server": "mlp-s"})


def stop_in(arm: str, round: int) -> Watcher:
    def stop(name: str, record: RoundRecord) -> None:
        if (name, record.round) == (arm, round):
            raise KeyboardInterrupt

    return Watcher(stop)


def weights(run: Run) -> dict[str, torch.Tensor]:
    models = {name: run["dsfl"].client_model(int(name[-1])) for name in ("client-0", "client-1", "client-2")}
    return {name: model.network.state_dict()["head.weight"] for name, model in models.items()} | {
        "server": run["dsfl"].server_model().network.state_dict()["head.weight"]
    }


def test_the_models_after_the_last_complete_round_are_left(experiment: Experiment, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, tmp_path / "run", "fedistill compare x.toml", stop_in("dsfl", 2))
    run = Run(tmp_path / "run")
    assert [run[arm].status for arm in run.arms] == ["done", "stopped"]
    found = run["dsfl"].server_model()
    assert (found.description.origin.round, found.description.origin.rounds) == (2, 4)
    card = (run.path / "models" / "dsfl" / "server" / "README.md").read_text()
    assert "| rounds | 2 of 4: the last complete round of a run that was not finished |" in card
    assert "Made by: `fedistill compare x.toml`" in card
    # They are those of a run that is asked for two rounds.
    short = experiment.model_copy(update={"rounds": 2})
    two = fedistill.compare(short, tmp_path / "two", quiet=True)
    assert all(torch.equal(value, weights(run)[name]) for name, value in weights(two).items())
    # A resumed run replaces them.
    resume_experiment(tmp_path / "run", Watcher())
    assert run["dsfl"].server_model().description.origin.round == 4


def test_an_arm_without_a_complete_round_leaves_none(experiment: Experiment, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, tmp_path / "run", "", stop_in("local", 1))
    assert [path.name for path in (tmp_path / "run" / "models").iterdir()] == ["local"]


def test_an_arm_that_fails_leaves_those_before(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = runner.play_round

    def fail(run: Any, arm: Any, executor: Any) -> RoundRecord:
        if (arm.name, run.round) == ("local", 2):
            raise TrainingError("enough", "round 3")
        return play(run, arm, executor)

    monkeypatch.setattr(runner, "play_round", fail)
    run = fedistill.compare(experiment, tmp_path / "run", quiet=True)
    assert run["local"].error == "round 3: enough"
    assert run["local"].client_model(0).description.origin.round == 2
    assert run["dsfl"].client_model(0).description.origin.round == 4

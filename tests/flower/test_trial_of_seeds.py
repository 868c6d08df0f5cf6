"""`fedistill flower up` with several seeds: a network for each, one after the other."""

from pathlib import Path
from typing import Any

import pytest

from fedistill.config.schema import Experiment
from fedistill.config.toml import to_toml
from fedistill.errors import ExperimentError, RuntimeFailure
from fedistill.experiment.progress import Watcher
from fedistill.experiment.results import ResultsJson
from fedistill.experiment.run_folder import RunFolder, read_results
from fedistill.experiment.runner import resume_experiment, run_experiment
from fedistill.experiment.seeds import resume_seeds
from fedistill.flower import local_trial
from fedistill.flower.app_template import asked_for, write_app
from helpers.flower_trial import Watch, experiment


def test_each_seed_has_a_network_and_resume_goes_on_at_the_first_that_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is stood for by a run in this process, which fails in the second seed."""
    played: list[tuple[str, int, int]] = []

    def play(one: Experiment, out: Path, watcher: Watcher) -> ResultsJson:
        assert asked_for({"experiment": to_toml(one)}) == one
        assert (out / "flower" / "app" / "pyproject.toml").is_file()
        played.append((out.name, one.seed, one.task.clients))
        if len(played) == 2:
            raise RuntimeFailure("the SuperLink ended")
        if RunFolder(out).begun:
            return resume_experiment(out, watcher)
        return run_experiment(one, out, "test", watcher)

    monkeypatch.setattr(local_trial, "_play", play)
    wanted = experiment(seeds=[4, 2, 9], rounds=1)
    out = tmp_path / "run"
    with pytest.raises(RuntimeFailure, match="the SuperLink ended"):
        local_trial.run_trial(wanted, out, "test", Watch())
    assert [one["seed"] for one in read_results(out)["arms"][0]["seeds"]] == [4]
    # The second had written what it was asked for before it ended.
    RunFolder.create(out / "seed-2", RunFolder(out).experiment().with_seed(2), "test")
    results = local_trial.resume_trial(out, Watch())
    assert played == [("seed-4", 4, 3), ("seed-2", 2, 3), ("seed-2", 2, 3), ("seed-9", 9, 3)]
    (arm,) = results["arms"]
    assert [(one["seed"], one["status"]) for one in arm["seeds"]] == [(4, "done"), (2, "done"), (9, "done")]


def test_where_a_network_has_run_only_a_network_resumes(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", experiment(seeds=2), "")
    with pytest.raises(
        ExperimentError, match="was not run by `fedistill flower up`; continue with: fedistill"
    ):
        local_trial.resume_trial(folder.path, Watch())
    first = folder.of_seed(0)
    (first.path / "flower" / "app").mkdir(parents=True)
    first.session.write_text("a session")
    with pytest.raises(ExperimentError) as caught:
        resume_seeds(folder.path, Watch())
    assert str(caught.value) == (
        f"{folder.path} was run on a network, whose clients keep their own states: resume it with:"
        f" fedistill flower resume {folder.path}"
    )


def test_an_app_is_of_one_seed(tmp_path: Path) -> None:
    several = experiment(seeds=2)
    advice = (
        "a Flower app runs one seed; take `seeds` out, and write an app for each seed with --set seed=NUMBER"
    )
    with pytest.raises(ExperimentError) as caught:
        write_app(several, tmp_path / "app", tmp_path / "out", "test")
    assert str(caught.value) == f"`seeds`: {advice}"
    assert not (tmp_path / "app").exists()
    config: dict[str, Any] = {"experiment": to_toml(several)}
    with pytest.raises(ExperimentError) as caught:
        asked_for(config)
    assert str(caught.value) == f"run config: `seeds` of `experiment`: {advice}"

"""Tuning: what is best, what it leaves, and that a stop loses the running trial alone."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from fedistill import ExperimentError, load, parse
from fedistill.config.schema import Experiment
from fedistill.data.build import build_task
from fedistill.experiment.measure import Measure
from fedistill.experiment.results import ArmJson
from fedistill.federation.arm import ReadyArm, resolve_arm
from fedistill.federation.local_executor import SerialExecutor
from fedistill.studies import tune as tuning
from fedistill.studies.goal import Goal, TunedArm
from fedistill.studies.search_space import changed
from fedistill.studies.tune import Plan, tune
from fedistill.studies.tuning_folder import Trial
from fedistill.testing.runs import finish
from helpers.files import Files
from helpers.watchers import Watcher

RAW: dict[str, Any] = {
    "rounds": 3,
    "task": {"name": "digits", "clients": 2, "limit": 60, "public": 20},
    "models": {"clients": ["mlp-s"], "server": "mlp-s"},
    "train": {"batch_size": 16, "optimizer": {"lr": 0.05}},
    "runtime": {"kind": "serial"},
    "arms": [
        {"method": "fedavg", "codec": "qsgd", "name": "weights"},
        {"method": "local", "train": {"label_smoothing": 0.2}},
    ],
}
Tune = Callable[..., list[TunedArm]]


@pytest.fixture
def experiment() -> Experiment:
    return parse(RAW, "test")


@pytest.fixture
def run(tmp_path: Path) -> Tune:
    """Tunes in a folder of this name, one round a trial; ``at`` is called with the number of each trial."""

    def run_it(
        experiment: Experiment, out: str = "out", at: Callable[[int], None] = lambda number: None, **plan: Any
    ) -> list[TunedArm]:
        asked = Plan(**{"trials": 3, "rounds": 1, **plan})
        shown: Callable[[Trial, int], None] = lambda trial, count: at(trial["trial"])  # noqa: E731  # its type stands beside it
        return tune(experiment, asked, tmp_path / out, "the command", Watcher(), shown)

    return run_it


def lines(path: Path) -> list[Trial]:
    """The trials in a folder, without what depends on the time."""
    found = [json.loads(line) for line in (path / "trials.jsonl").read_text().splitlines()]
    for trial in found:
        del trial["seconds"]
        for entry in trial["result"]["rounds"]:
            del entry["seconds"]
    return found


# --- what is best ---


def trial(number: int, accuracies: list[float], sent: int, status: str = "done", **views: float) -> Trial:
    """A trial that sends as many bytes in each round, and sends 10 before the first."""
    rounds = [
        {"round": place, "bytes_up": sent - 1, "bytes_down": 1, "views": {"server@global": value, **views}}
        for place, value in enumerate(accuracies, start=1)
    ]
    total = 10 + sent * len(rounds)
    result = {"status": status, "rounds": rounds, "bytes_setup": 10, "bytes_total": total}
    return {
        "arm": "a",
        "trial": number,
        "settings": {},
        "seconds": 0.0,
        "result": cast(ArmJson, result),
    }


def best(goal: Goal, *trials: Trial) -> int | None:
    found = goal.best(trials)
    return None if found is None else found["trial"]


def test_the_highest_last_accuracy_is_best_without_a_target() -> None:
    # The second was once better; the fourth equals the third with fewer bytes; the fifth equals the fourth.
    trials = [
        trial(1, [0.5, 0.6], 100),
        trial(2, [0.9, 0.5], 1),
        trial(3, [0.1, 0.7], 100),
        trial(4, [0.1, 0.7], 90),
        trial(5, [0.2, 0.7], 90),
        trial(6, [0.8, 0.8], 1, status="failed"),
    ]
    assert best(Goal(), *trials) == 4
    assert Goal().value(trials[1]) == 0.5
    assert Goal().describe(trials[3]) == "server@global 70.0%, 190 B"
    assert Goal().describe(trials[5]) == "failed"


def test_the_fewest_bytes_to_a_target_are_best() -> None:
    goal = Goal(target=0.7)
    dear, cheap = trial(1, [0.75, 0.9], 100), trial(2, [0.5, 0.7, 0.6], 30)
    far, near = trial(3, [0.2], 1), trial(4, [0.6], 500)
    assert goal.bytes_to_target(dear) == 110
    assert goal.bytes_to_target(cheap) == 70
    assert goal.bytes_to_target(near) is None
    assert best(goal, dear, cheap, far, near) == 2
    assert best(goal, far, near) == 4
    assert goal.describe(cheap) == "server@global 60.0%, 70 B to 70.0%"
    assert goal.describe(far) == "server@global 20.0%, 70.0% not reached"


def test_the_lowest_loss_is_best() -> None:
    losses = Measure("log-loss", "lower", float("inf"))
    one, other = trial(1, [0.9, 0.9], 10), trial(2, [0.5, 0.5], 100)
    for tried, found in ((one, [2.0, 1.0]), (other, [0.5, 0.8])):
        for entry, value in zip(tried["result"]["rounds"], found, strict=True):
            entry["metrics"] = {"log-loss": {"server@global": value}}
    assert best(Goal(measure=losses), one, other) == 2
    assert Goal(measure=losses).describe(other).startswith("server@global 0.800, ")
    assert str(Goal(measure=losses)).startswith("the lowest log-loss (")
    goal = Goal(target=1.0, measure=losses)
    assert (goal.bytes_to_target(one), goal.bytes_to_target(other)) == (30, 110)
    assert best(goal, one, other) == 1
    assert goal.decided(one["result"], None)
    assert "fewest bytes to log-loss (" in str(goal)
    assert best(Goal(view="client@own", measure=losses), one, other) == 2


def test_without_a_success_there_is_no_best() -> None:
    assert best(Goal()) is None
    assert best(Goal(target=0.1), trial(1, [0.5], 1, status="failed"), trial(2, [], 1, "failed")) is None


def test_the_view_that_counts() -> None:
    one, other = (
        trial(1, [0.5], 1, **{"client@global": 0.9}),
        trial(2, [0.6], 1, **{"client@global": 0.8}),
    )
    assert best(Goal(), one, other) == 2
    assert best(Goal(view="client@global"), one, other) == 1
    assert best(Goal(view="client@own"), one, other) == 2  # they have no such view
    for entry in one["result"]["rounds"]:
        del entry["views"]["server@global"]
    assert Goal().value(one) == 0.9


def test_a_trial_is_decided_at_the_target_or_beyond_the_bytes_of_the_best() -> None:
    goal, held = Goal(target=0.7), trial(1, [0.5, 0.8], 100)  # needed 210 bytes

    def decided(accuracies: list[float], sent: int, before: Trial | None = None, goal: Goal = goal) -> bool:
        return goal.decided(trial(2, accuracies, sent)["result"], before)

    assert not decided([], 1)
    assert decided([0.7], 1)
    assert not decided([0.69, 0.5], 10**6)
    assert not decided([0.5], 200, held)  # 210 bytes: an equal is still possible
    assert decided([0.5], 201, held)
    assert not decided([0.5], 10**6, trial(1, [0.6], 1))  # none has reached it
    assert not decided([0.9], 1, held, Goal())


# --- what it leaves ---


def test_the_tuned_file_has_the_settings_of_the_best_trials(
    experiment: Experiment, run: Tune, tmp_path: Path
) -> None:
    seen: list[int] = []
    weights, local = run(experiment, at=seen.append, trials=4)
    assert seen == [1, 2, 3, 4] * 2
    assert weights.trials[0]["settings"] == local.trials[0]["settings"] == {}
    tuned = load(tmp_path / "out" / "tuned.toml")
    for arm, own, found in zip(tuned.arms, experiment.arms, (weights, local), strict=True):
        assert found.best is not None
        accuracies = [Goal().value(one) for one in found.trials]
        assert Goal().value(found.best) == max(one for one in accuracies if one is not None)
        assert resolve_arm(arm) == resolve_arm(changed(own, found.best["settings"], "image"))
    assert tuned.model_copy(update={"arms": []}) == experiment.model_copy(update={"arms": []})


def test_a_trial_is_the_run_of_the_arm_on_validation_data(
    experiment: Experiment, run: Tune, tmp_path: Path
) -> None:
    """The tuned file itself, played by the library's own loop, has the accuracies and bytes of the trial."""
    found, _ = run(experiment, trials=2, rounds=2)
    tuned = load(tmp_path / "out" / "tuned.toml", ["rounds=2"])
    task = build_task(tuned.task, tuned.seed, validation=True)
    arm = ReadyArm.of(tuned.arms[0], tuned, task)
    with SerialExecutor(tuned, task) as executor:
        played = finish(arm, executor)
    assert found.best is not None
    result = found.best["result"]
    assert [entry["views"] for entry in result["rounds"]] == [record.views for record in played.records]
    assert result["bytes_total"] == played.ledger.total
    assert played.records[-1].views["server@global"] * len(task.test) % 1 == pytest.approx(0, abs=1e-6)


def test_an_arm_of_the_tuned_file_has_only_what_is_its_own(
    experiment: Experiment, run: Tune, tmp_path: Path
) -> None:
    run(experiment, vary={"train.optimizer.lr": (0.5,), "codec.levels": (1,)}, arms=["weights"], trials=4)
    text = (tmp_path / "out" / "tuned.toml").read_text()
    raw = tomllib.loads(text)
    best = changed(experiment.arms[0], {"train.optimizer.lr": 0.5, "codec.levels": 1}, "image")
    tried = {json.dumps(one["settings"]) for one in lines(tmp_path / "out")}
    assert tried == {
        "{}",
        '{"train.optimizer.lr": 0.5}',
        '{"codec.levels": 1}',
        '{"train.optimizer.lr": 0.5, "codec.levels": 1}',
    }
    assert best.train.batch_size == 16
    weights, local = raw["arms"]
    assert weights["method"] == "fedavg"
    assert weights["name"] == "weights"
    assert "models" not in weights
    assert weights.get("train", {"optimizer": {"lr": 0.5}}) == {"optimizer": {"lr": 0.5}}
    assert local == {"method": "local", "train": {"label_smoothing": 0.2}}
    assert raw["task"] == RAW["task"]
    heading = text[: text.index("\n\n")].replace("\n#   ", " ")
    assert heading.startswith("# Made by: the command\n# With fedistill ")
    assert "4 trials of 1 round for each arm, search seed 0. The best have the highest accuracy" in heading
    assert "# local: not tuned" in heading


def test_paths_of_a_tuned_file_are_those_of_the_original(
    run: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test set is not read: that of one experiment is missing, that of the other is no Parquet file."""
    files = Files(tmp_path)
    files.images("train.parquet", files.pixels(60), [0, 1] * 30)
    (tmp_path / "poisoned.parquet").write_text("not for you")
    for test in ("missing.parquet", "poisoned.parquet"):
        task = {"format": "parquet", "train": "train.parquet", "test": test, "clients": 2}
        raw = {**RAW, "task": task, "arms": [{"method": "local"}]}
        monkeypatch.chdir(tmp_path)
        (found,) = run(parse(raw, "test", base=tmp_path), f"with {test}", trials=2)
        assert found.best is not None
        tuned = load(tmp_path / f"with {test}" / "tuned.toml")
        assert tuned.task.train == str(tmp_path / "train.parquet")
        assert tuned.task.test == str(tmp_path / test)


# --- stops and failures ---


def test_a_tuning_that_was_stopped_ends_like_one_that_was_not(
    experiment: Experiment, run: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(experiment, "whole")

    rounds = 0
    played = tuning.play_round

    def stop_at_third(*arguments: Any) -> Any:
        nonlocal rounds
        rounds += 1
        if rounds in (3, 5):
            raise KeyboardInterrupt
        return played(*arguments)

    monkeypatch.setattr(tuning, "play_round", stop_at_third)
    for kept in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            run(experiment, "parts")
        assert len(lines(tmp_path / "parts")) == kept
    seen: list[int] = []
    run(experiment, "parts", at=seen.append)
    assert seen == [1, 2, 3]  # of the second arm
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    tuned = [(tmp_path / name / "tuned.toml").read_bytes() for name in ("parts", "whole")]
    assert tuned[0] == tuned[1]


def test_finished_trials_are_not_run_again(
    experiment: Experiment, run: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(experiment, arms=["local"], trials=4)
    run(experiment, arms=["weights"], trials=2)
    before = lines(tmp_path / "out")
    assert [(one["arm"], one["trial"]) for one in before] == [
        *(("local", number) for number in (1, 2, 3, 4)),
        *(("weights", number) for number in (1, 2)),
    ]

    def never(*arguments: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(tuning, "play_round", never)
    # With another goal, other trials are the best of those that there are; the budget is the same for all.
    (weights, local) = run(experiment, trials=2, goal=Goal(target=0.99))
    assert len(weights.trials) == len(local.trials) == 2
    assert lines(tmp_path / "out") == before
    assert "99.0% not reached" in (tmp_path / "out" / "tuned.toml").read_text().replace("\n#   ", " ")


def test_trials_with_a_target_end_when_they_are_decided(
    experiment: Experiment, run: Tune, tmp_path: Path
) -> None:
    # Any accuracy will do: all trials end after a round of three.
    (found,) = run(experiment, arms=["weights"], rounds=3, trials=2, goal=Goal(target=0.0))
    assert [len(one["result"]["rounds"]) for one in found.trials] == [1, 1]
    assert [one["result"]["status"] for one in found.trials] == ["done", "done"]
    # The first cannot reach the target, so that nothing is known to be enough.
    (found,) = run(experiment, "never", arms=["weights"], rounds=3, trials=2, goal=Goal(target=1.0))
    assert [len(one["result"]["rounds"]) for one in found.trials] == [3, 3]
    # What ended early says nothing about another goal, and nothing about none.
    for goal in (Goal(target=0.5), Goal(), Goal(target=0.0, view="client@global")):
        with pytest.raises(ExperimentError, match="holds another tuning, which differs in trials stop at"):
            run(experiment, arms=["weights"], rounds=3, trials=2, goal=goal)
    run(experiment, arms=["weights"], rounds=3, trials=2, goal=Goal(target=0.0))


def test_a_line_that_a_crash_cut_short_is_a_trial_that_never_was(
    experiment: Experiment, run: Tune, tmp_path: Path
) -> None:
    run(experiment, arms=["local"])
    path = tmp_path / "out" / "trials.jsonl"
    whole = lines(tmp_path / "out")
    for cut in (40, 1):  # within the line, and before its end
        path.write_text(path.read_text()[:-cut])
        run(experiment, arms=["local"])
        assert lines(tmp_path / "out") == whole

    path.write_text(path.read_text().replace('"arm"', "arm", 1))
    with pytest.raises(ExperimentError, match=r"line 1 of trials\.jsonl is damaged"):
        run(experiment, arms=["local"])


def test_a_folder_with_another_tuning_is_refused(experiment: Experiment, run: Tune, tmp_path: Path) -> None:
    run(experiment, arms=["local"], trials=1)
    for changes, what in (
        ({"seed": 1}, "seed"),
        ({"rounds": 2}, "rounds"),
        ({"vary": {"train.loss": None}}, "search space"),
    ):
        with pytest.raises(ExperimentError, match=f"holds another tuning, which differs in {what}: choose"):
            run(experiment, **changes)
    other = parse({**RAW, "task": {**RAW["task"], "limit": 61}}, "test")
    with pytest.raises(ExperimentError, match="which differs in experiment, data: choose another folder"):
        run(other)
    # How many processes do the work changes nothing.
    run(parse({**RAW, "runtime": {"kind": "auto", "workers": 1}}, "test"), arms=["local"], trials=1)

    (tmp_path / "a run").mkdir()
    (tmp_path / "a run" / "experiment.toml").touch()
    with pytest.raises(ExperimentError, match="a run already holds a run: choose another folder with --out"):
        run(experiment, "a run")


def test_a_trial_that_diverges_is_recorded_and_the_others_go_on(
    experiment: Experiment, run: Tune, tmp_path: Path
) -> None:
    (found,) = run(experiment, arms=["weights"], vary={"train.optimizer.lr": (1e30, 0.1)}, rounds=2)
    failed = [one for one in found.trials if one["result"]["status"] == "failed"]
    assert [one["settings"] for one in failed] == [{"train.optimizer.lr": 1e30}]
    error = failed[0]["result"]["error"]
    assert error is not None
    assert error.startswith("round ")
    assert len(found.trials) == 3
    assert found.best is not None
    assert found.best not in failed


def test_an_arm_whose_trials_all_fail_keeps_its_settings(run: Tune, tmp_path: Path) -> None:
    raw = {**RAW, "arms": [{"method": "fedavg", "train": {"optimizer": {"lr": 1e30}}}]}
    (found,) = run(parse(raw, "test"), vary={"train.optimizer.lr": (1e29,)}, rounds=2)
    assert len(found.trials) == 2
    assert found.best is None
    text = (tmp_path / "out" / "tuned.toml").read_text()
    assert "# fedavg: all trials failed\n" in text
    assert load(tmp_path / "out" / "tuned.toml").arms[0].train.optimizer.lr == 1e30


def test_values_that_do_not_go_together_are_a_failed_trial(experiment: Experiment, run: Tune) -> None:
    raw = {**RAW, "arms": [{"method": "fedavg", "codec": "dadaquant"}]}
    vary = {"codec.first": (8,), "codec.last": (4,)}
    (found,) = run(parse(raw, "test"), vary=vary, trials=9)
    assert len(found.trials) == 4
    errors = {str(one["settings"]): one["result"]["error"] for one in found.trials}
    assert errors["{}"] is None
    assert errors["{'codec.first': 8, 'codec.last': 4}"] == (
        "arm 'fedavg': codec dadaquant: `first` = 8 is above `last` = 4"
    )


def test_a_small_space_is_tried_as_a_whole(experiment: Experiment, run: Tune) -> None:
    (found,) = run(experiment, arms=["local"], vary={"train.loss": None}, trials=9)
    assert [one["settings"] for one in found.trials] == [{}, {"train.loss": "balanced-softmax"}]


def test_what_cannot_be_tuned_is_said_before_any_trial(
    experiment: Experiment, run: Tune, tmp_path: Path
) -> None:
    for plan, said in (
        ({"arms": ["weight"]}, r"--arm weight: the arms are weights, local\. Did you mean 'weights'\?"),
        (
            {"vary": {"train.epoch": None}},
            r"--vary train\.epoch: no arm has a setting of this name with another value to try; by default,"
            r" these are varied: train\.epochs, .*codec\.levels\. Did you mean 'train\.epochs'\?",
        ),
        (
            {"vary": {"codec.levels": (3,)}, "arms": ["local"]},
            r"--vary codec\.levels: no arm has a setting",
        ),
        ({"vary": {"train.epochs": (0,)}}, r"arm 'weights': `train\.epochs` = 0: "),
        ({"vary": {"codec": ("onehot",)}}, "arm 'weights': codec onehot"),
    ):
        with pytest.raises(ExperimentError, match=said):
            run(experiment, **plan)
    assert not (tmp_path / "out").exists()


def test_trials_that_round_otherwise_are_not_the_same(experiment: Experiment) -> None:
    task = build_task(experiment.task, 0)

    def asked(**runtime: Any) -> Any:
        changed = experiment.runtime.model_copy(update=runtime)
        return tuning._asked(experiment.model_copy(update={"runtime": changed}), task, 0, {})

    assert asked() != asked(fast=True) != asked(server_threads=2) != asked()
    assert asked(workers=2) == asked()

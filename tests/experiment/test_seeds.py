"""Several seeds: each does what it would do alone, and the folder above holds all of them."""

import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedistill
from fedistill.config.schema import Experiment
from fedistill.config.toml import parse
from fedistill.errors import ExperimentError, TrainingError
from fedistill.experiment import runner
from fedistill.experiment.findings import Finding
from fedistill.experiment.report import rewrite_report
from fedistill.experiment.results import counted
from fedistill.experiment.run_folder import RunFolder, read_results
from fedistill.experiment.runner import run_experiment
from fedistill.experiment.seeds import examine_seeds, resume_seeds, run_seeds
from fedistill.experiment.table import markdown
from fedistill.federation.history import RoundRecord
from helpers.watchers import Watcher

ARMS = ["dsfl", "fedavg"]
TIMES = ("seconds", "server_seconds", "work")


class Crash(BaseException):
    """The process is gone; nothing may handle this."""


def experiment(**changes: Any) -> Experiment:
    raw: dict[str, Any] = {
        "seeds": [0, 1],
        "rounds": 2,
        "task": {
            "name": "digits",
            "clients": 3,
            "limit": 120,
            "public": 40,
            "partition": {"kind": "dirichlet", "alpha": 0.5},
        },
        "models": {"clients": ["mlp-s"], "server": "mlp-s"},
        "sampling": {"fraction": 0.7},
        "runtime": {"kind": "serial"},
        "arms": [{"method": name} for name in ARMS],
    }
    return parse({**raw, **changes}, "test")


def files(path: Path) -> dict[str, bytes]:
    """Models and checkpoints, without what states the command that was typed."""
    found = [file for name in ("models", "checkpoint") for file in (path / name).rglob("*.*")]
    kept = [file for file in found if file.name not in ("README.md", "model.json")]
    return {str(file.relative_to(path)): file.read_bytes() for file in kept}


def untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: untimed(inner) for key, inner in value.items() if key not in TIMES}
    return [untimed(inner) for inner in value] if isinstance(value, list) else value


def rounds(path: Path) -> list[Any]:
    """Every round with every frame."""
    return [untimed(event) for event in RunFolder(path).events() if event["event"] == "round"]


def outcome(path: Path, seed: int) -> Any:
    """All that one of several seeds leaves behind and that time has no part in."""
    place = path / f"seed-{seed}"
    return files(place), rounds(place), untimed(read_results(place)["arms"])


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two seeds."""
    path = tmp_path_factory.mktemp("both") / "run"
    run_seeds(experiment(), path, "the command", Watcher())
    return path


@pytest.mark.parametrize("seed", [0, 1])
def test_each_seed_is_the_run_with_that_seed_alone(both: Path, seed: int, tmp_path: Path) -> None:
    """Rounds, every frame, models and checkpoints, bit for bit."""
    alone = run_experiment(experiment(seeds=None, seed=seed), tmp_path / "alone", "", Watcher())
    models, played, arms = outcome(both, seed)
    assert models == files(tmp_path / "alone")
    assert played == rounds(tmp_path / "alone")
    assert arms == untimed(alone["arms"])
    results = read_results(both)
    assert "tasks" in results
    assert results["tasks"][seed] == {"seed": seed, **alone["task"]}
    for arm, expected in zip(results["arms"], alone["arms"], strict=True):
        kept = {**arm, **arm["seeds"][seed]}
        del kept["seeds"]
        assert untimed(kept) == untimed(dict(expected))


def test_everything_differs_between_seeds(both: Path) -> None:
    first, second = (outcome(both, seed) for seed in (0, 1))
    models = [name for name in first[0].keys() & second[0].keys() if name.startswith("models")]
    assert {"models/dsfl/server/model.safetensors", "models/fedavg/server/model.safetensors"} <= set(models)
    assert all(first[0][name] != second[0][name] for name in models)
    tasks = read_results(both)["tasks"]
    assert tasks[0]["class_counts"] != tasks[1]["class_counts"]
    drawn = [[event["clients"] for event in found] for _, found, _ in (first, second)]
    assert drawn[0] != drawn[1]


def test_the_results_of_both(both: Path) -> None:
    results = read_results(both)
    assert (results["schema"], results["seeds"], results["command"]) == (2, [0, 1], "the command")
    assert results["task"] == {key: value for key, value in results["tasks"][0].items() if key != "seed"}
    assert [arm["name"] for arm in results["arms"]] == ARMS
    for arm in results["arms"]:
        assert list(arm) == [
            *("name", "method", "codec", "server_model", "client_models", "parameters", "seeds"),
        ]
        for seed, one in enumerate(arm["seeds"]):
            assert list(one) == [
                *("seed", "status", "error", "parameters", "rounds"),
                *("bytes_setup", "bytes_public", "bytes_total", "bytes_transport"),
                *("multiply_adds", "memory"),
            ]
            assert (one["seed"], one["status"], len(one["rounds"])) == (seed, "done", 2)


def test_the_folder_of_both(both: Path) -> None:
    above = {"experiment.toml", "events.jsonl", "results.json", "report.html", ".lock"}
    assert {entry.name for entry in both.iterdir()} == {*above, "seed-0", "seed-1"}
    assert [event["event"] for event in RunFolder(both).events()] == ["started", "seed", "seed"]
    kept = RunFolder(both).experiment()
    assert (kept.seed, kept.seeds) == (0, [0, 1])
    for seed in (0, 1):
        alone = RunFolder(both / f"seed-{seed}").experiment()
        assert (alone.seed, alone.seeds) == (seed, None)
        assert alone == kept.with_seed(seed)
    assert "<title>digits - fedistill report</title>" in (both / "report.html").read_text()


def test_a_number_of_seeds_counts_from_seed(tmp_path: Path) -> None:
    wanted = experiment(seed=7, seeds=2, rounds=1, arms=[{"method": "local"}])
    results = run_seeds(wanted, tmp_path / "run", "", Watcher())
    assert results["seeds"] == [7, 8]
    assert RunFolder(tmp_path / "run").experiment().seeds == [7, 8]
    # One seed as a list has the shape of several.
    one = run_seeds(wanted.model_copy(update={"seeds": 1}), tmp_path / "one", "", Watcher())
    assert (one["schema"], one["seeds"]) == (2, [7])
    assert untimed(one["arms"][0]["seeds"]) == untimed(results["arms"][0]["seeds"][:1])


# --- stopped and resumed ---


def stop_in_seed(seed: int, arm: str, error: type[BaseException]) -> Callable[[str, RoundRecord], None]:
    def stop(name: str, played: RoundRecord) -> None:
        if name == f"seed {seed}: {arm}":
            raise error

    return stop


@pytest.mark.parametrize("error", [KeyboardInterrupt, Crash])
@pytest.mark.parametrize(("seed", "arm"), [(0, "fedavg"), (1, "dsfl")])
def test_stopped_anywhere_and_resumed_it_ends_in_the_same_bits(
    both: Path, seed: int, arm: str, error: type[BaseException], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    with pytest.raises(error):
        run_seeds(experiment(), path, "", Watcher(stop_in_seed(seed, arm, error)))
    watcher = Watcher()
    resume_seeds(path, watcher)
    done = {"seed 0: dsfl": 2, "seed 0: fedavg": 1} if seed == 0 else {"seed 1: dsfl": 1}
    assert {name: count for name, count in watcher.begun.items() if count} == done
    for one in (0, 1):
        assert outcome(path, one) == outcome(both, one)
    assert untimed(read_results(path)["arms"]) == untimed(read_results(both)["arms"])


def test_ctrl_c_in_the_second_seed_leaves_results_of_what_was_done(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_seeds(experiment(), tmp_path / "run", "", Watcher(stop_in_seed(1, "dsfl", KeyboardInterrupt)))
    results = read_results(tmp_path / "run")
    found = [[(one["status"], len(one["rounds"])) for one in arm["seeds"]] for arm in results["arms"]]
    assert found == [[("done", 2), ("stopped", 1)], [("done", 2), ("stopped", 0)]]
    assert [[one["seed"] for one in counted(arm)] for arm in results["arms"]] == [[0], [0]]
    assert "| dsfl [1 of 2 seeds] |" in markdown(results)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    run = fedistill.Run(tmp_path / "run")
    assert (run["dsfl"].status, run["fedavg"].status) == ("stopped", "stopped")


def test_a_seed_that_has_not_begun_is_missed(both: Path, tmp_path: Path) -> None:
    path = shutil.copytree(both, tmp_path / "run")
    results = json.loads((path / "results.json").read_text())
    (path / "results.json").write_text(json.dumps({**results, "seeds": [0, 1, 2]}))
    run = fedistill.Run(path)
    assert [run[name].status for name in ARMS] == ["stopped", "stopped"]
    assert "| dsfl [2 of 3 seeds] |" in run.markdown()


def test_resuming_what_is_done_plays_nothing_and_changes_nothing(both: Path, tmp_path: Path) -> None:
    path = shutil.copytree(both, tmp_path / "run")
    before = [files(path / f"seed-{seed}") for seed in (0, 1)]
    watcher = Watcher()
    results = resume_seeds(path, watcher)
    assert not watcher.begun
    assert [files(path / f"seed-{seed}") for seed in (0, 1)] == before
    assert results == read_results(both)


def test_an_arm_that_is_added_is_played_with_each_seed(both: Path, tmp_path: Path) -> None:
    path = shutil.copytree(both, tmp_path / "run")
    above = path / "experiment.toml"
    above.write_text(above.read_text() + '\n[[arms]]\nname = "new"\nmethod = "local"\n')
    resume_seeds(path, Watcher())
    for seed in (0, 1):
        assert [arm["name"] for arm in read_results(path / f"seed-{seed}")["arms"]] == [*ARMS, "new"]


def test_settings_that_may_change_are_changed_in_the_file_above(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run_seeds(experiment(), path, "", Watcher(stop_in_seed(0, "dsfl", KeyboardInterrupt)))
    above = path / "experiment.toml"
    above.write_text(above.read_text().replace('kind = "serial"', 'kind = "serial"\nworkers = 3'))
    resume_seeds(path, Watcher())
    assert [RunFolder(path / f"seed-{seed}").experiment().runtime.workers for seed in (0, 1)] == [3, 3]


def test_a_seed_of_an_arm_that_fails_is_shown_and_the_others_count(
    both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = runner.play_round

    def fail(run: Any, arm: Any, executor: Any) -> RoundRecord:
        if arm.name == "dsfl" and arm.seed == 1:
            raise TrainingError("it burst")
        return played(run, arm, executor)

    path = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(runner, "play_round", fail)
        results = run_seeds(experiment(), path, "", Watcher())
    dsfl, fedavg = results["arms"]
    assert [(one["status"], one["error"]) for one in dsfl["seeds"]] == [
        ("done", None),
        ("failed", "it burst"),
    ]
    assert [one["status"] for one in fedavg["seeds"]] == ["done", "done"]
    first, second = markdown(results).splitlines()[2:4]
    assert first.startswith("| dsfl [1 of 2 seeds, 1 failed] |")
    assert "±" not in first
    assert second.startswith("| fedavg |")
    assert "±" in second
    run = fedistill.Run(path)
    assert (run["dsfl"].status, run["dsfl"].error) == ("failed", "it burst")
    assert run["dsfl"].views == run["dsfl"].seeds[0].views
    assert run["dsfl"].views_deviation == {}
    # As without seeds, resuming tries again what failed.
    resume_seeds(path, Watcher())
    assert untimed(read_results(path)["arms"]) == untimed(read_results(both)["arms"])


# --- before a run, and after it ---


def test_a_folder_that_holds_one_is_not_overwritten(both: Path) -> None:
    with pytest.raises(ExperimentError, match=r"already holds a run: .* fedistill resume"):
        run_seeds(experiment(), both, "", Watcher())


def test_what_not_all_seeds_have_is_said_of_those_that_have_it() -> None:
    wanted = experiment(task={"name": "digits", "clients": 2, "limit": 12}, arms=[{"method": "local"}])
    _, findings = examine_seeds(wanted)
    alone = [set(examine_seeds(wanted.with_seed(seed))[1]) for seed in (0, 1)]
    assert alone[0] != alone[1]
    common, others = alone[0] & alone[1], alone[0] ^ alone[1]
    assert common
    assert {finding for finding in findings if ", seed" not in finding.where} == common
    assert {(finding.where, finding.what) for finding in findings if ", seed" in finding.where} == {
        (f"{finding.where}, seed {int(finding in alone[1])}", finding.what) for finding in others
    }


def test_findings_are_told_once_and_errors_stop_the_run(tmp_path: Path) -> None:
    told: list[Finding] = []

    class Listening(Watcher):
        def findings(self, findings: Any) -> None:
            told.extend(findings)

    wanted = experiment(arms=[{"method": "local", "accumulate": 2}])
    with pytest.raises(ExperimentError, match="exchanges nothing, so there is nothing to wait for"):
        run_seeds(wanted, tmp_path / "run", "", Listening())
    assert not (tmp_path / "run").exists()
    assert len([finding for finding in told if finding.level == "error"]) == 1


def test_a_report_is_written_again(both: Path, tmp_path: Path) -> None:
    path = shutil.copytree(both, tmp_path / "run")
    (path / "report.html").unlink()
    assert rewrite_report(path, print) == read_results(both)
    assert (path / "report.html").read_bytes() == (both / "report.html").read_bytes()


def test_the_api_has_each_seed_and_their_mean(both: Path) -> None:
    run = fedistill.Run(both)
    assert repr(run) == f"<Run {str(both)!r}: dsfl (done), fedavg (done)>"
    arm = run["dsfl"]
    assert [one.seed for one in arm.seeds] == [0, 1]
    assert arm.counted == arm.seeds
    first, second = arm.seeds
    assert [entry["round"] for entry in second.rounds] == [1, 2]
    assert second.views == second.rounds[-1]["views"]
    for view, mean in arm.views.items():
        one, other = first.views[view], second.views[view]
        assert mean == pytest.approx((one + other) / 2)
        # Of two values the deviation is their distance, divided by the square root of 2.
        assert arm.views_deviation[view] == pytest.approx(abs(one - other) / 2**0.5)
    totals = [first.bytes_total, second.bytes_total]
    assert arm.bytes_total == sum(totals) / 2
    assert arm.bytes_total_deviation == pytest.approx(statistics.stdev(totals))
    with pytest.raises(AttributeError, match=r"arm 'dsfl' has 2 seeds: take the rounds of one"):
        _ = arm.rounds
    with pytest.raises(AttributeError, match=r"take the model of one, `seeds\[0\].client_model\(1\)`"):
        arm.client_model(1)
    assert second.server_model().description.origin.seed == second.seed == 1
    assert "seeds 0, 1" in str(run)
    assert run.markdown() == markdown(run.results)


# --- files of other versions ---

SCHEMA_1: dict[str, Any] = {
    "schema": 1,
    "version": "0.1.0",
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "command": "fedistill compare digits.toml",
    "task": {
        "name": "digits",
        "kind": "image",
        "classes": ["0", "1"],
        "clients": 2,
        "partition": "iid",
        "samples": [10, 10],
        "class_counts": [[5, 5], [4, 6]],
        "test": 8,
        "public": None,
        "vocabulary": None,
    },
    "arms": [
        {
            "name": "fedavg",
            "method": "fedavg",
            "codec": "fp16",
            "seed": 0,
            "status": "done",
            "error": None,
            "server_model": "mlp-s",
            "client_models": ["mlp-s"],
            "parameters": {"server": 4810, "mlp-s": 4810},
            "rounds": [
                {
                    "round": 1,
                    "bytes_up": 2000,
                    "bytes_down": 3000,
                    "seconds": 0.5,
                    "kinds": {"up": {"weights": 2000}, "down": {"weights": 3000}},
                    "clients": [0, 1],
                    "dropped": [],
                    "missing": {},
                    "transport": {"up": 0, "down": 0, "late": 0},
                    "views": {"server@global": 0.75},
                }
            ],
            "bytes_setup": 0,
            "bytes_public": 0,
            "bytes_total": 5000,
            "bytes_transport": 0,
        }
    ],
}
"""As version 0.1.0 wrote it, before several seeds and before `hardware`."""


def test_schema_1_is_read(tmp_path: Path) -> None:
    path = RunFolder.create(tmp_path / "run", experiment(seeds=None), "").path
    (path / "results.json").write_text(json.dumps(SCHEMA_1))
    run = fedistill.Run(path)
    assert run.markdown().splitlines()[2:] == [
        "| fedavg | mlp-s -> mlp-s | 75.0% (75.0% @1) | - | - | 2 kB | 3 kB | 0 B | 0 B | 5 kB | 5 kB |"
    ]
    arm = run["fedavg"]
    assert (arm.status, arm.views, arm.bytes_total) == ("done", {"server@global": 0.75}, 5000)
    assert arm.rounds == SCHEMA_1["arms"][0]["rounds"]
    assert [one.seed for one in arm.seeds] == [0]
    assert rewrite_report(path, print) == SCHEMA_1
    assert "digits - fedistill report" in (path / "report.html").read_text()


def test_results_of_an_unknown_schema_are_refused(tmp_path: Path) -> None:
    path = RunFolder.create(tmp_path / "run", experiment(), "").path
    (path / "results.json").write_text('{"schema": 3}')
    with pytest.raises(ExperimentError, match=r"has schema 3, which this version does not know"):
        fedistill.Run(path)

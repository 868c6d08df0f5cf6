"""Several seeds from the command line: what is printed, written and returned."""

import json
import signal
from pathlib import Path

import pytest

from fedistill.experiment.reach import reach_markdown
from fedistill.experiment.table import markdown
from helpers.program import here, start
from helpers.small import second_round_of, stop_once, write_small


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    write_small(folder, "fedavg", "voting", seeds=2)
    ended = here("compare", "exp.toml", "--out", "run", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    assert "digits, 2 clients, iid, 2 rounds, seeds 0, 1" in ended.stdout
    assert "mean ± standard deviation over seeds" in ended.stdout
    assert "report: run/report.html" in ended.stdout
    return folder


def test_results_have_schema_2(done: Path) -> None:
    results = json.loads((done / "run" / "results.json").read_text())
    assert list(results) == [
        *("schema", "version", "versions", "hardware", "command"),
        *("task", "tasks", "seeds", "arms"),
    ]
    assert (results["schema"], results["seeds"]) == (2, [0, 1])
    assert results["command"] == "fedistill compare exp.toml --out run"
    assert [task["seed"] for task in results["tasks"]] == [0, 1]
    for arm in results["arms"]:
        assert [(one["seed"], one["status"], len(one["rounds"])) for one in arm["seeds"]] == [
            (0, "done", 2),
            (1, "done", 2),
        ]


def test_report_prints_them(done: Path) -> None:
    results = json.loads((done / "run" / "results.json").read_text())
    assert here("report", "run", "--markdown", cwd=done).stdout == markdown(results) + "\n"
    reached = here("report", "run", "--reach", "0.05", cwd=done)
    assert reached.stdout == reach_markdown(results, "server@global", [0.05]) + "\n"
    as_json = json.loads(here("report", "run", "--json", cwd=done).stdout)
    assert as_json == {"folder": "run", **results}


def test_one_arm_with_all_seeds(done: Path) -> None:
    ended = here("run", "exp.toml", "--arm", "voting", "--out", "alone", "--json", cwd=done)
    assert ended.returncode == 0, ended.stderr
    (arm,) = json.loads(ended.stdout)["arms"]
    both = json.loads((done / "run" / "results.json").read_text())["arms"][1]
    assert arm["name"] == "voting"
    for one, other in zip(arm["seeds"], both["seeds"], strict=True):
        assert [entry["views"] for entry in one["rounds"]] == [entry["views"] for entry in other["rounds"]]


def test_doctor_checks_each_seed(done: Path) -> None:
    ended = here("doctor", "exp.toml", cwd=done)
    assert ended.returncode == 0, ended.stderr
    # What a round of fedavg costs does not depend on the seed, and is said once.
    assert ended.stdout.count("arm 'fedavg': about") == 1
    ended = here("doctor", "exp.toml", "--set", "arms.0.seed=1", cwd=done)
    assert ended.returncode == 2
    assert "arm 'fedavg' has a `seed` of its own, but `seeds` gives all arms the same" in ended.stderr


def test_ctrl_c_in_the_second_seed_and_resume(tmp_path: Path) -> None:
    write_small(tmp_path, "fedavg", "voting", seeds=2, rounds=30)
    process = start("compare", "exp.toml", "--out", "run", cwd=tmp_path)
    said = stop_once(process, signal.SIGINT, lambda: second_round_of(tmp_path / "run" / "seed-1"))
    assert process.returncode == 1
    assert "finished rounds are kept; resume with: fedistill resume run\n" in said
    stopped = json.loads((tmp_path / "run" / "results.json").read_text())["arms"][1]["seeds"]
    assert [one["status"] for one in stopped] == ["done", "stopped"]
    ended = here("resume", "run", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    arms = json.loads((tmp_path / "run" / "results.json").read_text())["arms"]
    found = [[(one["status"], len(one["rounds"])) for one in arm["seeds"]] for arm in arms]
    assert found == [[("done", 30)] * 2] * 2

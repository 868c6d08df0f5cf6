"""``fedistill tune`` as a user sees it: lines, table, files, exit status and messages."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from fedistill.config.toml import load
from fedistill.studies import tune as tuning
from helpers.program import here, start
from helpers.small import stop_once, write_small


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_small(tmp_path, 'method = "fedavg"\ncodec = "qsgd"', 'method = "voting"\nname = "votes"')
    return tmp_path


def test_two_trials_of_one_round(place: Path) -> None:
    ended = here("tune", "exp.toml", "--trials", "2", "--rounds", "1", "--out", "my tuning", cwd=place)
    assert ended.returncode == 0
    said = ended.stderr.splitlines()
    assert [line.split(":")[0] for line in said] == ["fedavg 1/2", "fedavg 2/2", "votes 1/2", "votes 2/2"]
    assert said[0].startswith("fedavg 1/2: server@global ")
    assert said[0].endswith(" s: its own settings")
    table = ended.stdout.splitlines()
    assert table[-1] == "tuned: my tuning/tuned.toml"
    assert [line.split("│")[1].strip() for line in table if line.startswith("│")] == ["fedavg", "votes"]
    trials = [json.loads(line) for line in (place / "my tuning" / "trials.jsonl").read_text().splitlines()]
    assert [len(trial["result"]["rounds"]) for trial in trials] == [1] * 4
    tuned = load(place / "my tuning" / "tuned.toml")
    assert (tuned.rounds, [arm.name for arm in tuned.arms]) == (2, ["fedavg", "votes"])

    again = here(
        *("tune", "exp.toml", "--trials", "2", "--rounds", "1", "--out", "my tuning", "--json"), cwd=place
    )
    assert (again.returncode, again.stderr) == (0, "")
    found = json.loads(again.stdout)
    assert found["tuned"] == "my tuning/tuned.toml"
    assert [arm["trials"] for arm in found["arms"]] == [2, 2]
    for arm, (own, other) in zip(found["arms"], (trials[:2], trials[2:]), strict=True):
        best = own if arm["best"] == 1 else other
        assert arm["settings"] == best["settings"]
        assert arm["accuracy"] == best["result"]["rounds"][-1]["views"]["server@global"]
        assert arm["bytes_to_target"] is None

    compared = here("run", "my tuning/tuned.toml", "--arm", "votes", "--out", "run", cwd=place)
    assert compared.returncode == 0


def test_options_reach_the_tuning(place: Path) -> None:
    ended = here(
        *("tune", "exp.toml", "--set", "rounds=1", "--arm", "votes", "--target", "0.0", "--seed", "3"),
        *("--vary", "distill_epochs=[2]", "--vary", "train.epochs", "--view", "client@global"),
        *("--quiet", "--trials", "4", "--out", "out", "--json"),
        cwd=place,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    asked = json.loads((place / "out" / "tuning.json").read_text())
    assert asked["search space"]["votes"] == {"distill_epochs": [1, 2], "train.epochs": [1, 2, 3, 5, 8, 20]}
    assert (asked["seed"], asked["rounds"]) == (3, 1)
    (found,) = json.loads(ended.stdout)["arms"]
    trials = [json.loads(line) for line in (place / "out" / "trials.jsonl").read_text().splitlines()]
    results = [trial["result"] for trial in trials]
    assert found["bytes_to_target"] == min(result["bytes_total"] for result in results)
    best = results[found["best"] - 1]
    assert found["accuracy"] == best["rounds"][-1]["views"]["client@global"]


def test_another_metric_is_measured_and_decides(place: Path) -> None:
    ended = here(
        *("tune", "exp.toml", "--arm", "fedavg", "--metric", "log-loss", "--trials", "2", "--rounds", "1"),
        *("--out", "out", "--json"),
        cwd=place,
    )
    assert ended.returncode == 0
    trials = [json.loads(line) for line in (place / "out" / "trials.jsonl").read_text().splitlines()]
    losses = [trial["result"]["rounds"][-1]["metrics"]["log-loss"]["server@global"] for trial in trials]
    (found,) = json.loads(ended.stdout)["arms"]
    assert found["log-loss"] == min(losses)
    assert "accuracy" not in found
    assert load(place / "out" / "tuned.toml").evaluate.metrics == ["accuracy", "log-loss"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--arm", "vote"), "--arm vote: the arms are fedavg, votes. Did you mean 'votes'?"),
        (
            ("--vary", "train.epochs=3"),
            '--vary train.epochs=3: write KEY=[VALUES], for example train.epochs=[1, 3] or codec=["fp16",'
            ' "int8"]',
        ),
        (
            ("--vary", "codec", "--vary", "codec.levels"),
            "--vary codec.levels: is inside codec, which is varied as well; leave out one",
        ),
        (
            ("--view", "server"),
            "--view server: must be one of server@global, client@global, client@own, server@own.",
        ),
        (
            ("--metric", "confusion"),
            "--metric confusion: is a matrix, by which no trial is better than another",
        ),
        (("--target", "800"), "--target '800' is no accuracy: write 0.8, 80 or 80%"),
        (("--set", "task.name=digit"), "task.name = 'digit' is not one of "),
    ],
)
def test_a_wrong_command_line_has_status_2(arguments: tuple[str, ...], said: str, place: Path) -> None:
    ended = here("tune", "exp.toml", "--out", "out", *arguments, cwd=place)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith(f"fedistill: {said}")
    assert len(ended.stderr.splitlines()) == 1
    assert not (place / "out").exists()


def test_an_arm_that_always_fails_has_status_1(place: Path) -> None:
    lr = "arms.fedavg.train.optimizer.lr=1e30"
    ended = here(
        *("tune", "exp.toml", "--arm", "fedavg", "--set", lr, "--trials", "1", "--out", "out"), cwd=place
    )
    assert ended.returncode == 1
    first, last = ended.stderr.splitlines()
    assert first.startswith("fedavg 1/1: failed: round ")
    assert last == "fedistill: all trials failed of fedavg: trials.jsonl has the errors"
    assert "all trials failed" in ended.stdout


def test_ctrl_c_says_how_to_continue(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning, "play_round", stop)
    ended = here("tune", "exp.toml", "--set", "seed=2", cwd=place)
    (folder,) = (place / "runs").iterdir()
    assert folder.name.startswith("exp-tuning-")
    command = f"fedistill tune exp.toml --set seed=2 --out runs/{folder.name}"
    assert ended.returncode == 1
    assert ended.stderr == f"fedistill: stopped; finished trials are kept; continue with: {command}\n"
    monkeypatch.setattr(tuning, "build_task", stop)
    ended = here("tune", "exp.toml", "--out", "new", cwd=place)
    assert ended.stderr == "fedistill: stopped; nothing was started yet\n"


def test_sigterm_keeps_finished_trials(place: Path) -> None:
    command = ("tune", "exp.toml", "--set", "rounds=2", "--out", "out", "--trials")
    process = start(*command, "1000", cwd=place)
    trials = place / "out" / "trials.jsonl"
    said = stop_once(process, signal.SIGTERM, lambda: trials.exists() and trials.read_text().count("\n") >= 2)
    assert process.returncode == 1
    last = said.splitlines()[-1]
    assert last == (
        "fedistill: stopped by SIGTERM; finished trials are kept; continue with: fedistill "
        + " ".join([*command, "1000"])
    )
    kept = trials.read_text()
    ended = here(*command, "2", cwd=place)
    assert ended.returncode == 0
    assert trials.read_text().startswith(kept)

"""The Python API: a run from a script, what it returns, and what it prints."""

import json
import logging
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import fedistill
from fedistill.errors import ExperimentError, RuntimeFailure
from fedistill.experiment import runner
from fedistill.experiment.progress import shown
from fedistill.experiment.table import markdown
from fedistill.federation.history import RoundRecord
from helpers.program import PATIENCE
from helpers.small import second_round_of, stop_once, write_small


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("api"), "fedavg", "dsfl", evaluate="{ every = 2 }")


@pytest.fixture(scope="module")
def run(file: Path) -> fedistill.Run:
    return fedistill.compare(fedistill.load(str(file)), str(file.parent / "run"))


def test_a_path_may_be_text(file: Path) -> None:
    assert fedistill.load(str(file), ["rounds=3"]) == fedistill.load(file, ["rounds=3"])
    with pytest.raises(ExperimentError, match=r"^nowhere\.toml: there is no such file$"):
        fedistill.load("nowhere.toml")


def test_a_run_has_its_folder_and_its_results(run: fedistill.Run, file: Path) -> None:
    assert run.path == file.parent / "run"
    assert run.results == json.loads((run.path / "results.json").read_text())
    assert run.results["command"] == "fedistill.compare()"
    assert run.arms == ["fedavg", "dsfl"]
    assert repr(run) == f"<Run {str(run.path)!r}: fedavg (done), dsfl (done)>"
    assert fedistill.Run(str(run.path)).results == run.results


def test_an_arm_has_its_rounds_and_its_last_views(run: fedistill.Run) -> None:
    arm = run["dsfl"]
    assert (arm.name, arm.method, arm.codec, arm.status, arm.error) == ("dsfl", "dsfl", "fp32", "done", None)
    assert [entry["round"] for entry in arm.rounds] == [1, 2]
    assert arm.rounds[0]["views"] == {}  # evaluated every second round
    assert arm.views == arm.rounds[1]["views"]
    assert arm.views.keys() == {"server@global", "client@global", "client@own"}
    assert arm.bytes_total == sum(entry["bytes_up"] + entry["bytes_down"] for entry in arm.rounds)
    copy = run.results["task"]["public"]["bytes"]
    assert (arm.bytes_public, run["fedavg"].bytes_public) == (2 * copy, 0)
    with pytest.raises(KeyError, match=r"no arm 'dsf'; the arms are fedavg, dsfl\. Did you mean 'dsfl'\?"):
        run["dsf"]


def test_the_table_is_text_or_markdown(run: fedistill.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run.markdown() == markdown(run.results)
    lines = str(run).splitlines()
    assert "\x1b" not in str(run)
    assert lines[0].strip() == "digits, 2 clients, iid, 2 rounds"
    (row,) = [line for line in lines if line.strip().startswith("dsfl")]
    assert f"{run['dsfl'].views['server@global']:.1%}" in row
    assert max(map(len, lines)) <= 100


def test_a_run_is_tables_of_pandas_and_plots(run: fedistill.Run) -> None:
    """What stands in them is worked out by hand in test_frames.py."""
    rounds = run.rounds()
    assert len(rounds) == 4
    for name in run.arms:
        assert rounds[rounds["arm"] == name]["bytes_total"].iloc[-1] == run[name].bytes_total
    final = run.table().set_index("arm")
    assert final.loc["dsfl", "server@global"] == run["dsfl"].views["server@global"]
    assert final["bytes_public"].tolist() == [run[name].bytes_public for name in run.arms]
    reached = run.bytes_to(0.0).set_index("arm")
    assert reached.loc["dsfl", "round"] == 2  # the first that was evaluated
    assert reached.loc["dsfl", "bytes"] == run["dsfl"].bytes_total
    assert {trace.name for trace in run.plot().data} == {"fedavg", "dsfl"}
    assert run._repr_markdown_() == run.markdown()


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"holds no run: there is no experiment\.toml in it"):
        fedistill.Run(tmp_path)


def test_a_run_without_a_folder_gets_a_new_one(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "20260102-030405")
    short = fedistill.load(file, ["rounds=1"])
    runs = [fedistill.compare(short) for _ in range(2)]
    assert [str(one.path) for one in runs] == [
        "runs/experiment-20260102-030405",
        "runs/experiment-20260102-030405-2",
    ]


def test_a_run_that_the_machine_stopped_says_how_to_go_on(
    file: Path, run: fedistill.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = runner.play_round
    rounds = iter(range(10))

    def fail_in_the_third(*args: Any) -> RoundRecord:
        if next(rounds) == 2:
            raise RuntimeFailure("out of memory")
        record: RoundRecord = played(*args)
        return record

    with monkeypatch.context() as patched:
        patched.setattr(runner, "play_round", fail_in_the_third)
        with pytest.raises(RuntimeFailure) as caught:
            fedistill.compare(fedistill.load(file), tmp_path / "run")
    note = f"Finished rounds are kept; resume with: fedistill.resume({str(tmp_path / 'run')!r})"
    assert caught.value.__notes__ == [note]
    assert repr(fedistill.Run(tmp_path / "run")).endswith("fedavg (done), dsfl (stopped)>")
    resumed = fedistill.resume(str(tmp_path / "run"))
    assert [resumed[name].views for name in resumed.arms] == [run[name].views for name in run.arms]


# --- what is said on the way ---


def test_a_program_that_sets_up_no_logging_reads_nothing(
    file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fedistill.compare(fedistill.load(file, ["rounds=1"]), tmp_path / "run")
    assert capfd.readouterr() == ("", "")


def test_the_log_says_how_a_run_goes(
    file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, run: fedistill.Run
) -> None:
    caplog.set_level(logging.INFO, "fedistill")
    fedistill.compare(fedistill.load(file, ["arms.dsfl.train.optimizer.lr=1e30"]), tmp_path / "run")
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    view = run["fedavg"].views["server@global"]
    assert said[:4] == [
        ("INFO", "arm 'fedavg': 0 of 2 rounds done"),
        ("INFO", "arm 'fedavg': round 1: not evaluated"),
        ("INFO", f"arm 'fedavg': round 2: server@global {view:.1%}"),
        ("INFO", "arm 'dsfl': 0 of 2 rounds done"),
    ]
    level, last = said[4]
    assert level == "ERROR"
    assert last.startswith("arm 'dsfl' failed: round 1, client 0: ")
    assert len(said) == 5


class Terminal:
    """A console that is a terminal, and all that was written to it as plain text."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.console = Console(file=path.open("w"), force_terminal=True, width=100)

    def text(self) -> str:
        self.console.file.flush()
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._path.read_text())


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    found = Terminal(tmp_path / "terminal")
    yield found
    found.console.file.close()


def record(round: int, views: dict[str, float]) -> RoundRecord:
    return RoundRecord(round, [], [], 0.0, 0.0, [], views, [], local=1, change=None, missing={}, carried={})


def test_a_terminal_shows_a_bar_per_arm(terminal: Terminal) -> None:
    with shown(terminal.console) as watcher:
        watcher.arm("first", 2, 0)
        watcher.round("first", record(1, {}))
        watcher.round("first", record(2, {"server@global": 0.25}))
        watcher.arm("second [x]", 4, 1)
        watcher.failed("second [x]", "no luck")
    text = terminal.text()
    first, second = text.splitlines()[-2:]
    assert re.search(r"^first\b.* 2/2 .*server@global 25\.0%", first)
    assert re.search(r"^second \[x\] .* 1/4 .*failed", second)
    assert "fedistill: arm 'second [x]' failed: no luck" in text


def test_a_terminal_names_clients_that_are_left_out_of_a_round(terminal: Terminal) -> None:
    reasons = {"10": "damaged", "2": "damaged", "1": "no reply"}
    with shown(terminal.console) as watcher:
        watcher.arm("first", 2, 0)
        watcher.round("first", replace(record(1, {}), missing=reasons))
    assert "arm 'first': round 1: left out: client 1: no reply; clients 2 and 10: damaged" in terminal.text()


def test_a_quiet_terminal_shows_errors_alone(terminal: Terminal) -> None:
    with shown(terminal.console, quiet=True) as watcher:
        watcher.arm("first", 2, 0)
        logging.getLogger("fedistill.somewhere").warning("mind the gap")
        watcher.failed("first", "no luck")
    logging.getLogger("fedistill").error("not shown any more")
    assert terminal.text() == "fedistill: arm 'first' failed: no luck\n"


# --- scripts ---


def script(folder: Path, body: str) -> "subprocess.CompletedProcess[str]":
    write_small(folder, "fedavg", "dsfl", workers=2)
    (folder / "script.py").write_text(f'import fedistill\n\nexperiment = fedistill.load("exp.toml")\n{body}')
    return subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_a_script_without_a_main_guard_is_told_so_in_one_line(tmp_path: Path) -> None:
    ended = script(tmp_path, 'run = fedistill.compare(experiment, "run")\nprint(run)\n')
    assert ended.stderr == (
        "fedistill: worker processes import the script that starts them, and would start the run again: put"
        ' the call under `if __name__ == "__main__":`, or set runtime.kind = "serial"\n'
    )
    assert ended.returncode == 1
    assert ended.stdout == ""
    # Nothing is left that would stand in the way of the mended script.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exp.toml", "script.py"]


def test_a_script_with_a_main_guard_runs(tmp_path: Path) -> None:
    ended = script(
        tmp_path,
        'if __name__ == "__main__":\n    print(repr(fedistill.compare(experiment, "run")))\n',
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "<Run 'run': fedavg (done), dsfl (done)>\n"


def test_a_script_without_a_main_guard_runs_in_one_process(tmp_path: Path) -> None:
    ended = script(
        tmp_path,
        'experiment = fedistill.load("exp.toml", ["runtime.kind=serial", "rounds=1"])\n'
        'print(repr(fedistill.compare(experiment, "run")))\n',
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "<Run 'run': fedavg (done), dsfl (done)>\n"


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGHUP])
def test_a_script_that_is_asked_to_end_leaves_its_results(tmp_path: Path, asked: signal.Signals) -> None:
    write_small(tmp_path, "fedavg", "dsfl", rounds=100_000)
    (tmp_path / "script.py").write_text(
        'import fedistill\n\nfedistill.compare(fedistill.load("exp.toml"), "run")\n'
    )
    process = subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(asked, signal.SIG_DFL),
    )
    said = stop_once(process, asked, lambda: second_round_of(tmp_path / "run"))
    assert process.returncode != 0
    assert f"Stopped: stopped by {asked.name}" in said
    assert "Finished rounds are kept; resume with: fedistill.resume('run')" in said
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [arm["status"] for arm in results["arms"]] == ["stopped", "stopped"]
    assert len(results["arms"][0]["rounds"]) >= 2
    assert (tmp_path / "run" / "report.html").exists()


def test_a_thread_runs_an_experiment_too(file: Path, tmp_path: Path) -> None:
    """Only the main thread may set handlers of signals."""
    found: list[fedistill.Run] = []
    short = fedistill.load(file, ["rounds=1"])
    thread = threading.Thread(target=lambda: found.append(fedistill.compare(short, tmp_path / "run")))
    thread.start()
    thread.join(PATIENCE)
    assert [found[0][name].status for name in found[0].arms] == ["done", "done"]

"""Where a network plays in the folder of a run, nothing else begins; nor a network where a run plays."""

import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
from filelock import FileLock, Timeout

from fedistill.config.schema import Experiment
from fedistill.config.toml import to_toml
from fedistill.errors import RuntimeFailure
from fedistill.experiment.progress import Watcher
from fedistill.experiment.results import ResultsJson
from fedistill.experiment.run_folder import RunFolder
from fedistill.experiment.runner import run_experiment
from fedistill.flower import app_template, keys, local_trial
from helpers.flower_trial import Watch, experiment, in_process, lay_out
from helpers.processes import another_in
from helpers.program import here

Holder = Literal["alone_in", "network_in"]
IN_USE = (
    "fedistill: run: another process is running in this folder: wait until it has ended, or name another"
    " folder with --out\n"
)
UP, COMPARE = ("flower", "up", "exp.toml", "--out", "run"), ("compare", "exp.toml", "--out", "run")
RESUME_NETWORK, RESUME = ("flower", "resume", "run"), ("resume", "run")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "exp.toml").write_text(to_toml(experiment(rounds=1)))
    return tmp_path


def everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    """All files but locks, which have no content, and when each was written."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != ".lock"]
    return {str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def refused(place: Path, holder: Holder, command: tuple[str, ...]) -> str:
    """What a command says that another process in the folder keeps from beginning; all stays as it was."""
    before = everything(place)
    with another_in(place / "run", holder):
        ended = here(*command, cwd=place)
    assert ended.returncode == 2, ended.stderr
    assert everything(place) == before
    return ended.stderr


@pytest.mark.parametrize("command", [RESUME_NETWORK, RESUME, UP, COMPARE])
def test_where_a_network_plays_nothing_else_does(place: Path, command: tuple[str, ...]) -> None:
    lay_out(experiment(rounds=1), place / "run")
    in_process(experiment(rounds=1), place / "run")
    RunFolder(place / "run").session.write_text("a session")
    held = "fedistill: run already holds a run: choose another folder with --out, or resume that run with:"
    said = refused(place, "network_in", command)
    assert said == (f"{held} fedistill flower resume run\n" if command in (UP, COMPARE) else IN_USE)


@pytest.mark.parametrize("command", [UP, COMPARE, (*COMPARE, "--set", "seeds=2")])
def test_where_a_network_is_about_to_begin_nothing_else_does(place: Path, command: tuple[str, ...]) -> None:
    lay_out(experiment(rounds=1), place / "run")
    assert refused(place, "network_in", command) == IN_USE


def test_where_a_run_is_about_to_begin_no_network_does(place: Path) -> None:
    assert refused(place, "alone_in", UP) == IN_USE


def test_a_run_in_one_process_is_no_networks_to_resume(place: Path) -> None:
    """Not even if a network that never began has left its app there."""
    lay_out(experiment(rounds=1), place / "run")
    in_process(experiment(rounds=1), place / "run")
    before = everything(place)
    ended = here(*RESUME_NETWORK, cwd=place)
    assert (ended.returncode, ended.stderr) == (
        2,
        "fedistill: run was not run by `fedistill flower up`; continue with: fedistill resume run\n",
    )
    assert everything(place) == before


def test_a_trial_holds_its_folder_from_its_first_file_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is stood for by a run in this process."""
    out, found = tmp_path / "run", dict[str, bool]()

    def is_held() -> bool:
        try:
            with FileLock(out / "flower" / ".lock", timeout=0):
                return False
        except Timeout:
            return True

    def looks(owner: Any, name: str) -> None:
        unchanged = getattr(owner, name)

        def look_first(*given: Any, **options: Any) -> Any:
            found[name] = is_held()
            return unchanged(*given, **options)

        monkeypatch.setattr(owner, name, look_first)

    def play(one: Experiment, out: Path, watcher: Watcher) -> ResultsJson:
        RunFolder(out).session.write_text("a session")
        if not RunFolder(out).begun:
            run_experiment(one, out, "test", watcher)
        raise RuntimeFailure("the SuperLink ended")

    monkeypatch.setattr(local_trial, "_play", play)
    for owner, name in ((keys, "make_keys"), (app_template, "write_app"), (local_trial, "_play")):
        looks(owner, name)
    with pytest.raises(RuntimeFailure, match="the SuperLink ended"):
        local_trial.run_trial(experiment(rounds=1), out, "test", Watch())
    assert found == {"make_keys": True, "write_app": True, "_play": True}
    assert not is_held()
    found.clear()
    looks(shutil, "rmtree")
    with pytest.raises(RuntimeFailure, match="the SuperLink ended"):
        local_trial.resume_trial(out, Watch())
    assert found == {"rmtree": True, "write_app": True, "_play": True}
    assert not is_held()

"""Sweeps: the points of a grid as runs, continued, and side by side."""

import json
from pathlib import Path
from typing import Any

import pytest

import fedistill
from fedistill.errors import ExperimentError, RuntimeFailure
from fedistill.experiment.callbacks import Callbacks
from fedistill.studies.grid import GridPoint
from fedistill.studies.sweep import _asked, sweep
from helpers.program import here
from helpers.small import write_small
from helpers.watchers import Watcher

GRID = ["train.epochs=1,2"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("sweep"), "fedavg", "dsfl", rounds=1)


@pytest.fixture(scope="module")
def out(file: Path) -> Path:
    """A whole sweep of two points, by the command."""
    ended = here("sweep", "exp.toml", "--grid", *GRID, "--seeds", "2", "--out", "out", cwd=file.parent)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "report: out/report.html"
    rows = [line.split("│")[1].strip() for line in ended.stdout.splitlines() if line.startswith("│")]
    assert rows == [f"epochs={epochs}: {arm}" for epochs in (1, 2) for arm in ("fedavg", "dsfl")]
    return file.parent / "out"


def test_each_point_is_a_complete_run(out: Path, file: Path, tmp_path: Path) -> None:
    """That of its settings and no others, bit for bit."""
    alone = fedistill.load(file, ["train.epochs=2", "seeds=2"])
    expected = fedistill.compare(alone, tmp_path / "run")
    point = fedistill.Run(out / "epochs=2")
    for name in expected.arms:
        assert [one.views for one in point[name].seeds] == [one.views for one in expected[name].seeds]
    assert fedistill.Run(out / "epochs=1")["dsfl"].views != point["dsfl"].views
    assert point.results["command"].startswith("fedistill sweep exp.toml --grid train.epochs=1,2")


def test_the_page_has_the_arms_of_all_points(out: Path) -> None:
    page = (out / "report.html").read_text(encoding="utf-8")
    for name in ("epochs=1: fedavg", "epochs=1: dsfl", "epochs=2: fedavg", "epochs=2: dsfl"):
        assert f'"name":"{name}"' in page
    assert "# epochs=2\\nseed = 0" in page, "settings of all points"


def test_a_sweep_that_is_done_runs_nothing_again_and_may_grow(out: Path, file: Path) -> None:
    watcher = Watcher()
    results = sweep(file, ["seeds=2"], ["train.epochs=1,2"], out, "test", watcher)
    assert watcher.begun == {}
    assert len(results["arms"]) == 4
    more = sweep(file, ["seeds=2"], ["train.epochs=2,3"], out, "test", watcher)
    assert {*watcher.begun} == {
        f"epochs=3: seed {seed}: {arm}" for seed in (0, 1) for arm in ("fedavg", "dsfl")
    }
    assert [arm["name"] for arm in more["arms"]][::2] == ["epochs=2: fedavg", "epochs=3: fedavg"]
    assert {*json.loads((out / "sweep.json").read_text())} == {"epochs=1", "epochs=2", "epochs=3"}


def test_a_sweep_of_something_else_is_refused(out: Path, file: Path) -> None:
    with pytest.raises(
        ExperimentError, match=r"holds another sweep, whose point epochs=1 differs in rounds: choo"
    ):
        sweep(file, ["seeds=2", "rounds=5"], GRID, out, "test", Watcher())
    with pytest.raises(ExperimentError, match="already holds a run"):
        sweep(file, [], GRID, out / "epochs=1", "test", Watcher())


class Stops(fedistill.Callback):
    """Fails after so many rounds of all arms."""

    def __init__(self, rounds: int) -> None:
        self.left = rounds

    def on_round_end(self, arm: Any, record: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise ValueError("enough")


def test_a_sweep_that_was_stopped_continues(out: Path, file: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match="enough"):
        sweep(file, ["seeds=2"], GRID, tmp_path / "out", "test", Watcher(), Callbacks([Stops(5)]))
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert '"name":"epochs=1: dsfl"' in page, "the point that was done is shown"
    assert '"name":"epochs=2: dsfl"' not in page
    watcher = Watcher()
    results = sweep(file, ["seeds=2"], GRID, tmp_path / "out", "test", watcher)
    assert not [name for name in watcher.begun if name.startswith("epochs=1")]
    whole = [fedistill.Run(out / f"epochs={epochs}").table() for epochs in (1, 2)]
    views = [one["rounds"][0]["views"]["server@global"] for arm in results["arms"] for one in arm["seeds"]]
    assert views == [accuracy for frame in whole for accuracy in frame["server@global"]]


def test_all_points_are_checked_before_the_first_one_runs(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"`train\.epochs` = 0: must be at least 1"):
        sweep(file, [], ["train.epochs=1,0"], tmp_path / "out", "test", Watcher())
    with pytest.raises(ExperimentError, match=r"^public=0: arm 'dsfl'.*public"):
        sweep(file, [], ["task.public=20,0"], tmp_path / "out", "test", Watcher())
    assert not (tmp_path / "out").exists()


def test_runs_are_reported_side_by_side(out: Path, tmp_path: Path) -> None:
    ended = here("report", out / "epochs=1", out / "epochs=2", "--page", "both.html", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "report: both.html"
    assert '"name":"epochs=2: dsfl"' in (tmp_path / "both.html").read_text(encoding="utf-8")
    markdown = here("report", out / "epochs=1", out / "epochs=2", "--markdown", cwd=tmp_path).stdout
    assert "| epochs=1: dsfl |" in markdown
    reach = here("report", out / "epochs=1", out / "epochs=2", "--reach", "0", cwd=tmp_path).stdout
    assert "| epochs=2: fedavg | fp32 |" in reach
    whole = json.loads(here("report", out / "epochs=1", out / "epochs=2", "--json", cwd=tmp_path).stdout)
    assert [arm["name"] for arm in whole["arms"]][1:3] == ["epochs=1: dsfl", "epochs=2: fedavg"]
    assert [path.name for path in tmp_path.iterdir()] == ["both.html"], (
        "nothing is written unless it is asked for"
    )


def test_a_page_of_one_run_has_its_place(out: Path, tmp_path: Path) -> None:
    one = here("report", out / "epochs=1", "--page", "one.html", cwd=tmp_path)
    assert (one.returncode, one.stderr) == (
        2,
        "fedistill: --page is for several runs: the page of one run is report.html in its folder\n",
    )
    twice = here("report", out / "epochs=1", out / "epochs=1", cwd=tmp_path)
    assert (twice.returncode, twice.stderr) == (
        2,
        "fedistill: the same folder is there twice: name each run once\n",
    )


def test_a_point_asks_for_what_rounds_otherwise(file: Path) -> None:
    """Their bits differ, whatever else of `runtime` may change."""
    point = GridPoint("alpha=1", ())

    def asked(*overrides: str) -> Any:
        return _asked([point], {point.name: fedistill.load(file, overrides=overrides)})

    assert asked() != asked("runtime.fast=true") != asked("runtime.server_threads=2") != asked()
    assert asked("runtime.workers=2") == asked("runtime.fast=false") == asked()

"""The command line as other programs rely on it: real processes, files, exit status and messages."""

import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from fedistill.communication.codecs.registry import CODECS
from fedistill.config.partitions import Iid
from fedistill.config.toml import load
from fedistill.errors import RuntimeFailure
from fedistill.experiment.reach import reach_markdown
from fedistill.experiment.runner import settle
from fedistill.experiment.table import markdown
from fedistill.methods.registry import METHODS
from helpers.processes import processes_with, wait_for
from helpers.program import PATIENCE, PROGRAM, fedistill, here, start

EXPERIMENT = """
rounds = 2

[task]
name = "digits"
clients = 3
limit = 90
public = 40

[models]
clients = ["mlp-s"]
server = "mlp-s"

[train]
batch_size = 16
optimizer = { name = "sgd", lr = 0.05, momentum = 0.9 }

[sampling]
fraction = 0.67
dropout = 0.3

[runtime]
kind = "serial"

[[arms]]
method = "fedavg"

[[arms]]
method = "dsfl"
name = "dsfl-half"
codec = "fp16"

[[arms]]
method = "local"
"""


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]


def outcome(path: Path) -> Any:
    """What a run leaves, without what depends on the time, the place or the command."""
    results = read(path / "results.json")
    del results["versions"], results["hardware"], results["command"]
    for arm in results["arms"]:
        for played in arm["rounds"]:
            del played["seconds"]
    models = {
        str(file.relative_to(path)): file.read_bytes() for file in path.glob("models/*/*/model.safetensors")
    }
    return results, models


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "exp.toml").write_text(EXPERIMENT)
    return folder


@pytest.fixture(scope="module")
def done(place: Path) -> Path:
    """The folder of a finished comparison, whose own folder has an odd name."""
    ended = fedistill(
        *("compare", "exp.toml", "--out", "a [b] c", "--set", "arms.1.distill_epochs=2"), cwd=place
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    # The table and the report's path are all of stdout.
    lines = ended.stdout.splitlines()
    assert lines[-1] == "report: a [b] c/report.html"
    rows = [line for line in lines if line.startswith("│")]
    assert [row.split("│")[1].strip() for row in rows] == ["fedavg", "dsfl-half", "local"]
    return place / "a [b] c"


# --- compare, and what it leaves ---


def test_the_four_files(done: Path) -> None:
    assert {path.name for path in done.iterdir()} == {
        ".lock",
        "experiment.toml",
        "events.jsonl",
        "results.json",
        "report.html",
        "models",
        "checkpoint",
    }
    html = (done / "report.html").read_text()
    assert html.lower().startswith("<!doctype html>")
    assert "dsfl-half" in html


def test_the_experiment_in_the_folder_is_fully_resolved(done: Path) -> None:
    found = load(done / "experiment.toml")
    wanted = load(done.parent / "exp.toml", ["arms.1.distill_epochs=2"])
    assert [arm.codec for arm in wanted.arms] == [None, "fp16", None]
    assert [arm.codec for arm in found.arms] == ["fp32", "fp16", "fp32"]
    assert wanted.task.clients is not None
    assert found == settle(wanted, "image", wanted.task.clients, Iid())
    text = (done / "experiment.toml").read_text()
    for default in ("seed = 0", "weight_decay = 0.0", "every = 1", 'codec = "fp32"', "temperature = 0.1"):
        assert default in text
    assert "distill_epochs = 2" in text


def is_share(value: Any) -> bool:
    return isinstance(value, float) and 0 <= value <= 1


def is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def each(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(check(item) for item in value)


def mapping(keys: Callable[[Any], bool], values: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, dict) and all(keys(key) and values(item) for key, item in value.items())
    )


def one_of(*known: Any) -> Callable[[Any], bool]:
    return lambda value: value in known


def check_shape(content: Any, shape: dict[str, Callable[[Any], bool]]) -> None:
    """Exactly these keys, each with a value that its check takes."""
    assert content.keys() == shape.keys()
    for key, check in shape.items():
        assert check(content[key]), (key, content[key])


VIEWS = ("server@global", "client@global", "client@own")
RESULTS = {
    "schema": one_of(1),
    "version": is_text,
    "versions": lambda value: (
        list(value) == ["python", "torch", "numpy", "datasets", "flwr-datasets", "constriction"]
        and all(map(is_text, value.values()))
    ),
    "hardware": lambda value: isinstance(value, dict),
    "command": is_text,
    "task": lambda value: isinstance(value, dict),
    "arms": lambda value: isinstance(value, list),
}
TASK = {
    "name": one_of("digits"),
    "kind": one_of("image"),
    "classes": lambda value: value == list("0123456789"),
    "clients": one_of(3),
    "partition": one_of("iid"),
    "samples": one_of([30, 30, 30]),
    "class_counts": each(each(is_count)),
    "test": one_of(359),  # a fifth of 1,797
    "public": lambda value: (
        value.keys() == {"samples", "bytes", "source"}
        and value["samples"] == 40
        and is_count(value["bytes"])
        and value["source"] == "held out from the training data"
    ),
    "vocabulary": one_of(None),
}
ARM = {
    "name": is_text,
    "method": one_of(*METHODS),
    "codec": one_of("fp32", "fp16"),
    "seed": one_of(0),
    "status": one_of("done"),
    "error": one_of(None),
    "server_model": one_of("mlp-s", None),
    "client_models": one_of(["mlp-s"]),
    "parameters": mapping(one_of("server", "mlp-s"), one_of(4810)),
    "rounds": lambda value: isinstance(value, list) and len(value) == 2,
    "bytes_setup": is_count,
    "bytes_public": is_count,
    "bytes_total": is_count,
    "bytes_transport": is_count,
    "multiply_adds": is_count,
    "memory": is_count,
}
HARDWARE = {
    "machine": one_of(platform.machine()),
    "processor": is_text,
    "cores": one_of(len(os.sched_getaffinity(0))),
    "torch_threads": one_of(1),
    "platform": one_of(platform.platform()),
}
ROUND = {
    "round": is_count,
    "bytes_up": is_count,
    "bytes_down": is_count,
    "seconds": lambda value: isinstance(value, float) and value >= 0,
    "kinds": mapping(one_of("up", "down"), mapping(one_of("weights", "soft-labels"), is_count)),
    "clients": lambda value: each(is_count)(value) and len(value) == 2 and value == sorted(value),
    "dropped": each(is_count),
    "missing": one_of({}),
    "transport": one_of({"up": 0, "down": 0, "late": 0}),
    "views": mapping(one_of(*VIEWS), is_share),
    "multiply_adds": is_count,
    "memory": is_count,
}


def test_results_have_the_shape_of_the_contract(done: Path) -> None:
    results = read(done / "results.json")
    check_shape(results, RESULTS)
    check_shape(results["task"], TASK)
    check_shape(results["hardware"], HARDWARE)
    assert [sum(row) for row in results["task"]["class_counts"]] == results["task"]["samples"]
    for arm in results["arms"]:
        check_shape(arm, ARM)
        assert [played["round"] for played in arm["rounds"]] == [1, 2]
        for played in arm["rounds"]:
            check_shape(played, ROUND)
            assert set(played["dropped"]) <= set(played["clients"])
    assert shlex.split(results["command"]) == [
        *("fedistill", "compare", "exp.toml", "--out", "a [b] c", "--set", "arms.1.distill_epochs=2")
    ]


def test_each_arm_has_the_views_of_its_method(done: Path) -> None:
    """A view that a method does not have is absent."""
    arms = read(done / "results.json")["arms"]
    found = {arm["name"]: [list(played["views"]) for played in arm["rounds"]] for arm in arms}
    assert found == {
        "fedavg": [["server@global"]] * 2,
        "dsfl-half": [[*VIEWS]] * 2,
        "local": [["client@global", "client@own"]] * 2,
    }
    assert [arm["server_model"] for arm in arms] == ["mlp-s", "mlp-s", None]
    assert [list(arm["parameters"]) for arm in arms] == [["server", "mlp-s"], ["server", "mlp-s"], ["mlp-s"]]


def test_bytes_are_the_sums_of_the_frames_in_the_events(done: Path) -> None:
    up, down, kinds = Counter[Any](), Counter[Any](), Counter[Any]()
    for event in events(done):
        if event["event"] == "round":
            for client, direction, kind, count, payload in event["traffic"]:
                assert client in event["clients"]
                assert 0 < count - payload <= 24
                (up if direction == "up" else down)[event["arm"], event["round"]] += count
                kinds[event["arm"], event["round"], direction, kind] += count
    for arm in read(done / "results.json")["arms"]:
        for played in arm["rounds"]:
            key = arm["name"], played["round"]
            assert (played["bytes_up"], played["bytes_down"]) == (up[key], down[key])
            for direction, found in played["kinds"].items():
                for kind, count in found.items():
                    assert count == kinds.pop((*key, direction, kind))
        total = sum(played["bytes_up"] + played["bytes_down"] for played in arm["rounds"])
        assert arm["bytes_total"] == total + arm["bytes_setup"]
    assert not kinds


def test_bytes_by_hand(done: Path) -> None:
    """Two clients a round; a lost reply has crossed all the same."""
    fedavg, dsfl, local = read(done / "results.json")["arms"]
    # 11 bytes of frame; a section: length and content. 4,810 weights of 4 bytes, samples.
    weights = 11 + 3 + 4 * 4810
    for played in fedavg["rounds"]:
        assert (played["bytes_up"], played["bytes_down"]) == (2 * (weights + 2), 2 * weights)
    # 40 public samples, 10 classes, 2 bytes; and the round in which they were drawn.
    labels = 11 + 2 + 2 * 400 + (1 + 1)
    assert [(played["bytes_up"], played["bytes_down"]) for played in dsfl["rounds"]] == [
        (2 * labels, 0),
        (2 * labels, 2 * labels),
    ]
    assert local["bytes_total"] == 0
    public = read(done / "results.json")["task"]["public"]["bytes"]
    assert [arm["bytes_public"] for arm in (fedavg, dsfl, local)] == [0, 3 * public, 0]
    assert [arm["bytes_setup"] for arm in (fedavg, dsfl, local)] == [0, 0, 0]


def test_warnings_come_before_the_run(done: Path) -> None:
    changes = ["task.partition={kind='pathological', classes_per_client=1}", "rounds=1"]
    sets = [part for change in changes for part in ("--set", change)]
    ended = here("run", "exp.toml", "--arm", "local", "--out", "warned", *sets, cwd=done.parent)
    assert ended.returncode == 0
    assert ended.stderr.startswith(
        "warning  task: no client holds any sample of '3', '4', '5', '6', '7', '8', '9',"
    )


def test_events_tell_the_run_in_order(done: Path) -> None:
    found = events(done)
    assert [event["event"] for event in found] == ["started", "task", *["round"] * 6]
    assert [(event["arm"], event["round"]) for event in found[2:]] == [
        (arm, round) for arm in ("fedavg", "dsfl-half", "local") for round in (1, 2)
    ]


def test_final_models_are_left(done: Path) -> None:
    found = {str(path.relative_to(done / "models")) for path in done.glob("models/*/*")}
    assert {"fedavg/server", "dsfl-half/server"} <= found
    assert {path.split("/")[1] for path in found if path.startswith("local/")} <= {
        f"client-{client}" for client in range(3)
    }


def test_run_is_one_arm_with_the_bits_that_it_has_among_others(done: Path) -> None:
    ended = here(
        *("run", "exp.toml", "--arm", "dsfl-half", "--out", "one", "--set", "arms.1.distill_epochs=2"),
        cwd=done.parent,
    )
    assert ended.returncode == 0, ended.stderr
    results, models = outcome(done.parent / "one")
    whole, all_models = outcome(done)
    assert results == {**whole, "arms": [whole["arms"][1]]}
    assert models
    assert models == {name: data for name, data in all_models.items() if name.startswith("models/dsfl-half/")}


def test_report_prints_markdown_and_writes_the_page_again(done: Path) -> None:
    before = (done / "report.html").read_bytes()
    (done / "report.html").unlink()
    ended = here("report", "a [b] c", "--markdown", cwd=done.parent)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == markdown(read(done / "results.json")) + "\n"
    about_work = 2
    assert ended.stdout.count("\n") == 2 + 3 + about_work
    assert (done / "report.html").read_bytes() == before


def test_report_prints_bytes_to_reach_accuracies(done: Path) -> None:
    ended = here("report", "a [b] c", "--reach", "30", "--reach", "0,1", cwd=done.parent)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == reach_markdown(read(done / "results.json"), "server@global", [0.1, 0.3]) + "\n"
    wrong = here("report", "a [b] c", "--reach", "0.3", "--view", "server@globl", cwd=done.parent)
    assert wrong.returncode == 2
    assert "--view server@globl: must be one of" in wrong.stderr
    assert "Did you mean 'server@global'?" in wrong.stderr
    wrong = here("report", "a [b] c", "--reach", "300", cwd=done.parent)
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "fedistill: --reach '300' is no accuracy: write 0.8, 80 or 80%\n",
    )


# --- what is wrong ends in status 2, one message, and no traceback ---

WRONG: dict[str, tuple[list[str], list[str]]] = {
    "missing file": (["compare", "nowhere.toml"], ["nowhere.toml: there is no such file"]),
    "not TOML": (["compare", "bad.toml"], ["bad.toml: not valid TOML", "line 2"]),
    "unknown key": (
        ["compare", "exp.toml", "--set", "round=3"],
        ["exp.toml: unknown key `round`. Did you mean 'rounds'?"],
    ),
    "wrong value": (
        ["doctor", "exp.toml", "--set", "train.optimizer.lr=-1"],
        ["exp.toml: `train.optimizer.lr` = -1: must be greater than 0"],
    ),
    "unknown method": (
        ["compare", "exp.toml", "--set", "arms.0.method=fedagv"],
        ["arm 'fedagv': method 'fedagv' is not one of local, server-alone,", "Did you mean 'fedavg'?"],
    ),
    "unknown setting of a method": (
        ["compare", "exp.toml", "--set", "arms.1.distill_epoch=1"],
        ["arm 'dsfl-half': unknown key `distill_epoch`. Did you mean 'distill_epochs'?"],
    ),
    "unknown codec": (
        ["compare", "exp.toml", "--set", "arms.0.codec=fp61"],
        ["arm 'fedavg': codec 'fp61' is not one of fp32, fp16, int8,", "Did you mean 'fp16'?"],
    ),
    "neither a codec's name nor a table": (
        ["compare", "exp.toml", "--set", "arms.0.codec=3"],
        ["`arms.0.codec`: 3 must be the name of a codec, or a table { up = CODEC, down = CODEC }"],
    ),
    "a setting that a codec does not have": (
        ["compare", "exp.toml", "--set", "arms.0.codec={name='qsgd', level=3}"],
        ["arm 'fedavg': codec qsgd: unknown key `level`. Did you mean 'levels'?"],
    ),
    "unknown model": (
        ["compare", "exp.toml", "--set", 'arms.0.models={clients=["cnn-x"], server="cnn-x"}'],
        ["arm 'fedavg': model 'cnn-x' is not one of mlp-s, cnn-s,", "Did you mean 'cnn-"],
    ),
    "refusal of a method": (
        ["compare", "exp.toml", "--set", 'models.clients=["cnn-s"]', "--out", "refused"],
        [
            "arm 'fedavg': method fedavg averages weights",
            'models = { clients = ["cnn-s"], server = "cnn-s" }',
        ],
    ),
    "error that doctor finds": (
        ["doctor", "exp.toml", "--set", "task.public=0"],
        ["arm 'dsfl-half': method dsfl needs a public set: set task.public"],
    ),
    "missing data": (
        ["compare", "exp.toml", "--set", 'task={format="csv", train="no.csv"}'],
        ["no.csv"],
    ),
    "data that cannot be fetched": (
        ["compare", "exp.toml", "--set", "task.name=mnist"],
        ["mnist-train.parquet", "FEDISTILL_DATA"],
    ),
    "unknown arm": (
        ["run", "exp.toml", "--arm", "dsfl"],
        ["--arm dsfl: the arms are fedavg, dsfl-half, local. Did you mean 'dsfl-half'?"],
    ),
    "unknown arm in --set": (
        ["run", "exp.toml", "--arm", "local", "--set", "arms.locl.codec=fp16"],
        ["there is no arm 'locl'", "Did you mean 'local'?"],
    ),
    "folder that holds a run": (
        ["compare", "exp.toml", "--out", "a [b] c"],
        ["a [b] c already holds a run: choose another folder with --out", "fedistill resume 'a [b] c'"],
    ),
    "folder without a run": (
        ["resume", "."],
        [". holds no run: there is no experiment.toml in it; name the folder"],
    ),
    "no results to report": (
        ["report", "bare"],
        ["results.json cannot be read", "write it by: fedistill resume bare"],
    ),
    "missing option": (["run", "exp.toml"], ["Missing option", "--arm"]),
    "unknown command": (["compair", "exp.toml"], ["No such command 'compair'"]),
}


REAL = ("unknown key", "refusal of a method", "missing option")
"""Those of `WRONG` that get a process of their own."""


@pytest.fixture(scope="module")
def spoiled(done: Path) -> Path:
    """The folder of `done`, with things in it that are wrong."""
    folder = done.parent
    (folder / "bad.toml").write_text("rounds = 2\ntask = {\n")
    (folder / "bare").mkdir()
    (folder / "bare" / "experiment.toml").write_bytes((done / "experiment.toml").read_bytes())
    return folder


@pytest.fixture(scope="module")
def refused(spoiled: Path) -> "dict[str, subprocess.CompletedProcess[str]]":
    """The real ones, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda name: fedistill(*WRONG[name][0], cwd=spoiled), REAL)
        return dict(zip(REAL, found, strict=True))


def check_refusal(name: str, status: Any, out: str, err: str) -> None:
    assert status == 2, err
    assert "Traceback" not in err
    for text in WRONG[name][1]:
        assert text in err
    if name not in ("missing option", "unknown command"):
        assert err.startswith("fedistill: ")
        assert len(err.splitlines()) == 1
    if name != "error that doctor finds":
        assert out == ""


@pytest.mark.parametrize("name", REAL)
def test_what_is_wrong_is_said_in_one_message(
    name: str, refused: "dict[str, subprocess.CompletedProcess[str]]"
) -> None:
    check_refusal(name, refused[name].returncode, refused[name].stdout, refused[name].stderr)


@pytest.mark.parametrize("name", [name for name in WRONG if name not in REAL])
def test_what_is_wrong_is_said_in_one_message_here(name: str, spoiled: Path) -> None:
    ended = here(*WRONG[name][0], cwd=spoiled)
    check_refusal(name, ended.returncode, ended.stdout, ended.stderr)


def test_nothing_is_written_for_a_refused_experiment(
    refused: "dict[str, subprocess.CompletedProcess[str]]", done: Path
) -> None:
    assert refused["refusal of a method"].returncode == 2
    assert not (done.parent / "refused").exists()
    assert not (done.parent / "runs").exists()


# --- runs that fail ---


def test_nan_in_one_arm_leaves_the_others(done: Path) -> None:
    ended = here(
        *("compare", "exp.toml", "--out", "nan", "--set", "arms.dsfl-half.train.optimizer.lr=1e30"),
        cwd=done.parent,
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    path = done.parent / "nan"
    fedavg, dsfl, local = read(path / "results.json")["arms"]
    assert [arm["status"] for arm in (fedavg, dsfl, local)] == ["done", "failed", "done"]
    first = read(done / "results.json")["arms"][1]["rounds"][0]["clients"][0]
    assert dsfl["error"].startswith(f"round 1, client {first}: ")
    assert "lower train.optimizer.lr" in dsfl["error"]
    assert (dsfl["rounds"], dsfl["bytes_total"]) == ([], 0)
    # Said once it happens, and again below the table.
    assert ended.stderr.splitlines()[-1] == f"fedistill: arm 'dsfl-half' failed: {dsfl['error']}"
    assert "dsfl-half [failed]" in ended.stdout
    assert [e["error"] for e in events(path) if e["event"] == "failed"] == [dsfl["error"]]
    # The others are as in a comparison without it.
    whole, _ = outcome(done)
    found, models = outcome(path)
    assert [found["arms"][0], found["arms"][2]] == [whole["arms"][0], whole["arms"][2]]
    assert (path / "report.html").stat().st_size > 10_000
    assert not [name for name in models if "dsfl" in name]


# --- runs that are stopped ---

GATED = '''
"""A small model that waits in training once a run has so many rounds, as long as GATE is set."""

import os
import pathlib
import time

from torch import nn


class Net(nn.Module):
    def __init__(self, signature):
        super().__init__()
        self.head = nn.Linear(signature.shape[1] * signature.shape[2], signature.classes)

    def forward(self, x):
        if self.training and "GATE" in os.environ:
            gate = pathlib.Path(os.environ["GATE"])
            events = gate / "run 1" / "events.jsonl"
            played = events.read_text().count('"event": "round"') if events.exists() else 0
            while played >= 4 and not (gate / "go").exists():
                (gate / "waiting").touch()
                time.sleep(0.02)
        return self.head(x.flatten(1))


def small(signature):
    return Net(signature)
'''
STOPPED = """
rounds = 3
[task]
name = "digits"
clients = 4
limit = 120
public = 40
partition = { kind = "dirichlet", alpha = 1.0 }
[models]
clients = ["gated:small", "mlp-s"]
server = "gated:small"
[train]
batch_size = 8
optimizer = { name = "adam", lr = 0.005 }
[runtime]
kind = "processes"
workers = 2
[[arms]]
method = "fd"
[[arms]]
method = "dsfl"
[[arms]]
method = "feddf"
"""


def experiment_with_gate(folder: Path) -> Path:
    (folder / "gated.py").write_text(GATED)
    (folder / "exp.toml").write_text(STOPPED)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The outcome of `STOPPED` where nobody stopped it; in one process."""
    folder = experiment_with_gate(tmp_path_factory.mktemp("whole"))
    ended = here("compare", "exp.toml", "--out", "run 1", "--set", "runtime.kind=serial", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return outcome(folder / "run 1")


@dataclass(frozen=True)
class Stop:
    """How a run is stopped: by which signal, and whether it reaches the whole group, as from a terminal."""

    signal: signal.Signals
    group: bool
    kind: str = "processes"


@pytest.fixture
def stopped(tmp_path: Path, request: pytest.FixtureRequest) -> "Iterator[tuple[Path, int, str]]":
    """A run that got a signal in the second round of its second arm: its folder, status and last words."""
    stop: Stop = request.param
    folder = experiment_with_gate(tmp_path)
    # Short, as the names of sockets must be; the folder of a test may be too long.
    temporary = Path(tempfile.mkdtemp(prefix="fd-"))
    (folder / "tmp").symlink_to(temporary)
    environment = {**os.environ, "GATE": str(folder), "TMPDIR": str(temporary)}
    setting = f"runtime.kind={stop.kind}"
    process = start("compare", "exp.toml", "--out", "run 1", "--set", setting, cwd=folder, env=environment)
    try:
        wait_for(lambda: (folder / "waiting").exists() or process.poll() is not None, "round 4", PATIENCE)
        assert process.poll() is None, process.communicate()
        assert len(processes_with("GATE", folder)) >= (3 if stop.kind == "processes" else 1)
        (os.killpg if stop.group else os.kill)(process.pid, stop.signal)
        _, said = process.communicate(timeout=PATIENCE)
        # Also those that wait in a model, which looks neither at signals nor at its parent.
        wait_for(lambda: not processes_with("GATE", folder), "the workers to end", PATIENCE)
        yield folder, process.returncode, said
    finally:
        (folder / "go").touch()
        process.kill()
        process.wait()
        shutil.rmtree(temporary)


def left_behind(folder: Path) -> list[Path]:
    """Files in the folder for temporary files; torch makes one of its own."""
    found = [path for path in (folder / "tmp").resolve().rglob("*") if not path.is_dir()]
    return [path for path in found if "torchinductor" not in str(path)]


def check_resumed(folder: Path, ended: "subprocess.CompletedProcess[str]", expected: Any) -> None:
    assert ended.returncode == 0, ended.stderr
    results, models = outcome(folder / "run 1")
    assert results == expected[0]
    assert models == expected[1]
    # fd: clients; dsfl: both; feddf: the server, and one of each architecture that travels
    assert len(models) == 4 + (4 + 1) + (1 + 2)
    names = [event["event"] for event in events(folder / "run 1")]
    assert names == ["started", "task", *["round"] * 4, "resumed", *["round"] * 5]


STOPS = [
    Stop(signal.SIGINT, group=True),
    Stop(signal.SIGTERM, group=False),
]
MORE_STOPS = [
    Stop(signal.SIGHUP, group=False, kind="serial"),
    Stop(signal.SIGTERM, group=True),
    Stop(signal.SIGHUP, group=True),
    Stop(signal.SIGINT, group=False, kind="serial"),
    Stop(signal.SIGTERM, group=False, kind="serial"),
]


def stop_name(stop: Stop) -> str:
    return f"{stop.signal.name}-{stop.kind}-{'group' if stop.group else 'alone'}"


@pytest.mark.parametrize(
    "stopped",
    [*STOPS, *(pytest.param(stop, marks=pytest.mark.long) for stop in MORE_STOPS)],
    indirect=True,
    ids=stop_name,
)
def test_what_asks_a_run_to_end_and_going_on(
    stopped: tuple[Path, int, str], uninterrupted: Any, request: pytest.FixtureRequest
) -> None:
    folder, status, said = stopped
    asked: Stop = request.node.callspec.params["stopped"]
    assert status == 1
    assert "Traceback" not in said
    (last,) = said.strip().splitlines()
    by = "" if asked.signal == signal.SIGINT else f" by {asked.signal.name}"
    assert last == (
        f"fedistill: stopped{by}; finished rounds are kept; resume with: fedistill resume 'run 1'"
    )
    arms = read(folder / "run 1" / "results.json")["arms"]
    assert [(arm["status"], len(arm["rounds"])) for arm in arms] == [
        ("done", 3),
        ("stopped", 1),
        ("stopped", 0),
    ]
    assert (folder / "run 1" / "report.html").exists()
    assert left_behind(folder) == []
    # The command can be copied as it was printed.
    program, *arguments = shlex.split(last.partition("resume with: ")[2])
    assert program == "fedistill"
    check_resumed(folder, here(*arguments, cwd=folder), uninterrupted)


@pytest.mark.parametrize("stopped", [Stop(signal.SIGKILL, group=False)], indirect=True, ids=["SIGKILL"])
def test_a_killed_run_and_going_on(stopped: tuple[Path, int, str], uninterrupted: Any) -> None:
    folder, status, _ = stopped
    assert status == -signal.SIGKILL
    assert not (folder / "run 1" / "results.json").exists()
    # Python's own folder for sockets has no data.
    assert [path for path in left_behind(folder) if not path.is_socket()] == []
    check_resumed(folder, here("resume", "run 1", cwd=folder), uninterrupted)


def test_under_nohup_a_closed_terminal_stops_nothing(tmp_path: Path, uninterrupted: Any) -> None:
    folder = experiment_with_gate(tmp_path)
    command = ["nohup", PROGRAM, "compare", "exp.toml", "--out", "run 1", "--set", "runtime.kind=serial"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "GATE": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: (folder / "waiting").exists() or process.poll() is not None, "round 4", PATIENCE)
        process.send_signal(signal.SIGHUP)
        (folder / "go").touch()
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, said
    assert outcome(folder / "run 1") == uninterrupted


# --- doctor and lists ---


def test_doctor_of_a_sound_experiment(place: Path) -> None:
    ended = here("doctor", "exp.toml", cwd=place)
    assert (ended.returncode, ended.stderr) == (0, "")
    found = [line.split(None, 1) for line in ended.stdout.splitlines()]
    assert [level for level, _ in found] == ["fact"] * 6
    assert [text.split(",")[0] for _, text in found[4:]] == [
        "arms: no arm sends statistics once; gaussian would cost about 3.23 kB or less in all",
        "arms: with a public set and these models",
    ]
    # Two clients a round, two rounds.
    assert found[0][1] == "arm 'fedavg': about 38.5 kB up and 38.5 kB down per round, 154 kB in 2 rounds"


def test_methods_are_listed(place: Path) -> None:
    rows = listed(here("methods", cwd=place))
    assert [row[0] for row in rows] == list(METHODS)
    needs = {row[0]: row[3] for row in rows}
    assert needs == {name: ", ".join(method.needs.in_words()) or "-" for name, method in METHODS.items()}
    known = {
        "local": "-",
        "server-alone": "labelled public set",
        "fedavg": "the same architecture",
        "fedprox": "the same architecture",
        "fd": "-",
        "fedmd": "public set",
        "dsfl": "public set",
        "cfd": "public set",
        "scarlet": "public set",
        "voting": "public set",
        "feddf": "public set at the server",
        "fd-plus": "the same architecture",
        "fedproto": "features of the same width",
        "fedtgp": "features of the same width",
        "fedgen": "the same architecture",
        "fml": "-",
        "fedkd": "-",
        "fed-et": "public set at the server",
        "fedgkt": "features of the same width",
        "fedgems": "public set",
        "comet": "public set",
        "selective-fd": "public set",
        "edge-fd": "public set",
    }
    assert {**needs, **known} == needs


def listed(ended: "subprocess.CompletedProcess[str]") -> list[list[str]]:
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = [line for line in ended.stdout.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_codecs_are_listed(place: Path) -> None:
    """With a line on what each loses; a cell that is too long goes on below."""
    found: list[list[str]] = []
    for row in listed(here("codecs", cwd=place)):
        if row[0]:
            found.append(row)
        else:
            found[-1] = [f"{cell} {more}".strip() for cell, more in zip(found[-1], row, strict=True)]
    assert [(row[0], row[2]) for row in found] == [(name, codec.lossiness) for name, codec in CODECS.items()]
    settings = {row[0]: row[3] for row in found}
    assert (settings["fp32"], settings["int8"]) == ("-", "coded = True")


def test_tasks_are_listed(place: Path) -> None:
    rows = listed(here("tasks", cwd=place))
    names = ["digits", "breast-cancer", "bbc-news", "mnist", "fashion-mnist", "hf:OWNER/NAME"]
    assert [row[0] for row in rows] == [*names, "(format, train)"]


def test_models_are_listed_with_their_sizes(place: Path) -> None:
    found = {name: (task, count) for name, task, count in listed(here("models", cwd=place))}
    assert list(found) == [
        *("mlp-s", "cnn-s", "cnn-m", "resnet-8", "resnet-20"),
        *("bag", "textcnn", "transformer-s"),
        *("logistic", "mlp-tab"),
        "NAME@WIDTH",
        "hf:NAME",
        "module:function",
    ]
    assert found["logistic"] == ("table", f"{30 * 2 + 2:,}")
    # 28 * 28 pixels to 64 units to 10 classes.
    assert found["mlp-s"] == ("image", f"{784 * 64 + 64 + 64 * 10 + 10:,}")
    # Two 3x3 convolutions to 16 and 32 channels, 7 * 7 pixels of them to 10 classes.
    assert found["cnn-s"] == ("image", f"{9 * 16 + 16 + 9 * 16 * 32 + 32 + 32 * 49 * 10 + 10:,}")
    assert found["bag"][0] == "text"


def test_help_names_every_command(place: Path) -> None:
    ended = here("--help", cwd=place)
    assert ended.returncode == 0
    for name in [
        "compare",
        "run",
        "tune",
        "audit",
        "resume",
        "report",
        "doctor",
        "methods",
        "codecs",
        "tasks",
        "models",
    ]:
        assert f" {name} " in ended.stdout


# --- options that commands share ---


def test_the_version_is_that_of_the_package(place: Path) -> None:
    ended = fedistill("--version", cwd=place)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"fedistill {version('fedistill')}\n"


def test_the_package_runs_as_a_module_where_the_script_is_not_on_the_path(place: Path) -> None:
    command = [sys.executable, "-m", "fedistill", "run", "exp.toml", "--arm", "fedavg", "--quiet"]
    more = ["--set", "runtime.kind=processes", "--out", "as-module"]
    ended = subprocess.run(
        [*command, *more], cwd=place, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    kept = json.loads((place / "as-module" / "results.json").read_text())
    assert kept["command"].startswith("fedistill run exp.toml --arm fedavg")


RUNS = (["compare"], ["run"], ["tune"], ["resume"], ["flower", "up"], ["flower", "resume"])
LISTS = (["report"], ["doctor"], ["methods"], ["codecs"], ["tasks"], ["models"])


@pytest.mark.parametrize("command", [*RUNS, *LISTS], ids=" ".join)
def test_help_names_the_options_that_commands_share(command: list[str], place: Path) -> None:
    said = here(*command, "--help", cwd=place).stdout
    assert " --json " in said
    assert (" --quiet " in said) == (command in RUNS)


def test_quiet_leaves_out_warnings_and_not_errors(place: Path) -> None:
    """One arm fails; the classes that nobody holds would be a warning."""
    changes = ["task.partition={kind='pathological', classes_per_client=1}", "rounds=1"]
    sets = [part for change in changes for part in ("--set", change)]
    sets += ["--set", "arms.dsfl-half.train.optimizer.lr=1e30"]
    ended = here("compare", "exp.toml", "--out", "quiet", "--quiet", *sets, cwd=place)
    assert ended.returncode == 1
    error = read(place / "quiet" / "results.json")["arms"][1]["error"]
    assert ended.stderr == f"fedistill: arm 'dsfl-half' failed: {error}\n"
    assert ended.stdout.endswith("report: quiet/report.html\n")


def test_json_of_a_run_is_its_results_and_its_folder(place: Path) -> None:
    ended = here("run", "exp.toml", "--arm", "local", "--out", "as json", "--json", cwd=place)
    assert (ended.returncode, ended.stderr) == (0, "")
    wanted = {"folder": "as json", **read(place / "as json" / "results.json")}
    assert json.loads(ended.stdout) == wanted
    for command in ("resume", "report"):
        ended = here(command, "as json", "--json", cwd=place)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert json.loads(ended.stdout) == wanted
    ended = here("report", "as json", "--json", "--markdown", cwd=place)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        "fedistill: --json prints all of results.json: leave out --markdown and --reach\n"
    )


def test_json_of_doctor_is_its_findings(place: Path) -> None:
    ended = here("doctor", "exp.toml", "--json", cwd=place)
    assert (ended.returncode, ended.stderr) == (0, "")
    found = json.loads(ended.stdout)
    assert found[0] == {
        "level": "fact",
        "where": "arm 'fedavg'",
        "what": "about 38.5 kB up and 38.5 kB down per round, 154 kB in 2 rounds",
        "fix": "",
    }
    wrong = here("doctor", "exp.toml", "--json", "--set", "models.server=cnn-s", cwd=place)
    assert wrong.returncode == 2
    assert [finding["level"] for finding in json.loads(wrong.stdout)].count("error") == 1
    assert wrong.stderr.startswith("fedistill: arm 'fedavg': method fedavg averages weights")


@pytest.mark.parametrize("command", ["methods", "codecs", "tasks", "models"])
def test_json_of_a_list_is_its_rows(command: str, place: Path) -> None:
    ended = here(command, "--json", cwd=place)
    assert (ended.returncode, ended.stderr) == (0, "")
    rows = [list(row.values()) for row in json.loads(ended.stdout)]
    shown = [row for row in listed(here(command, cwd=place)) if row[0]]
    assert [row[0] for row in rows] == [row[0] for row in shown]
    if command == "models":
        assert ["mlp-s", "image", 784 * 64 + 64 + 64 * 10 + 10] in rows


# --- what ends a run and is not the user's fault ---

KEPT = "finished rounds are kept; resume with: fedistill resume"


@pytest.mark.parametrize(
    ("error", "begun", "said"),
    [
        (KeyboardInterrupt(), False, "stopped; nothing was started yet"),
        (
            RuntimeFailure("fedistill-worker-0 ended (signal 9: Killed)"),
            True,
            "fedistill-worker-0 ended (signal 9: Killed); " + KEPT,
        ),
        (
            OSError(28, "No space left on device", "x.part"),
            True,
            "[Errno 28] No space left on device: 'x.part'; " + KEPT,
        ),
    ],
    ids=["ctrl-c", "worker", "disk"],
)
def test_what_ends_a_run_is_said_in_one_line(
    error: BaseException, begun: bool, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    if begun:
        (tmp_path / "experiment.toml").touch()
    monkeypatch.setattr("fedistill.experiment.seeds.resume_seeds", fail)
    ended = here("resume", tmp_path, cwd=tmp_path)
    assert ended.returncode == 1
    folder = f" {shlex.quote(str(tmp_path))}" if begun else ""
    assert ended.stderr == f"fedistill: {said}{folder}\n"

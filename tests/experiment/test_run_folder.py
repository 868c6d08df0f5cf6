"""The folder of a run: whatever happens to a run, going on with it ends in the same bits."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from fedistill import parse
from fedistill.config.schema import Experiment
from fedistill.errors import ExperimentError
from fedistill.experiment import run_folder
from fedistill.experiment.report import rewrite_report
from fedistill.experiment.run_folder import RunFolder
from fedistill.experiment.runner import prepare, resume_experiment, run_experiment
from fedistill.federation.history import RoundRecord
from fedistill.federation.ledger import Entry
from fedistill.models.registry import build_model
from fedistill.state import decode_state
from helpers.watchers import Watcher

ROUNDS = 3


class Crash(BaseException):
    """The process is gone; nothing may handle this."""


def experiment(*arms: dict[str, Any], clients: int = 4, **more: Any) -> Experiment:
    raw: dict[str, Any] = {
        "rounds": ROUNDS,
        "task": {"name": "digits", "clients": clients, "limit": 120, "public": 40},
        "models": {"clients": ["mlp-s"], "server": "mlp-s"},
        "train": {"batch_size": 16, "optimizer": {"lr": 0.05, "momentum": 0.9}},
        "sampling": {"fraction": 0.5, "dropout": 0.2},
        "runtime": {"kind": "serial"},
        "arms": list(arms or ({"method": "dsfl"}, {"method": "fedavg"})),
    }
    return parse({**raw, **more}, "test")


def outcome(path: Path) -> Any:
    """All that a run leaves behind and that time has no part in."""
    results = json.loads((path / "results.json").read_text())
    for arm in results["arms"]:
        for played in arm["rounds"]:
            assert played.pop("seconds") >= 0
    models = {
        str(file.relative_to(path)): file.read_bytes() for file in sorted((path / "models").rglob("*.*"))
    }
    rounds = [event for event in RunFolder(path).events() if event["event"] == "round"]
    for event in rounds:
        for timed in ("seconds", "server_seconds", "work"):
            del event[timed]
    return results["arms"], models, sorted(rounds, key=lambda event: (event["arm"], event["round"]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The outcome of `experiment()` where nothing happened to it."""
    path = tmp_path_factory.mktemp("whole") / "run"
    run_experiment(experiment(), path, "", Watcher())
    found = outcome(path)
    assert [arm["status"] for arm in found[0]] == ["done", "done"]
    assert len(found[2]) == 2 * ROUNDS
    assert any(one != other for one, other in zip(found[2], found[2][1:], strict=False))
    return found


def crash_at_write(
    monkeypatch: pytest.MonkeyPatch, wanted: Callable[[Path], bool], half: bool = False
) -> None:
    """From now on the first file that is wanted is not written, or is left half written aside."""
    original = run_folder.write_file

    def write(path: Path, data: bytes) -> None:
        if wanted(path):
            if half:
                path.with_name(path.name + ".part").write_bytes(data[: len(data) // 2])
            raise Crash
        original(path, data)

    monkeypatch.setattr(run_folder, "write_file", write)


def nth(count: int) -> Callable[[Path], bool]:
    """True at the n-th call, counted from 0."""
    calls = iter(range(10**6))
    return lambda path: next(calls) == count


# Of each round two clients work: two files of theirs, the server's, the manifest. FedAvg's clients keep
# nothing. The first file is experiment.toml.
@pytest.mark.parametrize("place", range(1, 3 * 4 + 3 * 2 + 1))
def test_a_crash_at_any_file_of_any_round(
    place: int, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        crash_at_write(patched, nth(place), half=place % 2 == 0)
        with pytest.raises(Crash):
            run_experiment(experiment(), tmp_path / "run", "", Watcher())
    watcher = Watcher()
    resume_experiment(tmp_path / "run", watcher)
    assert outcome(tmp_path / "run") == whole
    # Only what was not saved is played again: four files a round of dsfl, then two a round of fedavg.
    saved = place - 1
    assert watcher.begun == {"dsfl": min(3, saved // 4), "fedavg": max(0, saved - 12) // 2}


def test_the_crash_between_event_and_manifest_leaves_the_event(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patched:
        # manifest.json of the second round of dsfl
        crash_at_write(patched, nth(8))
        with pytest.raises(Crash):
            run_experiment(experiment(), folder.path, "", Watcher())
    assert [played.round for played in folder.records("dsfl")] == [1, 2]
    assert folder.last_round("dsfl") == 1
    resume_experiment(folder.path, Watcher())
    assert [played.round for played in folder.records("dsfl")] == [1, 2, 3]
    assert outcome(folder.path) == whole


@pytest.mark.parametrize("method", ["local", "server-alone", "fedprox", "fd", "fedmd", "feddf"])
def test_every_method_goes_on_from_disk_after_every_round(method: str, tmp_path: Path) -> None:
    """With more than ten clients: the order of their names is not that of their numbers."""
    wanted = experiment({"method": method}, clients=12, sampling={"fraction": 0.9})

    def stop(name: str, played: RoundRecord) -> None:
        raise Crash

    run_experiment(wanted, tmp_path / "whole", "", Watcher())
    with pytest.raises(Crash):
        run_experiment(wanted, tmp_path / "run", "", Watcher(stop))
    for _ in range(1, ROUNDS):
        with pytest.raises(Crash):
            resume_experiment(tmp_path / "run", Watcher(stop))
    resume_experiment(tmp_path / "run", Watcher())
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_ctrl_c_leaves_results_of_what_was_done(whole: Any, tmp_path: Path) -> None:
    def stop(name: str, played: RoundRecord) -> None:
        if played.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment(), tmp_path / "run", "", Watcher(stop))
    arms = json.loads((tmp_path / "run" / "results.json").read_text())["arms"]
    assert [(arm["name"], arm["status"], len(arm["rounds"])) for arm in arms] == [
        ("dsfl", "stopped", 2),
        ("fedavg", "stopped", 0),
    ]
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    resume_experiment(tmp_path / "run", Watcher())
    assert outcome(tmp_path / "run") == whole


def test_resuming_a_run_that_is_done_changes_nothing(whole: Any, tmp_path: Path) -> None:
    run_experiment(experiment(), tmp_path / "run", "", Watcher())
    for _ in range(2):
        watcher = Watcher()
        resume_experiment(tmp_path / "run", watcher)
        assert watcher.begun == {"dsfl": ROUNDS, "fedavg": ROUNDS}
        assert outcome(tmp_path / "run") == whole


@pytest.mark.parametrize("half", ['{"event": "round", "arm": "dsfl", "rou', "{", "\0" * 40])
def test_a_half_last_line_of_events_is_ignored(half: str, whole: Any, tmp_path: Path) -> None:
    def stop(name: str, played: RoundRecord) -> None:
        if played.round == 2:
            raise Crash

    with pytest.raises(Crash):
        run_experiment(experiment(), tmp_path / "run", "", Watcher(stop))
    path = tmp_path / "run" / "events.jsonl"
    before = RunFolder(tmp_path / "run").events()
    with path.open("a") as file:
        file.write(half)
    assert RunFolder(tmp_path / "run").events() == before
    resume_experiment(tmp_path / "run", Watcher())
    assert outcome(tmp_path / "run") == whole
    for line in path.read_text().splitlines():
        json.loads(line)


def test_checkpoints_hold_the_last_file_of_each_client_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoint" / "dsfl"
    worked: dict[int, int] = {}

    def look(name: str, played: RoundRecord) -> None:
        worked.update(dict.fromkeys(played.clients, played.round))
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["round"] == played.round
        clients = {f"client-{client}-{last}.safetensors" for client, last in worked.items()}
        assert set(manifest["clients"].values()) == clients
        found = {path.name for path in folder.iterdir()}
        assert found == {"manifest.json", f"server-{played.round}.safetensors", *clients}

    wanted = experiment({"method": "dsfl"}, rounds=5)
    run_experiment(wanted, tmp_path / "run", "", Watcher(look))
    assert len(set(worked.values())) > 1  # else nothing was kept from an earlier round


def stopped(path: Path, after: int = 2) -> RunFolder:
    """A run of `experiment()` that stopped after a round of its first arm."""

    def stop(name: str, played: RoundRecord) -> None:
        if played.round == after:
            raise Crash

    with pytest.raises(Crash):
        run_experiment(experiment(), path, "", Watcher(stop))
    return RunFolder(path)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _forget_round_1(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if '"round": 1' not in line))


def _as_before_missing(path: Path) -> None:
    path.write_text(path.read_text().replace('"missing"', '"absent"'))


@pytest.mark.parametrize(
    ("pattern", "harm", "said"),
    [
        ("checkpoint/dsfl/server-*", _cut, "not a saved state"),
        ("checkpoint/dsfl/client-*", _cut, "not a saved state"),
        ("checkpoint/dsfl/server-*", Path.unlink, "No such file"),
        ("checkpoint/dsfl/client-*", Path.unlink, "No such file"),
        ("checkpoint/dsfl/manifest.json", _cut, "manifest.json: "),
        ("events.jsonl", _forget_round_1, "events.jsonl does not have all rounds up to 2"),
        ("events.jsonl", _as_before_missing, "a round in events.jsonl has no 'missing'; another version"),
    ],
)
def test_a_damaged_checkpoint_says_how_to_go_on(
    pattern: str, harm: Callable[[Path], None], said: str, whole: Any, tmp_path: Path
) -> None:
    folder = stopped(tmp_path / "run")
    harm(next(folder.path.glob(pattern)))
    with pytest.raises(ExperimentError) as caught:
        resume_experiment(folder.path, Watcher())
    message = str(caught.value)
    assert message.startswith("arm 'dsfl': its checkpoint is damaged (")
    assert said in message
    place = folder.path / "checkpoint" / "dsfl"
    assert message.endswith(f"delete the folder {place} to play this arm again from round 1")
    for path in place.iterdir():
        path.unlink()
    place.rmdir()
    resume_experiment(folder.path, Watcher())
    assert outcome(folder.path) == whole


def test_other_data_are_refused(tmp_path: Path) -> None:
    data = tmp_path / "train.csv"
    rows = [f"word{place % 7} word{place % 3} word{place},{'ab'[place % 2]}" for place in range(60)]
    data.write_text("\n".join(["text,label", *rows]))
    task = {"format": "csv", "train": str(data), "clients": 2, "public": 10, "text": {"length": 8}}
    wanted = experiment({"method": "local"}, task=task, models={"clients": ["bag"], "server": "bag"})

    def stop(name: str, played: RoundRecord) -> None:
        raise Crash

    with pytest.raises(Crash):
        run_experiment(wanted, tmp_path / "run", "", Watcher(stop))
    before = (tmp_path / "run" / "events.jsonl").read_text()
    data.write_text("\n".join(["text,label", *rows[:-1], "other words,b"]))
    with pytest.raises(ExperimentError) as caught:
        resume_experiment(tmp_path / "run", Watcher())
    assert "are not those that the run began with" in str(caught.value)
    assert (tmp_path / "run" / "events.jsonl").read_text() == before
    data.write_text("\n".join(["text,label", *rows]))
    resume_experiment(tmp_path / "run", Watcher())


NAMES = [
    "../x",
    "a/b",
    "é",
    ".",
    "..",
    "%.",
    "a%2fb",
    "a%2Fb",
    "[x]",
    "a 0",
    "aȀ",
    "x|y",
    "~",
    "C:\\x",
    "n" * 500,
]


def test_odd_names_of_arms_stay_inside_the_folder_and_apart(tmp_path: Path) -> None:
    arms = [{"method": "server-alone", "name": name, "seed": place} for place, name in enumerate(NAMES)]
    wanted = experiment(*arms, rounds=1)
    outside = tmp_path / "outside"
    outside.mkdir()
    path = outside / "run"
    run_experiment(wanted, path, "", Watcher())
    assert list(tmp_path.iterdir()) == [outside]
    assert list(outside.iterdir()) == [path]
    top = {"experiment.toml", "events.jsonl", "results.json", "report.html", "models", "checkpoint"}
    assert {entry.name for entry in path.iterdir()} == top
    files = [folder.iterdir() for folder in (path / "models").iterdir()]
    assert [[file.name for file in found] for found in files] == [["server"]] * len(NAMES)
    # Each seed has weights of its own, so no arm has overwritten another.
    assert len({file.read_bytes() for file in path.glob("models/*/server/model.safetensors")}) == len(NAMES)
    assert len(list(path.glob("checkpoint/*/manifest.json"))) == len(NAMES)
    watcher = Watcher()
    resume_experiment(path, watcher)
    assert watcher.begun == dict.fromkeys(NAMES, 1)


@given(st.lists(st.text(max_size=150), min_size=2, max_size=2, unique=True))
def test_names_of_folders_are_single_short_and_different(names: list[str]) -> None:
    folder = RunFolder(Path("/runs/one"))
    paths = [folder.model_folder(name, "server") for name in names]
    assert paths[0] != paths[1]
    for path in paths:
        assert path.parent.parent == Path("/runs/one/models")
        assert path.parent.name not in ("", ".", "..")
        assert len(path.parent.name) < 150
        assert path.parent.name.isascii()


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "run 1"
    RunFolder.create(path, experiment(), "first")
    before = (path / "experiment.toml").read_bytes(), (path / "events.jsonl").read_bytes()
    with pytest.raises(ExperimentError) as caught:
        RunFolder.create(path, experiment(), "second")
    assert str(caught.value) == (
        f"{path} already holds a run: choose another folder with --out, or resume that run with: fedistill"
        f" resume '{path}'"
    )
    assert ((path / "experiment.toml").read_bytes(), (path / "events.jsonl").read_bytes()) == before


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ExperimentError, match=r"cannot be written .*choose another folder with --out"):
        RunFolder.create(tmp_path / "file" / "run", experiment(), "")


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ExperimentError, match=r"holds no run: there is no experiment.toml in it"):
            RunFolder.open(path)


def test_report_without_results_says_what_writes_them(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run 1", experiment(), "")
    for content in (None, "{"):
        if content:
            (tmp_path / "run 1" / "results.json").write_text(content)
        with pytest.raises(ExperimentError) as caught:
            rewrite_report(tmp_path / "run 1")
        assert str(caught.value).endswith(f"write it by: fedistill resume '{tmp_path / 'run 1'}'")


def test_what_is_asked_and_the_command_are_kept(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", experiment(), "fedistill compare 'x y.toml'")
    assert folder.experiment() == experiment()
    assert folder.command() == "fedistill compare 'x y.toml'"


def test_the_experiment_in_the_folder_leads_to_the_same_run(whole: Any, tmp_path: Path) -> None:
    run_experiment(experiment(), tmp_path / "one", "", Watcher())
    run_experiment(RunFolder(tmp_path / "one").experiment(), tmp_path / "two", "", Watcher())
    assert outcome(tmp_path / "two") == whole


def test_a_round_as_json_and_back() -> None:
    traffic = [Entry(3, 1, "down", "weights", 20, 8), Entry(3, 1, "up", "logits", 17, 5)]
    gone, carried = {"4": "gone"}, {"up": 30, "down": 40, "late": 1}
    views = {"server@global": 0.25}
    one = RoundRecord(3, [1, 4], [4], 0.5, 0.1, [0.2, 0.3], views, traffic, 2, 0.5, gone, carried)
    plain = json.loads(json.dumps({"event": "round", "arm": "x", **one.to_json()}))
    assert plain["traffic"] == [[1, "down", "weights", 20, 8], [1, "up", "logits", 17, 5]]
    assert RoundRecord.from_json(plain) == one
    assert RoundRecord.from_json(plain) != replace(one, seconds=0.6)


def test_views_are_those_of_the_models_that_are_left(tmp_path: Path) -> None:
    """Worked out anew from the files, one sample at a time."""
    wanted = experiment({"method": "dsfl"})
    run_experiment(wanted, tmp_path / "run", "", Watcher())
    task, _ = prepare(wanted)
    module = build_model("mlp-s", task.signature, seed=0, client=0).eval()

    def share(name: str) -> float:
        module.load_state_dict(load_file(tmp_path / "run" / "models" / "dsfl" / name / "model.safetensors"))
        pixels = task.test.samples.float() / 127.5 - 1
        labels = task.test.labels.tolist()
        right = [int(module(one[None]).argmax()) == label for one, label in zip(pixels, labels, strict=True)]
        return sum(right) / len(right)

    (arm,) = json.loads((tmp_path / "run" / "results.json").read_text())["arms"]
    views = arm["rounds"][-1]["views"]
    assert {client for played in arm["rounds"] for client in played["clients"]} == {0, 1, 2, 3}
    assert views["server@global"] == pytest.approx(share("server"), abs=1e-9)
    clients = [share(f"client-{client}") for client in range(4)]
    assert len(set(clients)) > 1
    assert views["client@global"] == pytest.approx(sum(clients) / 4, abs=1e-9)


def test_final_models_are_those_of_the_last_round(tmp_path: Path) -> None:
    """Weights under PyTorch's own names, which make up the flat vector of the checkpoint."""
    run_experiment(experiment({"method": "dsfl"}, sampling={}), tmp_path / "run", "", Watcher())
    state = decode_state(
        (tmp_path / "run" / "checkpoint" / "dsfl" / f"server-{ROUNDS}.safetensors").read_bytes()
    )
    tensors = load_file(tmp_path / "run" / "models" / "dsfl" / "server" / "model.safetensors")
    names = ["features.1.weight", "features.1.bias", "head.weight", "head.bias"]
    assert set(tensors) == set(names)
    flat = torch.cat([tensors[name].flatten() for name in names])
    assert torch.equal(flat, state["method"]["model"]["weights"])
    assert len(list((tmp_path / "run" / "models" / "dsfl").iterdir())) == 5

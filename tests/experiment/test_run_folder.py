"""The folder of a run: whatever happens to a run, going on with it ends in the same bits."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from fedistill import parse
from fedistill.cli.main import main
from fedistill.config.schema import Experiment
from fedistill.errors import ExperimentError, RuntimeFailure
from fedistill.experiment import checkpoint
from fedistill.experiment.report import rewrite_report
from fedistill.experiment.run_folder import RunFolder
from fedistill.experiment.runner import prepare, resume_experiment, run_experiment
from fedistill.federation.history import RoundRecord
from fedistill.federation.ledger import Entry
from fedistill.federation.local_executor import SerialExecutor
from fedistill.federation.round import play_round
from fedistill.models import registry as models
from fedistill.models.registry import build_model
from fedistill.models.signature import Signature
from helpers.processes import another_in
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


def crash_at(monkeypatch: pytest.MonkeyPatch, wanted: Callable[[str, Path], bool]) -> None:
    """From now on, the first wanted change of a checkpoint is not made, and nothing after it is.

    Changes are told apart by what they do ("sync", "move" or "remove") and to which file; a file that is not
    synced is left half written.
    """
    sync, move, remove = os.fsync, Path.replace, Path.unlink

    def about(what: str, path: Path) -> None:
        if "checkpoint" in path.parts and wanted(what, path):
            raise Crash

    def fsync(file: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{file}"))
        try:
            about("sync", path)
        except Crash:
            if path.suffix == ".part":
                os.truncate(path, path.stat().st_size // 2)
            raise
        sync(file)

    def replace(path: Path, target: Path) -> Path:
        about("move", path)
        return move(path, target)

    def unlink(path: Path, missing_ok: bool = False) -> None:
        about("remove", path)
        remove(path, missing_ok)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(Path, "unlink", unlink)


def nth(count: int) -> Callable[[str, Path], bool]:
    """True for the n-th change, counted from 0."""
    calls = iter(range(10**6))
    return lambda what, path: next(calls) == count


def changes(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All changes of the checkpoints of a run of `experiment()`."""
    found: list[str] = []

    def note(what: str, path: Path) -> bool:
        found.append(f"{what} {path.name}")
        return False

    with monkeypatch.context() as patched:
        crash_at(patched, note)
        run_experiment(experiment(), path, "", Watcher())
    return found


SAVED = ["sync states-{0}.bin.part", "move states-{0}.bin.part", "sync {1}"]
NAMED = ["sync round-{0}.json.part", "move round-{0}.json.part", "sync {1}"]


def test_a_round_is_saved_with_two_files_and_nothing_is_removed_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = changes(tmp_path / "run", monkeypatch)
    kept = [change for change in found if not change.startswith("remove")]
    expected = [
        change.format(number, arm)
        for arm in ("dsfl", "fedavg")
        for number in range(1, ROUNDS + 1)
        for change in SAVED + NAMED
    ]
    assert kept == expected
    # Of what the third round made needless: its manifest first, and only once its own is there.
    removed = found.index("remove round-1.json")
    assert found[removed - 1] == "sync dsfl"
    assert found[removed - 2] == "move round-3.json.part"
    assert len(found) == CHANGES


CHANGES = 39
"""In `experiment()`: six a round, and in the third round of each arm a manifest and what only that needed."""


@pytest.mark.parametrize("place", range(CHANGES))
def test_a_crash_at_any_change_of_any_round(
    place: int, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played: list[int] = []
    with monkeypatch.context() as patched:
        crash_at(patched, nth(place))
        with pytest.raises(Crash):
            run_experiment(experiment(), tmp_path / "run", "", Watcher())
        played = [RunFolder(tmp_path / "run").last_round(arm) for arm in ("dsfl", "fedavg")]
    watcher = Watcher()
    resume_experiment(tmp_path / "run", watcher)
    assert outcome(tmp_path / "run") == whole
    # Only what was not saved is played again.
    assert list(watcher.begun.values()) == played
    assert watcher.found == []
    assert not list((tmp_path / "run").rglob("checkpoint/*/*.part"))


def test_the_crash_between_event_and_manifest_leaves_the_event(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patched:
        crash_at(patched, lambda what, path: path.name == "round-2.json.part")
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


def test_checkpoints_hold_two_rounds_in_a_few_files_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoint" / "dsfl"
    files: dict[int, set[str]] = {0: set()}

    def look(name: str, played: RoundRecord) -> None:
        number = played.round
        manifest = json.loads((folder / f"round-{number}.json").read_text())["manifest"]
        assert manifest["round"] == number
        assert f"states-{number}.bin" in manifest["segments"]
        files[number] = {f"round-{number}.json", *manifest["segments"]}
        assert {path.name for path in folder.iterdir()} == files[number] | files[number - 1]
        # Of the server and four clients: weights, and with momentum as many numbers again.
        needed = 5 * 2 * 4 * 4810
        assert sum(path.stat().st_size for path in folder.glob("states-*")) < 4 * needed

    wanted = experiment({"method": "dsfl"}, rounds=8)
    run_experiment(wanted, tmp_path / "run", "", Watcher(look))
    assert any(len(found) > 2 for found in files.values())  # else nothing was kept from an earlier round


def test_codecs_memories_of_clients_lie_on_the_disk_between_rounds(tmp_path: Path) -> None:
    """Each takes tens of kilobytes while it is used, and a server may have ten thousand of them."""
    asked = experiment({"method": "voting"})
    _, (arm,) = prepare(asked)
    folder = RunFolder.create(tmp_path / "run", asked, "")
    run = folder.restore(arm)
    with SerialExecutor(asked, arm.task) as executor:
        for _ in range(2):
            play_round(run, arm, executor)
            parts = [part for shared in run.shared_states.values() for part in shared.parts.items()]
            memories = [part for name, part in parts if name in ("up", "down")]
            assert memories
            assert not any(part.is_elsewhere or part._value is not None for part in memories)
            held = [part.data for part in memories]
            folder.add_round(arm, run)
            folder.save(arm, run)
            assert all(part.is_elsewhere and part._data is None for part in memories)
            assert [part.data for part in memories] == held
        again = RunFolder(tmp_path / "run").restore(arm)
        laid = [part for shared in again.shared_states.values() for part in shared.parts.items()]
        assert all(part.is_elsewhere == (name in ("up", "down")) for name, part in laid)
        for segment in (tmp_path / "run" / "checkpoint").glob("*/states-*"):
            segment.write_bytes(bytes(segment.stat().st_size))
        with pytest.raises(RuntimeFailure, match="has been damaged since the run began"):
            play_round(run, arm, executor)


def test_rounds_that_are_saved_now_and_then_are_played_again_after_a_kill(whole: Any, tmp_path: Path) -> None:
    """Every third; the last one, and where the run is stopped, in any case."""
    now_and_then = experiment(checkpoint={"every": 3}, rounds=5)

    def stop(name: str, played: RoundRecord) -> None:
        if played.round == 5:
            raise Crash

    run_experiment(experiment(rounds=5), tmp_path / "whole", "", Watcher())
    with pytest.raises(Crash):
        run_experiment(now_and_then, tmp_path / "run", "", Watcher(stop))
    folder = RunFolder(tmp_path / "run")
    assert (len(folder.records("dsfl")), folder.last_round("dsfl")) == (5, 3)
    watcher = Watcher()
    resume_experiment(folder.path, watcher)
    assert watcher.begun == {"dsfl": 3, "fedavg": 0}
    assert outcome(folder.path) == outcome(tmp_path / "whole")
    assert [folder.last_round(arm) for arm in ("dsfl", "fedavg")] == [5, 5]


def test_a_run_that_is_stopped_saves_the_rounds_that_were_not_due(tmp_path: Path) -> None:
    def stop(name: str, played: RoundRecord) -> None:
        if played.round == 2:
            raise KeyboardInterrupt

    now_and_then = experiment({"method": "dsfl"}, checkpoint={"every": 10})
    with pytest.raises(KeyboardInterrupt):
        run_experiment(now_and_then, tmp_path / "run", "", Watcher(stop))
    assert RunFolder(tmp_path / "run").last_round("dsfl") == 2
    watcher = Watcher()
    resume_experiment(tmp_path / "run", watcher)
    assert watcher.begun == {"dsfl": 2}
    run_experiment(experiment({"method": "dsfl"}), tmp_path / "whole", "", Watcher())
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


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


def _flip(place: float) -> Callable[[Path], None]:
    """Return what flips one bit at a part of a file's length."""

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[int(place * (len(data) - 1))] ^= 4
        path.write_bytes(data)

    return flip


def _become(content: str) -> Callable[[Path], None]:
    def become(path: Path) -> None:
        path.write_text(content)

    return become


def _replace(old: str, new: str) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return replace


HARM: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "cut states": ("states-2.bin", _cut, "states-2.bin is not as it was written"),
    "no states": ("states-2.bin", Path.unlink, "states-2.bin: No such file"),
    "flipped first byte": ("states-2.bin", _flip(0), "states-2.bin is not as it was written"),
    "flipped weight": ("states-2.bin", _flip(0.6), "states-2.bin is not as it was written"),
    "flipped index": ("states-2.bin", _flip(1), "states-2.bin is not as it was written"),
    "cut manifest": ("round-2.json", _cut, "round-2.json is not as it was written"),
    "empty manifest": ("round-2.json", _become("{}"), "round-2.json is not as it was written"),
    "list as manifest": ("round-2.json", _become("[]"), "round-2.json is not as it was written"),
    "flipped manifest": ("round-2.json", _flip(0.5), "round-2.json is not as it was written"),
    "other round": ("round-2.json", _replace('"round": 2', '"round": 7'), "is not as it was written"),
    "file elsewhere": (
        "round-2.json",
        _replace('"states-2.bin"', '"../../../states-2.bin"'),
        "round-2.json is not as it was written",
    ),
}


@pytest.mark.parametrize("name", HARM)
def test_a_damaged_round_gives_way_to_the_one_before(name: str, whole: Any, tmp_path: Path) -> None:
    pattern, harm, said = HARM[name]
    folder = stopped(tmp_path / "run")
    harm(next(folder.path.glob(f"checkpoint/dsfl/{pattern}")))
    watcher = Watcher()
    resume_experiment(folder.path, watcher)
    (found,) = watcher.found
    assert (found.level, found.where) == ("warning", "arm dsfl")
    assert found.what.startswith("its checkpoint is damaged (round 2: ")
    assert found.what.endswith("): goes on after round 1")
    assert said in found.what
    assert watcher.begun == {"dsfl": 1, "fedavg": 0}
    assert outcome(folder.path) == whole


def test_a_manifest_that_names_files_elsewhere_is_refused_though_its_digest_is_right(tmp_path: Path) -> None:
    folder = stopped(tmp_path / "run", after=1)
    place = folder.path / "checkpoint" / "dsfl"
    (folder.path / "states-1.bin").write_bytes((place / "states-1.bin").read_bytes())
    content = json.loads((place / "round-1.json").read_text())["manifest"]
    content["segments"]["../../states-1.bin"] = content["segments"].pop("states-1.bin")
    (place / "round-1.json").write_text(
        json.dumps({"manifest": content, "digest": checkpoint._digest_of(content)})
    )
    with pytest.raises(ExperimentError, match=r"round-1\.json is not as it was written"):
        resume_experiment(folder.path, Watcher())


def test_if_both_rounds_are_damaged_the_message_says_how_to_go_on(whole: Any, tmp_path: Path) -> None:
    folder = stopped(tmp_path / "run")
    place = folder.path / "checkpoint" / "dsfl"
    for path in place.glob("states-*"):
        _cut(path)
    before = everything(folder.path)
    with pytest.raises(ExperimentError) as caught:
        resume_experiment(folder.path, Watcher())
    assert str(caught.value) == (
        "arm 'dsfl': its checkpoint is damaged (round 2: states-2.bin is not as it was written;"
        " round 1: states-1.bin is not as it was written); delete the folder"
        f" {place} to play this arm again from round 1"
    )
    assert everything(folder.path) == before
    shutil.rmtree(place)
    resume_experiment(folder.path, Watcher())
    assert outcome(folder.path) == whole


def everything(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_checkpoint_of_an_earlier_version_says_so(tmp_path: Path) -> None:
    folder = stopped(tmp_path / "run", after=1)
    (folder.path / "checkpoint" / "dsfl" / "round-1.json").rename(
        folder.path / "checkpoint" / "dsfl" / "manifest.json"
    )
    with pytest.raises(ExperimentError, match=r"another version of fedistill has written it"):
        resume_experiment(folder.path, Watcher())


def _line(number: int, harm: Callable[[str], str]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        lines = path.read_text().splitlines()
        lines[number] = harm(lines[number])
        path.write_text("\n".join(lines) + "\n")

    return damage


# started, task, round 1, round 2
EVENTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a byte in round 1": (
        _line(2, lambda line: line.replace('"round"', 'x"round"')),
        "line 3 of 4 is damaged",
    ),
    "no object": (_line(1, lambda line: "[]"), "line 2 of 4 is damaged"),
    "no kind": (_line(1, lambda line: "{}"), "line 2 of 4 is damaged"),
    "no arm": (_line(2, lambda line: line.replace('"arm"', '"leg"')), "line 3 of 4 is damaged"),
    "round 1 lost": (
        lambda path: _replace(path.read_text().splitlines()[2] + "\n", "")(path),
        "events.jsonl does not have all rounds up to 2",
    ),
    "other bytes in round 1": (
        _line(2, lambda line: line.replace('"local": 1', '"local": 3')),
        "events.jsonl has other rounds up to 2 than were played",
    ),
}


@pytest.mark.parametrize("name", EVENTS)
def test_damaged_events_are_found_and_nothing_is_changed(name: str, tmp_path: Path) -> None:
    harm, said = EVENTS[name]
    folder = stopped(tmp_path / "run")
    harm(folder.path / "events.jsonl")
    before = everything(folder.path)
    with pytest.raises(ExperimentError) as caught:
        resume_experiment(folder.path, Watcher())
    assert said in str(caught.value)
    assert everything(folder.path) == before


def test_a_damaged_last_line_costs_its_round(whole: Any, tmp_path: Path) -> None:
    folder = stopped(tmp_path / "run")
    _line(3, lambda line: line[:40] + "\x00" + line[41:])(folder.path / "events.jsonl")
    watcher = Watcher()
    resume_experiment(folder.path, watcher)
    assert watcher.begun == {"dsfl": 1, "fedavg": 0}
    assert "events.jsonl does not have all rounds up to 2" in watcher.found[0].what
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
    top = {"experiment.toml", "events.jsonl", "results.json", "report.html", "models", "checkpoint", ".lock"}
    assert {entry.name for entry in path.iterdir()} == top
    files = [folder.iterdir() for folder in (path / "models").iterdir()]
    assert [[file.name for file in found] for found in files] == [["server"]] * len(NAMES)
    # Each seed has weights of its own, so no arm has overwritten another.
    assert len({file.read_bytes() for file in path.glob("models/*/server/model.safetensors")}) == len(NAMES)
    assert len(list(path.glob("checkpoint/*/round-1.json"))) == len(NAMES)
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
    for content in (None, "{", "{}", "[1]", "null", '{"schema": 1}', '{"schema": 2, "arms": [1]}'):
        if content:
            (tmp_path / "run 1" / "results.json").write_text(content)
        with pytest.raises(ExperimentError) as caught:
            rewrite_report(tmp_path / "run 1", print)
        assert str(caught.value).startswith(f"{tmp_path / 'run 1'}: results.json ")
        assert str(caught.value).endswith(f"write it by: fedistill resume '{tmp_path / 'run 1'}'")


def test_results_that_were_changed_by_hand_are_refused_by_the_place(tmp_path: Path) -> None:
    run_experiment(experiment({"method": "fedavg"}, rounds=1), tmp_path / "run", "", Watcher())
    path = tmp_path / "run" / "results.json"
    content = json.loads(path.read_text())
    content["arms"][0]["rounds"][0]["bytes_up"] = "many"
    path.write_text(json.dumps(content))
    with pytest.raises(ExperimentError, match=r"arms\.0\.rounds\.0\.bytes_up"):
        rewrite_report(tmp_path / "run", print)


def test_a_folder_that_cannot_be_written_still_has_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_experiment(experiment({"method": "fedavg"}, rounds=1), tmp_path / "run", "", Watcher())
    page = tmp_path / "run" / "report.html"
    page.unlink()
    page.mkdir()  # nobody can write a file there, not even an administrator
    (page / "file").touch()
    monkeypatch.setattr(sys, "argv", ["fedistill", "report", str(tmp_path / "run"), "--markdown"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    shown = capsys.readouterr()
    assert shown.out.startswith("| arm |")
    assert shown.err.startswith(f"warning: {page} cannot be written (")
    assert len(shown.err.splitlines()) == 1


def test_a_changed_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def net(signature: Signature) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, 10))

    module = ModuleType("changing_net")
    vars(module)["net"] = net
    monkeypatch.setitem(sys.modules, "changing_net", module)
    names = ["changing_net:net"]
    wanted = experiment({"method": "fedavg"}, models={"clients": names, "server": names[0]})

    def stop(name: str, played: RoundRecord) -> None:
        raise Crash

    width = 8
    with pytest.raises(Crash):
        run_experiment(wanted, tmp_path / "run", "", Watcher(stop))
    width = 9
    models._reused.cache_clear()
    with pytest.raises(ExperimentError) as caught:
        resume_experiment(tmp_path / "run", Watcher())
    assert str(caught.value) == (
        "arm 'fedavg': weights of the model changing_net:net have other shapes than when the run began:"
        " restore the model, or start a new run"
    )


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
    wanted = experiment({"method": "dsfl"}, sampling={})
    run_experiment(wanted, tmp_path / "run", "", Watcher())
    saved = RunFolder(tmp_path / "run").restore(prepare(wanted)[1][0])
    tensors = load_file(tmp_path / "run" / "models" / "dsfl" / "server" / "model.safetensors")
    names = ["features.1.weight", "features.1.bias", "head.weight", "head.bias"]
    assert set(tensors) == set(names)
    flat = torch.cat([tensors[name].flatten() for name in names])
    assert torch.equal(flat, saved.server.model.weights)
    assert len(list((tmp_path / "run" / "models" / "dsfl").iterdir())) == 5


def _edited(folder: RunFolder, *changes: tuple[str, str]) -> None:
    path = folder.path / "experiment.toml"
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("lr = 0.05", "lr = 0.1"), "train.optimizer.lr (0.05, now 0.1)"),
        (("lr = 0.05", "lr = 0.1"), 'arms."dsfl".train.optimizer.lr (0.05, now 0.1)'),
        (("\nseed = 0", "\nseed = 1"), "seed (0, now 1)"),
        (("rounds = 3", "rounds = 2"), "rounds (3, now 2)"),
        (('name = "fedavg"', 'name = "other"'), 'arms."fedavg".'),
        (("fraction = 0.5", "fraction = 1.0"), "sampling.fraction (0.5, now 1.0)"),
        (("limit = 120", "limit = 121"), "task.limit (120, now 121)"),
    ],
)
def test_an_edited_experiment_is_refused_by_the_names_of_its_keys(
    change: tuple[str, str], said: str, tmp_path: Path
) -> None:
    folder = stopped(tmp_path / "run", after=1)
    path = folder.path / "experiment.toml"
    path.write_text("\n" + path.read_text())
    _edited(folder, change)
    before = everything(folder.path)
    with pytest.raises(ExperimentError) as caught:
        resume_experiment(folder.path, Watcher())
    assert str(caught.value).startswith(f"{path} has changed since the run began: ")
    assert said in str(caught.value)
    assert everything(folder.path) == before


def test_rounds_may_be_raised_and_arms_added(tmp_path: Path) -> None:
    """The new rounds are those that a run with as many from the start has played."""
    run_experiment(experiment({"method": "dsfl"}, rounds=2), tmp_path / "run", "", Watcher())
    folder = RunFolder(tmp_path / "run")
    _edited(folder, ("rounds = 2", "rounds = 3"), ('kind = "serial"', 'kind = "auto"'))
    with (folder.path / "experiment.toml").open("a") as file:
        file.write('\n[[arms]]\nmethod = "fedavg"\n')
    _edited(folder, ('kind = "auto"', 'kind = "serial"'))
    watcher = Watcher()
    resume_experiment(folder.path, watcher)
    assert watcher.begun == {"dsfl": 2, "fedavg": 0}
    run_experiment(experiment(rounds=3), tmp_path / "whole", "", Watcher())
    assert outcome(folder.path) == outcome(tmp_path / "whole")
    assert [event["event"] for event in folder.events()].count("changed") == 1
    assert folder.experiment() == RunFolder(tmp_path / "whole").experiment()
    resume_experiment(folder.path, Watcher())  # nothing has changed since
    assert [event["event"] for event in folder.events()].count("changed") == 1


def test_an_added_arm_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = stopped(tmp_path / "run", after=1)
    with (folder.path / "experiment.toml").open("a") as file:
        file.write('\n[[arms]]\nmethod = "naive-bayes"\n')
    before = (folder.path / "events.jsonl").read_bytes()
    with pytest.raises(ExperimentError, match="naive-bayes"):
        resume_experiment(folder.path, Watcher())
    assert (folder.path / "events.jsonl").read_bytes() == before


def test_while_a_process_plays_in_a_folder_no_other_does(whole: Any, tmp_path: Path) -> None:
    folder = stopped(tmp_path / "run", after=1)
    with another_in(folder.path, "alone_in"):
        before = everything(folder.path)
        with pytest.raises(ExperimentError) as caught:
            resume_experiment(folder.path, Watcher())
        assert str(caught.value) == (
            f"{folder.path}: another process is running in this folder: wait until it has ended, or name"
            " another folder with --out"
        )
        assert everything(folder.path) == before
    resume_experiment(folder.path, Watcher())  # a process that was killed has let go of it
    assert outcome(folder.path) == whole

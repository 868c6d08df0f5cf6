"""The trackers with their real packages, offline: a run is stopped, resumed, and read back from each."""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fedistill
from fedistill.errors import ExperimentError, RuntimeFailure
from fedistill.tracking.by_name import TRACKERS, trackers
from fedistill.tracking.mlflow import MLflow
from fedistill.tracking.tensorboard import TensorBoard
from helpers.program import here
from helpers.small import write_small

# MLflow calls SQLAlchemy in a way that its newest version would rather not have.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")

BROKEN = 'name = "a/b"\nmethod = "fedavg"\ntrain.optimizer.lr = 1e30'
VALUES = {"bytes_up", "bytes_down", "bytes_total", "seconds"}


class FailsOnce(fedistill.Callback):
    """Stops the run after its first round."""

    def on_round_end(self, arm: Any, record: Any) -> None:
        raise ValueError("enough")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fedistill.Run]:
    """Two arms, one of which cannot train, with two seeds, on all trackers; stopped after the first round."""
    folder = tmp_path_factory.mktemp("tracking")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        patch.chdir(folder)
        wanted = fedistill.load(write_small(folder, "dsfl", BROKEN, seeds=2))
        with pytest.raises(RuntimeFailure, match="enough"):
            fedistill.compare(wanted, folder / "run", callbacks=[*trackers([*TRACKERS]), FailsOnce()])
        yield fedistill.resume(folder / "run", callbacks=trackers([*TRACKERS]))


def rounds_of(run: fedistill.Run, seed: int) -> list[dict[str, Any]]:
    """What each round of ``dsfl`` has to say, by the names of the columns."""
    rounds = run.rounds()
    rows = rounds[(rounds["arm"] == "dsfl") & (rounds["seed"] == seed)]
    found: list[dict[str, Any]] = rows.to_dict("records")
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_tensorboard_has_each_round_once(run: fedistill.Run, seed: int) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "tensorboard" / "dsfl" / f"seed-{seed}"))
    events.Reload()
    views = {"server@global", "client@global", "client@own"}
    assert set(events.Tags()["scalars"]) == VALUES | views
    for name in VALUES | views:
        written = [(scalar.step, scalar.value) for scalar in events.Scalars(name)]
        expected = [(row["round"], pytest.approx(row[name])) for row in rounds_of(run, seed)]
        assert written == expected, name


def test_tensorboard_has_the_settings_as_hyperparameters(run: fedistill.Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(run.path / "tensorboard" / "a%2Fb" / "seed-1"))
    events.Reload()
    written = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    settings = HParamsPluginData.FromString(written).session_start_info.hparams
    assert settings["seed"].number_value == 1
    assert settings["arm.method"].string_value == "fedavg"
    assert settings["arm.train.optimizer.lr"].number_value == 1e30
    assert settings["task.partition.kind"].string_value == "iid"
    assert settings["arm.models.clients"].string_value == '["mlp-s"]'


def test_mlflow_has_a_run_for_each_arm_and_seed(run: fedistill.Run) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("mine")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], "tags.`fedistill.run` = 'run'")
    assert {one.info.run_name: one.info.status for one in found} == {
        "dsfl, seed 0": "FINISHED",
        "a/b, seed 0": "FAILED",
        "dsfl, seed 1": "FINISHED",
        "a/b, seed 1": "FAILED",
    }
    by_name = {one.info.run_name: one for one in found}
    for seed in (0, 1):
        one = by_name[f"dsfl, seed {seed}"]
        assert one.data.params["seed"] == str(seed)
        assert one.data.params["arm.method"] == "dsfl"
        for name in ("server@global", "bytes_total"):
            history = client.get_metric_history(one.info.run_id, name.replace("@", "/"))
            written = [(metric.step, metric.value) for metric in history]
            assert written == [(row["round"], row[name]) for row in rounds_of(run, seed)]


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of an offline run: seven bytes, then chunks with their checksum, length and kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(whole)
            whole = b""


def test_wandb_has_each_round_once_in_one_run_over_a_resume(run: fedistill.Run) -> None:
    ids = json.loads((run.path / "tracking.json").read_text())["wandb"]
    assert ids.keys() == {"dsfl, seed 0", "a/b, seed 0", "dsfl, seed 1", "a/b, seed 1"}
    # A second folder of the same second ends in -1.
    files = sorted((run.path / "wandb").glob(f"offline-run-*-{ids['dsfl, seed 0']}*/*.wandb"))
    assert len(files) == 2, "before and after the stop; `wandb sync` joins them by their id"
    records = [record for path in files for record in wandb_records(path)]
    starts = [record.run for record in records if record.HasField("run")]
    assert {(one.project, one.display_name, one.run_group) for one in starts} == {
        ("fedistill", "dsfl, seed 0", "run")
    }
    settings = {item.key: json.loads(item.value_json) for item in starts[0].config.update}
    assert (settings["arm.method"], settings["seed"]) == ("dsfl", 0)
    written = [
        {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    for row, kept in zip(rounds_of(run, 0), written, strict=True):
        assert {name: kept[name] for name in ("server@global", "bytes_total")} == {
            name: row[name] for name in ("server@global", "bytes_total")
        }
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [1, 0]


@pytest.mark.parametrize("name", TRACKERS)
def test_a_package_that_is_missing_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    if name == "tensorboard":
        for loaded in [one for one in sys.modules if one.startswith("torch.utils.tensorboard")]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.delattr("torch.utils.tensorboard", raising=False)
    with pytest.raises(
        ExperimentError, match=rf"^{name} is not installed .*pip install 'fedistill\[track\]'$"
    ):
        trackers([name])


def test_a_store_that_mlflow_cannot_use_is_told_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "gopher://here")
    with pytest.raises(ExperimentError, match=r"^MLflow cannot use its store: .*; set MLFLOW_TRACKING_URI"):
        MLflow()


def test_a_tracker_without_a_login_is_told_before_the_first_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """wandb looks for one without the network, and reads its settings once per process."""
    import wandb

    wandb.teardown()
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    file = write_small(tmp_path, "local", rounds=1)
    with pytest.raises(RuntimeFailure, match=r"^callback WandB\.on_run_start failed: UsageError: No API key"):
        fedistill.compare(fedistill.load(file), tmp_path / "run", callbacks=trackers(["wandb"]))
    wandb.teardown()
    assert fedistill.resume(tmp_path / "run")["local"].status == "done"


def test_the_command_line_tracks_a_run(tmp_path: Path) -> None:
    file = write_small(tmp_path, "local", rounds=1)
    done = here("compare", file, "--out", tmp_path / "run", "--track", "tensorboard", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len([*(tmp_path / "run" / "tensorboard" / "local").iterdir()]) == 1
    again = here("resume", tmp_path / "run", "--track", "tensorboard", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert len([*(tmp_path / "run" / "tensorboard" / "local").iterdir()]) == 1, "nothing was left to tell"


def test_a_tracker_that_nobody_knows_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    file = write_small(tmp_path, "local", rounds=1)
    done = here("run", file, "--arm", "local", "--out", tmp_path / "run", "--track", "wandbb", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "fedistill: --track wandbb: must be one of tensorboard, mlflow, wandb. Did you mean 'wandb'?\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_damaged_record_of_what_is_tracked_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And does not keep the run from being resumed without it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    file = write_small(tmp_path, "local", rounds=1)

    class Damages(fedistill.Callback):
        def on_run_start(self, run: Any) -> None:
            (run.path / "tracking.json").write_text("{")

    with pytest.raises(
        RuntimeFailure, match=r"on_round_end failed after round 1 .*tracking\.json: cannot be"
    ):
        fedistill.compare(fedistill.load(file), tmp_path / "run", callbacks=[Damages(), MLflow()])
    assert fedistill.resume(tmp_path / "run", callbacks=[TensorBoard()])["local"].status == "done"

"""Complete runs on a pretended device: what is written, what is refused, and who chooses the device."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedistill import parse
from fedistill.config.schema import Experiment, RuntimeConfig
from fedistill.errors import ExperimentError
from fedistill.experiment.preflight import examine
from fedistill.experiment.runner import prepare, resume_experiment, run_experiment
from fedistill.federation import executor
from fedistill.federation.executor import worker_count
from fedistill.flower.node_config import runtime
from fedistill.models.signature import Signature
from fedistill.training import devices
from fedistill.training.devices import computing
from helpers.pretend_device import pretended_device
from helpers.watchers import Watcher


def asked(device: str, **changes: Any) -> Experiment:
    raw = {
        "rounds": 2,
        "task": {"name": "digits", "clients": 2, "limit": 80, "public": 30},
        "models": {"clients": ["mlp-s"], "server": "mlp-s"},
        "train": {"batch_size": 16},
        "runtime": {"kind": "serial", "device": device},
        "arms": [{"method": "dsfl"}],
    }
    return parse(raw | changes, "test")


def stays_behind(signature: Signature) -> nn.Module:
    """A model with a tensor that is neither parameter nor buffer."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.scale = nn.Linear(64, signature.classes), torch.ones(64)

        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = self.head(inputs.flatten(1) * self.scale)
            return logits

    return Scaled()


def test_a_run_says_on_what_it_was_computed_and_stays_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with pretended_device(monkeypatch):
        results = run_experiment(asked("auto"), out, "test", Watcher())
    assert results["hardware"]["device"] == {"type": "cuda", "name": "a device that is not there"}
    assert '"device":{"type":"cuda"' in (out / "report.html").read_text().replace('": ', '":')
    written = (out / "experiment.toml").read_text()
    assert 'device = "cuda"' in written

    monkeypatch.setattr(devices, "_is_there", lambda name: False)
    events = (out / "events.jsonl").read_bytes()
    with pytest.raises(ExperimentError, match="finds no such device here"):
        resume_experiment(out, Watcher())
    (out / "experiment.toml").write_text(written.replace('device = "cuda"', 'device = "cpu"'))
    with pytest.raises(ExperimentError, match=r'runtime.device \("cuda", now "cpu"\)'):
        resume_experiment(out, Watcher())
    assert (out / "events.jsonl").read_bytes() == events


def test_a_run_on_the_processor_says_nothing_of_devices(tmp_path: Path) -> None:
    results = run_experiment(asked("cpu", rounds=1), tmp_path / "run", "test", Watcher())
    assert "device" not in results["hardware"]
    assert json.loads((tmp_path / "run" / "results.json").read_text())["hardware"] == results["hardware"]


def test_workers_may_be_changed_on_a_device_but_not_what_bits_depend_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_experiment(asked("cpu", rounds=1), out, "test", Watcher())
    written = (out / "experiment.toml").read_text()
    (out / "experiment.toml").write_text(written.replace("deterministic = true", "deterministic = false"))
    with pytest.raises(ExperimentError, match=r"runtime\.deterministic"):
        resume_experiment(out, Watcher())


def test_a_device_that_is_not_there_ends_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_is_there", lambda name: False)
    gone = {"format": "csv", "train": "no/such/file.csv", "input": "a", "label": "b", "clients": 2}
    with pytest.raises(ExperimentError, match=r"runtime.device = 'mps'"):
        prepare(asked("mps", task=gone))


def test_a_model_that_cannot_run_there_is_found_before_round_1(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{__name__}:stays_behind"
    models = {"clients": [name], "server": name}
    with pretended_device(monkeypatch):
        for device, found in (("cpu", False), ("cuda", True)):
            experiment = asked(device, models=models)
            task, arms = prepare(experiment)
            errors = [one.what for one in examine(experiment, task, arms) if one.level == "error"]
            assert bool(errors) == found
    assert name in errors[0]
    assert "stays behind: register it" in errors[0]


def test_few_processes_share_a_device_unless_more_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "cores", lambda: 16)
    with pretended_device(monkeypatch):
        for device, most in (("cpu", 16), ("cuda", 4)):
            settings = RuntimeConfig(device=device)
            with computing(settings):
                assert worker_count(settings, clients=100) == most
                assert worker_count(settings.model_copy(update={"workers": 9}), clients=100) == 9


def test_a_site_names_its_own_device() -> None:
    wanted = RuntimeConfig(device="cuda", workers=3)
    assert runtime({}, wanted) == wanted
    assert runtime({"device": "cpu"}, wanted) == RuntimeConfig(device="cpu", workers=3)
    with pytest.raises(ExperimentError, match="node config: `device` = 'gpu'"):
        runtime({"device": "gpu"}, wanted)

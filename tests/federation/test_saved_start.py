"""A run from a saved model: who starts from it, what its clients are sent, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedistill.config.toml import load
from fedistill.errors import ExperimentError
from fedistill.experiment.preflight import examine
from fedistill.experiment.run_folder import RunFolder
from fedistill.experiment.runner import prepare, resume_experiment, run_experiment
from fedistill.federation.arm import ReadyArm
from fedistill.federation.local_executor import ProcessExecutor, SerialExecutor
from fedistill.federation.setup import start_run
from fedistill.models.registry import build_model
from fedistill.testing.runs import bits, finish, require_same, small_experiment
from fedistill.training.model_state import flatten
from helpers.watchers import Watcher

TABLES: dict[str, Any] = {
    "rounds": 2,
    "task": {"clients": 2, "limit": 80, "public": 40, "partition": {"kind": "iid"}},
    "models": {"clients": ["mlp-s"], "server": "mlp-s"},
    "evaluate": {"every": 2},
    "runtime": {"kind": "serial"},
}
FRAME = 4 * (64 * 64 + 64 + 640 + 10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model is saved."""
    out = tmp_path_factory.mktemp("first") / "run"
    run_experiment(small_experiment({**TABLES, "arms": [{"method": "fedavg"}]}), out, "test", Watcher())
    return out


@pytest.fixture(scope="module")
def saved(folder: Path) -> Path:
    return folder / "models" / "fedavg" / "server" / "model.safetensors"


def weights_of(path: Path, model: str = "mlp-s") -> Tensor:
    made = ready("local").federation
    module = build_model(model, made.signatures[model], 3, 0)
    module.load_state_dict(load_file(path))
    return flatten(module)


def ready(method: str, start: Path | None = None, **changes: Any) -> ReadyArm:
    own = changes.pop("arm", {})
    models = {**changes.pop("models", TABLES["models"]), **({} if start is None else {"start": str(start)})}
    _, (arm,) = prepare(
        small_experiment({**TABLES, **changes, "models": models, "arms": [{"method": method, **own}]})
    )
    return arm


@pytest.mark.parametrize("method", ["fedavg", "fml", "feddf", "dsfl", "server-alone", "random-mask"])
def test_the_servers_model_starts_from_it(method: str, saved: Path) -> None:
    arm = ready(method, saved)
    assert torch.equal(start_run(arm).server.model.weights, weights_of(saved))
    assert not torch.equal(start_run(ready(method)).server.model.weights, weights_of(saved))


def test_so_do_travelling_models_of_its_architecture_and_no_others(saved: Path) -> None:
    models = {"clients": ["mlp-s", "cnn-s"], "server": "cnn-m"}
    begun, drawn = (start_run(ready("feddf", start, models=models)).server for start in (saved, None))
    assert torch.equal(begun.travelling["mlp-s"].weights, weights_of(saved))
    assert torch.equal(begun.travelling["cnn-s"].weights, drawn.travelling["cnn-s"].weights)
    assert torch.equal(begun.model.weights, drawn.model.weights)


def test_models_that_clients_keep_are_drawn_as_ever(saved: Path) -> None:
    begun, drawn = (ready("dsfl", start).client(1, 1) for start in (saved, None))
    assert torch.equal(begun.initial_model().weights, drawn.initial_model().weights)


@pytest.mark.parametrize(
    ("method", "arm", "copies"),
    [
        ("fedavg", {"codec": "fp32"}, 0),  # it comes in the first message
        ("fedavg", {"codec": {"up": "stc", "down": "fp32"}}, 0),
        ("fedavg", {"codec": "stc"}, 2),  # its first message is a difference to the start
        ("fml", {"codec": "stc"}, 2),
        ("random-mask", {}, 2),
        ("bridge", {}, 2),
        ("cfd", {}, 2),
        ("fedgkt", {}, 2),
        ("fedgen", {}, 0),
        ("fedgen", {"share": "predictor"}, 2),
        ("dsfl", {}, 0),  # the server's model does not travel
        ("local", {}, 0),
        ("server-alone", {}, 0),
    ],
    ids=str,
)
def test_clients_are_sent_it_at_set_up_where_nothing_else_brings_it(
    method: str, arm: dict[str, Any], copies: int, saved: Path
) -> None:
    """The frame is that of the numbers, and a few bytes."""
    sent = [entry for entry in start_run(ready(method, saved, arm=arm)).ledger.entries if entry.round == 0]
    assert [(entry.client, entry.direction, entry.kind) for entry in sent] == [
        (client, "down", "weights") for client in range(copies)
    ]
    assert all(FRAME < entry.bytes < FRAME + 32 for entry in sent)
    assert start_run(ready(method, arm=arm)).ledger.setup == 0


@pytest.mark.parametrize(("method", "codec"), [("fedavg", "stc"), ("random-mask", "fp32")])
def test_a_run_from_it_is_the_same_everywhere(method: str, codec: str, saved: Path) -> None:
    models = {**TABLES["models"], "start": str(saved)}
    wanted = small_experiment({**TABLES, "models": models, "arms": [{"method": method, "codec": codec}]})
    task, (arm,) = prepare(wanted)
    with SerialExecutor(wanted, task) as executor:
        whole = finish(arm, executor)
    with ProcessExecutor(2, wanted, task) as executor:
        require_same(finish(arm, executor), bits(whole), "in processes")


@pytest.fixture
def stopped(tmp_path: Path, saved: Path) -> tuple[Path, Path]:
    """A run from a copy of the saved model, ended before its last round; the folder and the copy."""
    copy = tmp_path / "start.safetensors"
    copy.write_bytes(saved.read_bytes())

    class Stops(Watcher):
        def round(self, name: str, record: Any) -> None:
            raise KeyboardInterrupt

    models = {**TABLES["models"], "start": str(copy)}
    wanted = small_experiment({**TABLES, "models": models, "arms": [{"method": "random-mask"}]})
    with pytest.raises(KeyboardInterrupt):
        run_experiment(wanted, tmp_path / "run", "test", Stops())
    return tmp_path / "run", copy


def test_a_run_is_resumed_from_the_same_file(stopped: tuple[Path, Path], tmp_path: Path) -> None:
    folder, copy = stopped
    resume_experiment(folder, Watcher())
    asked = RunFolder.open(folder).experiment()
    run_experiment(asked, tmp_path / "whole", "test", Watcher())
    models = [tmp_path / name / "models" / "random-mask" / "server" for name in ("run", "whole")]
    assert torch.equal(*(weights_of(folder / "model.safetensors") for folder in models))
    assert asked.arms[0].models.start == str(copy)


def test_another_file_in_its_place_is_refused(stopped: tuple[Path, Path]) -> None:
    folder, copy = stopped
    tensors = load_file(copy)
    save_file({name: value + 1 for name, value in tensors.items()}, copy)
    with pytest.raises(
        ExperimentError, match="this is not the file that the run began with, or that the server"
    ):
        resume_experiment(folder, Watcher())


def refused(start: Path, **changes: Any) -> str:
    """The only error that is found before round 1."""
    arm = ready("fedavg", start, **changes)
    experiment = small_experiment({**TABLES, "arms": [{"method": "fedavg"}]})
    (error,) = [str(one) for one in examine(experiment, arm.task, [arm]) if one.level == "error"]
    assert error.startswith(f"arm 'fedavg': models.start = {start}: ")
    return error.removeprefix(f"arm 'fedavg': models.start = {start}: ")


def test_what_is_no_start_is_said(saved: Path, folder: Path, tmp_path: Path) -> None:
    assert refused(tmp_path / "none") == "there is no such file or folder"
    assert refused(tmp_path).startswith("no model is saved in it")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(saved.read_bytes()[:-9])
    assert refused(broken).startswith("not a model saved as safetensors")
    assert refused(saved, models={"clients": ["cnn-s"], "server": "cnn-s"}).startswith(
        "fits no model of this arm (cnn-s: features.0.bias is missing): name the architecture that was saved"
    )
    tensors = load_file(saved)
    for name, value, why in (
        ("head.weight", tensors["head.weight"][:5].clone(), "head.weight is (5, 64) and not (10, 64)"),
        ("head.bias", tensors["head.bias"] * torch.nan, "head.bias has values that are NaN or infinite"),
        ("more", torch.ones(1), "it has no more"),
    ):
        save_file({**tensors, name: value}, broken)
        assert f"(mlp-s: {why})" in refused(broken)


def test_a_run_folder_stands_for_its_only_model(saved: Path, folder: Path, tmp_path: Path) -> None:
    for place in (folder, saved.parent, saved.parent.parent):
        assert torch.equal(start_run(ready("fedavg", place)).server.model.weights, weights_of(saved))
    for arm in ("a", "b"):
        (tmp_path / "models" / arm / "server").mkdir(parents=True)
        (tmp_path / "models" / arm / "server" / "model.safetensors").write_bytes(saved.read_bytes())
    several = " ".join(f"{tmp_path / 'models' / arm / 'server'}," for arm in "ab").rstrip(",")
    several = f"name one of {several}"
    assert refused(tmp_path) == f"this run has several models: {several}"


def test_a_method_without_use_for_it_says_so(saved: Path) -> None:
    for method, found in (("local", True), ("fedavg", False)):
        arm = ready(method, saved)
        experiment = small_experiment({**TABLES, "arms": [{"method": method}]})
        facts = [str(one) for one in examine(experiment, arm.task, [arm]) if one.level == "fact"]
        assert any("nothing starts from models.start" in fact for fact in facts) == found


def test_a_path_is_relative_to_the_file(tmp_path: Path) -> None:
    text = """
rounds = 1
[task]
name = "digits"
[models]
clients = ["mlp-s"]
server = "mlp-s"
start = "first/run"
[[arms]]
method = "fedavg"
[[arms]]
method = "fedprox"
models = { start = "other.safetensors" }
"""
    (tmp_path / "exp.toml").write_text(text)
    found = load(tmp_path / "exp.toml")
    places = [found.models, *(arm.models for arm in found.arms)]
    assert [place.start for place in places] == [
        str(tmp_path / name) for name in ("first/run", "first/run", "other.safetensors")
    ]

"""Saved models of images: what they answer is what the run measured, and damaged folders are refused."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file

import fedistill
from fedistill.data.task import Task
from fedistill.deployment.classifier import Classifier
from fedistill.errors import ExperimentError
from fedistill.experiment.api import Run
from fedistill.experiment.run_folder import RunFolder
from fedistill.experiment.runner import prepare
from fedistill.training.model_state import ModelState
from helpers.program import here
from helpers.runs import on_digits

ARMS: list[dict[str, Any]] = [
    {"method": "dsfl", "distill_epochs": 30, "models": {"clients": ["cnn-s", "mlp-s"], "server": "cnn-s"}},
    {"method": "ridge"},
    {"method": "gaussian", "features": "cnn-s", "width": 12},
    {"method": "fedavg", "ema": 0.5},
    {"method": "feddf"},
    {"method": "fedgkt"},
]
EXPERIMENT = on_digits(*ARMS, rounds=2, train={"batch_size": 8, "epochs": 5})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fedistill.compare(EXPERIMENT, tmp_path_factory.mktemp("digits") / "run", quiet=True)


@pytest.fixture(scope="module")
def task() -> Task:
    return prepare(EXPERIMENT)[0]


@pytest.fixture(scope="module")
def pixels(task: Task) -> torch.Tensor:
    assert isinstance(task.test.samples, torch.Tensor)
    return task.test.samples


@pytest.fixture
def folder(run: Run, tmp_path: Path) -> Path:
    """A copy of a saved model."""
    return Path(shutil.copytree(run.path / "models" / "dsfl" / "server", tmp_path / "model"))


def share(model: Classifier, task: Task) -> float:
    right = model.predict(task.test.samples).argmax(dim=1) == task.test.labels
    return int(right.sum()) / len(right)


@pytest.mark.parametrize("arm", ["dsfl", "ridge", "gaussian", "fedavg", "feddf"])
def test_the_servers_model_answers_as_it_was_measured(run: Run, task: Task, arm: str) -> None:
    model = run[arm].server_model()
    accuracy = share(model, task)
    assert accuracy == run[arm].views["server@global"] == model.description.origin.accuracy
    assert accuracy > 0.15, "of models at chance, any would do"


def test_clients_models_answer_as_they_were_measured(run: Run, task: Task) -> None:
    models = [run["dsfl"].client_model(client) for client in range(3)]
    shares = [share(model, task) for model in models]
    assert [model.description.origin.accuracy for model in models] == shares
    assert [model.description.architecture.name for model in models] == ["cnn-s", "mlp-s", "cnn-s"]
    assert len(set(shares)) > 1
    assert run["dsfl"].views["client@global"] == pytest.approx(sum(shares) / 3, abs=1e-12)


@pytest.mark.parametrize("name", ["server", "client-1"])
def test_files_are_answered_as_it_was_measured(run: Run, task: Task, tmp_path: Path, name: str) -> None:
    """The test set as people have images: PNG files in a folder for each class."""
    assert isinstance(task.test.samples, torch.Tensor)
    for number, (pixels, label) in enumerate(zip(task.test.samples, task.test.labels.tolist(), strict=True)):
        folder = tmp_path / "images" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pixels[0].numpy()).save(folder / f"{number}.png")
    model = run.path / "models" / "dsfl" / name
    ended = here("predict", model, "images", "--json", "--quiet", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["labelled"] == len(task.test)
    assert found["accuracy"] == fedistill.load_model(model).description.origin.accuracy


def test_a_model_that_travels_is_saved_beside_the_servers(run: Run, task: Task) -> None:
    model = fedistill.load_model(run.path / "models" / "feddf" / "travelling-cnn-s")
    arm = next(arm for arm in prepare(EXPERIMENT)[1] if arm.name == "feddf")
    kept = RunFolder(run.path).restore(arm).server.travelling["cnn-s"]
    assert torch.equal(ModelState.of(model.network).weights, kept.weights)
    assert model.description.origin.role == "travelling"
    assert share(model, task) > 0.2


def test_probabilities_classes_and_mode(run: Run, pixels: torch.Tensor) -> None:
    model = fedistill.load_model(run.path / "models" / "dsfl" / "server")
    assert not model.training
    assert model.classes == tuple("0123456789")
    found = model.predict(pixels[:50])
    assert found.dtype == torch.float64
    assert found.shape == (50, 10)
    assert torch.allclose(found.sum(dim=1), torch.ones(50, dtype=torch.float64), atol=1e-12, rtol=0)
    # By hand: the network on scaled pixels, as the card says.
    prepared = (pixels[:50].float() - 127.5) / 127.5
    assert torch.allclose(model(prepared).double().softmax(dim=1), found, atol=1e-6)
    assert model.predict(pixels[:0]).shape == (0, 10)


GIVEN: dict[str, Callable[[Any, Path], Any]] = {
    "tensor": lambda images, _: torch.from_numpy(images),
    "array": lambda images, _: images,
    "channels last": lambda images, _: images.transpose(0, 2, 3, 1),
    "grey": lambda images, _: images[:, 0],
    "list of arrays": lambda images, _: list(images[:, 0]),
    "Pillow": lambda images, _: [PIL.Image.fromarray(one[0]) for one in images],
    "paths": lambda images, folder: saved(images, folder),
    "bytes": lambda images, folder: [path.read_bytes() for path in saved(images, folder)],
    "read-only": lambda images, _: np.frombuffer(images.tobytes(), np.uint8).reshape(images.shape),
    "backwards": lambda images, _: np.flip(np.flip(images, 3).copy(), 3),
    "data frame": lambda images, folder: pd.DataFrame(
        {"image": saved(images, folder), "id": range(len(images))}
    ),
    "cells": lambda images, folder: pd.DataFrame(
        {"only": [{"bytes": path.read_bytes(), "path": None} for path in saved(images, folder)]}
    ),
}


def saved(images: Any, folder: Path) -> list[Path]:
    paths = [folder / f"{number}.png" for number in range(len(images))]
    for path, one in zip(paths, images, strict=True):
        PIL.Image.fromarray(one[0]).save(path)
    return paths


@pytest.mark.parametrize("form", GIVEN)
def test_images_in_any_form(run: Run, pixels: torch.Tensor, tmp_path: Path, form: str) -> None:
    model, images = run["dsfl"].server_model(), pixels[:4].numpy()
    assert torch.equal(model.predict(GIVEN[form](images, tmp_path)), model.predict(images))


REFUSED: dict[str, tuple[Any, str]] = {
    "text": (
        ["a good film"],
        "the model reads images, but sample 0 .* is not the path of one: 'a good film'",
    ),
    "floats": (np.zeros((2, 1, 8, 8)), r"pixels must be whole numbers from 0 to 255 \(uint8\).* are float64"),
    "another size": (np.zeros((2, 1, 9, 8), np.uint8), "images of 9x8 pixels, but the model reads 8x8"),
    "colours": (np.zeros((2, 3, 8, 8), np.uint8), "images with 3 channels, but the model reads 1"),
    "another size, Pillow": ([PIL.Image.new("L", (9, 8))], "images of 8x9 pixels, but the model reads 8x8"),
    "sizes differ": ([PIL.Image.new("L", (s, 8)) for s in (8, 9)], "differ in size.*scale them to 8x8"),
    "too many axes": (np.zeros((2, 1, 1, 8, 8), np.uint8), r"has the shape \(n, 1, 8, 8\)"),
    "shapes differ": ([np.zeros((8, s), np.uint8) for s in (8, 9)], "arrays differ in shape"),
    "nothing": ([None], "row 0 .*has no image"),
    "a number": (7, "not a int"),
    "numbers": ([7, 8], "sample 0 .* is of type int: give pictures of Pillow, paths, or an array"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_samples_are_refused(run: Run, case: str) -> None:
    given, message = REFUSED[case]
    with pytest.raises(ExperimentError, match=message):
        run["dsfl"].server_model().predict(given)


def changed(folder: Path, **keys: Any) -> None:
    path = folder / "model.json"
    content = json.loads(path.read_text())
    for key, value in keys.items():
        *parents, last = key.split("__")
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = value
    path.write_text(json.dumps(content))


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no description": (lambda f: (f / "model.json").unlink(), "holds no saved model: there is no model.json"),
    "no JSON": (lambda f: (f / "model.json").write_text("{"), "model.json: cannot be read"),
    "bytes": (lambda f: (f / "model.json").write_bytes(b"\xff\xfe\x00"), "model.json: cannot be read"),
    "deep": (lambda f: (f / "model.json").write_text("[" * 100_000), "model.json: cannot be read"),
    "a list": (lambda f: (f / "model.json").write_text("[]"), "has schema None, but this version knows 1"),
    "schema": (lambda f: changed(f, schema=2), "has schema 2, but this version knows 1"),
    "classes": (lambda f: changed(f, classes=["a"]), "`classes` has 1 names, but the model tells 10 apart"),
    "kind": (lambda f: changed(f, signature__kind="audio"), "`signature.kind` = 'audio'"),
    "shape": (
        lambda f: changed(f, signature__shape=[8, 8]),
        r"`shape` = \[8, 8\] is not that of a model of images",
    ),
    "too large": (lambda f: changed(f, signature__shape=[1, 99999, 99999]), "too large for a sample"),
    "large": (lambda f: changed(f, signature__shape=[1, 4096, 4096]), "not of the architecture"),
    "vocabulary": (
        lambda f: changed(f, signature__vocabulary=9),
        "`vocabulary` = 9 is not that of a model of",
    ),
    "statistics": (
        lambda f: changed(f, architecture__name="naive-bayes"),
        "model 'naive-bayes': RuntimeError",
    ),
    "scaling": (lambda f: changed(f, preprocessing__std=255), "must be 127.5, the scaling of this version"),
    "preprocessing": (
        lambda f: changed(f, preprocessing=None),
        "`preprocessing` is not that of a model of images",
    ),
    "architecture": (lambda f: changed(f, architecture__name="cnn-x"), "'cnn-x' is not one of .*cnn-s"),
    "another architecture": (lambda f: changed(f, architecture__name="mlp-s"), "not of the architecture"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: cannot be read"),
    "half of the weights": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:999]),
        "model.safetensors: cannot be read",
    ),
    "pickle": (
        lambda f: (f / "model.safetensors").write_bytes(pickle.dumps({"head.bias": 1})),
        "model.safetensors: cannot be read",
    ),
    "a tensor less": (
        lambda f: weights(f, lambda t: t.pop("head.bias")),
        "'head.bias' is missing in place of",
    ),
    "a tensor more": (
        lambda f: weights(f, lambda t: t.update(more=torch.zeros(1))),
        r"'more' is \(1,\) in place of nothing",
    ),
    "another shape": (
        lambda f: weights(f, lambda t: t.update({"head.bias": torch.zeros(11)})),
        r"'head.bias' is \(11,\) in place of \(10,\)",
    ),
    "another type": (
        lambda f: weights(f, lambda t: t.update({"head.bias": torch.zeros(10).half()})),
        "'head.bias' is .*float16.* in place of .*float32",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_folder_is_refused(folder: Path, case: str) -> None:
    damage, message = DAMAGED[case]
    damage(folder)
    with pytest.raises(ExperimentError, match=message):
        fedistill.load_model(folder)


def test_keys_of_later_versions_are_ignored(folder: Path, pixels: torch.Tensor) -> None:
    before = fedistill.load_model(folder).predict(pixels)
    changed(folder, later=1, signature__later=2, origin__later=3, preprocessing__later=4)
    assert torch.equal(fedistill.load_model(folder).predict(pixels), before)


def test_broken_weights_answer_nothing(folder: Path, pixels: torch.Tensor) -> None:
    weights(folder, lambda tensors: tensors["head.bias"].fill_(float("nan")))
    with pytest.raises(ExperimentError, match="outputs are NaN or infinite for 7 of 7 samples"):
        fedistill.load_model(folder).predict(pixels[:7])


def test_folders_that_are_no_model_name_one(run: Run) -> None:
    for path in (run.path, run.path / "models", run.path / "models" / "dsfl"):
        with pytest.raises(
            ExperimentError, match=r"has models in it: name one of them.*models/dsfl/client-0"
        ):
            fedistill.load_model(path)
    with pytest.raises(ExperimentError, match="there is no such folder"):
        fedistill.load_model(run.path / "none")


def test_models_that_a_run_does_not_have(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="'ridge' has no model 'client-0'; it has server"):
        run["ridge"].client_model(0)
    with pytest.raises(ExperimentError, match="'dsfl' has no model 'client-3'; it has client-0, client-1"):
        run["dsfl"].client_model(3)
    with pytest.raises(ExperimentError, match=r"takes features of other models, not samples.* method fedgkt"):
        run["fedgkt"].server_model()
    (copy := tmp_path / "run").mkdir()
    shutil.copy(run.path / "results.json", copy)
    shutil.copy(run.path / "experiment.toml", copy)
    with pytest.raises(ExperimentError, match="'dsfl' has saved no models in"):
        Run(copy)["dsfl"].server_model()


def test_the_card_says_what_it_is_and_how_to_use_it(run: Run) -> None:
    card = (run.path / "models" / "dsfl" / "client-1" / "README.md").read_text()
    origin = fedistill.load_model(run.path / "models" / "dsfl" / "client-1").description.origin
    for part in (
        "# The model of client 1: digits",
        "`dsfl`, codec `fp32`",
        "| rounds | 2 of 2 |",
        f"{origin.accuracy:.2%} on the task's test set",
        f"`server@global` | {run['dsfl'].views['server@global']:.2%}",
        "`mlp-s`, 4,810 trained parameters",
        "(pixel - 127.5) / 127.5",
        "Made by: `fedistill.compare()`",
    ):
        assert part in card
    total = sum(round["bytes_up"] + round["bytes_down"] for round in run["dsfl"].rounds)
    assert (origin.bytes_up or 0) + (origin.bytes_down or 0) == total > 0
    for path in run.path.glob("models/*/*/*"):
        assert str(run.path) not in path.read_bytes().decode(errors="replace")


def test_a_network_that_does_not_fit_ends_in_one_message(run: Run, pixels: torch.Tensor) -> None:
    """As of a description that was changed by hand."""
    model = run["dsfl"].server_model()
    model.network = torch.nn.Linear(3, 10)
    with pytest.raises(ExperimentError, match="the model fails: RuntimeError"):
        model.predict(pixels[:2])
    model.network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 9))
    with pytest.raises(ExperimentError, match="the model fails: RuntimeError"):
        model.predict(pixels[:2])

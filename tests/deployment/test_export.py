"""Exported programs answer as the model does, for any number of samples, or are not written."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedistill
from fedistill.config.task import TaskConfig
from fedistill.data.build import build_task
from fedistill.deployment import export
from fedistill.deployment.classifier import Classifier
from fedistill.deployment.description import Columns, Origin
from fedistill.deployment.export import export_model
from fedistill.deployment.saving import Trained, save
from fedistill.errors import ExperimentError
from fedistill.models import registry as models
from fedistill.training.model_state import ModelState
from helpers.files import Files
from helpers.program import here

ORIGIN = Origin(
    task="t", arm="a", method="m", codec="fp32", role="server", seed=0, round=1, rounds=1, parameters=1
)


def saved(folder: Path, name: str) -> Path:
    """Write a model of images or texts to the folder ``model``, and samples for it; return their path."""
    files, labels = Files(folder), ["a", "b"] * 6
    if name in models.model_names("text"):
        path = files.csv(
            "samples.csv", text=[f"word{n % 5} and {'more ' * n}" for n in range(12)], label=labels
        )
        more: dict[str, Any] = {"format": "csv", "public": 5, "text": {"length": 6}}
    else:
        path, more = files.images("samples.parquet", files.pixels(12), labels), {"format": "parquet"}
    task = build_task(TaskConfig.model_validate({"clients": 2, "train": path, **more}), 0)
    network = models.build_model(name, task.signature, seed=0, client=0)
    save(
        folder / "model", Trained(name, name, network, ModelState.of(network)), task, Columns(), False, ORIGIN
    )
    return Path(path)


@pytest.mark.parametrize("name", ["cnn-s", "transformer-s"])
def test_programs_of_torch_export(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, name)
    ended = here("export", "model", path.name, "--torch-export", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    takes = "uint8 pixels (n, 1, 8, 8)" if name == "cnn-s" else "int64 token ids (n, 6)"
    assert ended.stdout.startswith(
        f"model/model.pt2: takes {takes}, returns probabilities (n, 2); on 12 samples of"
    )
    assert ended.stderr == ""
    program = torch.export.load(tmp_path / "model" / "model.pt2").module()
    model = fedistill.load_model(tmp_path / "model")
    given = np.zeros((1, 1, 8, 8), np.uint8) if name == "cnn-s" else ["word1 word2"]
    inputs = model.prepare(given)
    inputs = inputs if name == "cnn-s" else inputs.long()
    assert torch.allclose(program(inputs).double(), model.predict(given), atol=1e-6)


def test_programs_of_onnx(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="checks what was exported; not a dependency")
    path = saved(tmp_path, "textcnn")
    ended = here("export", "model", path.name, "--onnx", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    session = runtime.InferenceSession(tmp_path / "model" / "model.onnx")
    model = fedistill.load_model(tmp_path / "model")
    given = ["word1", "word2 word3", ""]
    found = session.run(["probabilities"], {"inputs": model.prepare(given).long().numpy()})[0]
    assert found == pytest.approx(model.predict(given).numpy(), abs=1e-6)


class Sure(nn.Module):
    """Adds to its logits what a counter outside of the program says."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        type(self).calls += 1
        shift = torch.tensor([0.0, float(self.calls)])
        logits: Tensor = self.head(inputs.flatten(1)) + shift
        return logits


def test_a_program_that_answers_otherwise_is_not_written(tmp_path: Path) -> None:
    saved(tmp_path, "mlp-s")
    model = fedistill.load_model(tmp_path / "model")
    odd = Classifier(Sure(), model.description, None)
    with pytest.raises(ExperimentError, match=r"differ from the model's by up to .*, so nothing was written"):
        export_model(odd, np.zeros((2, 1, 8, 8), np.uint8), "torch-export", tmp_path)
    assert not (tmp_path / "model.pt2").exists()


class Branching(nn.Module):
    """Decides by the values of its inputs, which no graph can."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(inputs.flatten(1))
        return logits if float(inputs.sum()) > 0 else -logits


def test_models_and_machines_that_cannot_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, "mlp-s")
    model = fedistill.load_model(tmp_path / "model")
    pixels = np.zeros((2, 1, 8, 8), np.uint8)
    with pytest.raises(ExperimentError, match=r"--torch-export: the model cannot be exported \("):
        export_model(Classifier(Branching(), model.description, None), pixels, "torch-export", tmp_path)

    def missing(program: Any, example: Any) -> bytes:
        raise ImportError("No module named 'onnxruntime'")

    monkeypatch.setattr(export, "_onnx", missing)
    with pytest.raises(
        ExperimentError, match=r"--onnx needs more packages .*pip install 'fedistill\[export\]'"
    ):
        export_model(model, pixels, "onnx", tmp_path)
    ended = here("export", "model", "samples.parquet", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (
        2,
        "fedistill: name at least one form: --torch-export, --onnx or --hf FOLDER\n",
    )

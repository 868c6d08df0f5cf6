"""Saved models of transformers: used without the folder that they began with, and exported to a new one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import fedistill
from fedistill.config.task import TaskConfig
from fedistill.data.build import build_task
from fedistill.data.task import Task
from fedistill.deployment import export_hf as exporting
from fedistill.deployment.classifier import Classifier
from fedistill.deployment.description import Columns, Origin
from fedistill.deployment.export_hf import export_hf
from fedistill.deployment.saving import Trained, save
from fedistill.errors import ExperimentError
from fedistill.models import registry as models
from fedistill.training.loop import predict
from fedistill.training.model_state import ModelState
from helpers.files import Files
from helpers.program import here
from helpers.tiny_hf import save_bert, save_sentence_encoder, save_vit

WORDS = [f"word{number}" for number in range(8)]
TEXTS = [f"word{number % 5} and {'word7 ' * number}" for number in range(12)]
CLASSES = ("a", "b")
ORIGIN = Origin(
    task="t", arm="a", method="m", codec="fp32", role="server", seed=0, round=1, rounds=1, parameters=1
)


def task_of(folder: Path, kind: str) -> Task:
    files, labels = Files(folder), list(CLASSES) * 6
    if kind == "vit":
        path, more = files.images("samples.parquet", files.pixels(12), labels), {"format": "parquet"}
    else:
        path = files.csv("samples.csv", text=TEXTS, label=labels)
        more: dict[str, Any] = {"format": "csv", "public": 5, "text": {"length": 6}}
    return build_task(TaskConfig.model_validate({"clients": 2, "train": path, **more}), 0)


def saved(folder: Path, kind: str, settings: str = "") -> tuple[Task, torch.Tensor]:
    """Write a model to the folder ``model``, after training that was all noise; return its answers.

    The folder with the weights that it began with is gone.
    """
    start = folder / "start"
    if kind == "vit":
        save_vit(start, side=8)
    elif kind == "sentences":
        save_sentence_encoder(start, WORDS)
    else:
        save_bert(start, WORDS, kind)
    name = f"hf:{start}{settings}"
    task = task_of(folder, kind)
    network = models.build_model(name, task.signature_for(models.preprocessing(name)), seed=0, client=0)
    state = ModelState.of(network)
    noise = torch.randn(state.weights.shape, generator=torch.Generator().manual_seed(0))
    state = ModelState(state.weights + 0.2 * noise, state.integers)
    save(folder / "model", Trained(name, name, network, state), task, Columns(), False, ORIGIN)
    state.load_into(network)
    answers = predict(network, task.test_inputs(models.preprocessing(name))).double().softmax(dim=1)
    start.rename(folder / "gone")
    return task, answers


KINDS = [
    ("Bert", ""),
    ("Bert", "(lora=2)"),
    ("Roberta", "(freeze=encoder)"),
    ("DistilBert", "(lora=2, length=4)"),
    ("sentences", "(freeze=encoder)"),
    ("sentences", "(lora=2)"),
    ("vit", "(lora=2)"),
]


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_a_saved_model_needs_nothing_but_its_folder(kind: str, settings: str, tmp_path: Path) -> None:
    task, expected = saved(tmp_path, kind, settings)
    model = fedistill.load_model(tmp_path / "model")
    samples = task.test.samples
    given = samples if kind == "vit" else list(samples)
    assert torch.allclose(model.predict(given), expected, atol=1e-6)
    assert not any(str(tmp_path) in path.read_text() for path in (tmp_path / "model").glob("*.[jm][sd]*"))


@pytest.mark.parametrize(("kind", "settings"), [one for one in KINDS if one[0] != "sentences"])
def test_export_for_transformers(kind: str, settings: str, tmp_path: Path) -> None:
    """Read by transformers alone, as somebody would who has never heard of fedistill."""
    saved(tmp_path, kind, settings)
    samples = "samples.parquet" if kind == "vit" else "samples.csv"
    ended = here("export", "model", samples, "--hf", "out", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert ended.stdout.startswith("out: from_pretrained of transformers loads it; on 12 samples of samples")
    out, model = tmp_path / "out", fedistill.load_model(tmp_path / "model")
    if kind == "vit":
        network = transformers.AutoModelForImageClassification.from_pretrained(out)
        pixels = np.zeros((1, 3, 8, 8), np.uint8)
        black = -torch.tensor([0.5 / 0.5, 0.4 / 0.25, 0.3 / 0.2]).view(1, 3, 1, 1)
        given = {"pixel_values": black.expand(1, 3, 8, 8)}
        samples_given: Any = pixels[:, :1]
    else:
        network = transformers.AutoModelForSequenceClassification.from_pretrained(out)
        tokenizer = transformers.AutoTokenizer.from_pretrained(out)
        given = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
        samples_given = TEXTS
    with torch.no_grad():
        found = network(**given).logits.double().softmax(dim=1)
    assert torch.allclose(found, model.predict(samples_given), atol=1e-5)
    assert network.config.id2label == {0: "a", 1: "b"}
    assert not any("lora" in key for key, _ in network.named_parameters())
    assert (out / "README.md").is_file()


def test_export_says_what_else_to_use(tmp_path: Path) -> None:
    saved(tmp_path, "sentences", "(freeze=encoder)")
    ended = here("export", "model", "samples.csv", "--hf", "out", cwd=tmp_path)
    assert ended.returncode == 2
    assert "a sentence encoder with a linear layer" in ended.stderr
    assert "use --onnx or --torch-export" in ended.stderr
    other = here("export", "model", "samples.csv", "--torch-export", cwd=tmp_path)
    assert other.returncode == 0, other.stderr


def test_export_writes_nothing_if_outputs_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, "Bert")
    model = fedistill.load_model(tmp_path / "model")
    monkeypatch.setattr(exporting, "merge_adapters", lambda network: network.classifier.weight.data.add_(1))
    monkeypatch.setattr(exporting, "_answers", lambda *_: torch.zeros(2, 2))
    with pytest.raises(ExperimentError, match="so nothing was written"):
        export_hf(model, tmp_path / "model", TEXTS[:2], tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())
    (tmp_path / "out" / "mine.txt").write_text("")
    with pytest.raises(ExperimentError, match="there are files in this folder"):
        export_hf(model, tmp_path / "model", TEXTS[:2], tmp_path / "out")


def test_a_recipe_from_somebody_else_runs_no_code_and_is_checked(tmp_path: Path) -> None:
    saved(tmp_path, "Bert")
    path = tmp_path / "model" / "model.json"
    content = json.loads(path.read_text())

    def tampered(**changes: Any) -> None:
        hf = content["architecture"]["hf"]
        config = hf["config"] | changes.pop("config", {})
        architecture = content["architecture"] | {"hf": hf | {"config": config} | changes}
        path.write_text(json.dumps(content | {"architecture": architecture}))

    for change, message in (
        ({"config": {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}}, "config.json of"),
        ({"config": {"hidden_size": 10**6}}, "is not of the architecture in model.json"),
        ({"lora": -1}, "lora"),
    ):
        tampered(**change)
        with pytest.raises(ExperimentError, match=message):
            fedistill.load_model(tmp_path / "model")
    tampered(config={"auto_map": {"AutoConfig": "mine.Config"}, "_attn_implementation": "owner/kernel"})
    assert isinstance(fedistill.load_model(tmp_path / "model"), Classifier)

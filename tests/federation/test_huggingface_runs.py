"""Runs with models of transformers: bytes, determinism, unlike tokenizers, and features of frozen ones."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from fedistill import parse
from fedistill.config.plugins import before_import
from fedistill.errors import ExperimentError
from fedistill.experiment.runner import prepare, resolve
from fedistill.federation.arm import ReadyArm
from fedistill.federation.local_executor import ProcessExecutor
from fedistill.flower.allowed_modules import AllowedModules, modules_of
from fedistill.models.registry import preprocessing
from fedistill.testing.runs import bits, finish
from helpers.files import Files
from helpers.runs import finished, ready, run_serially
from helpers.tiny_hf import save_bert, save_sentence_encoder, save_vit

WORDS = ["alpha", "bravo", "xylem", *(str(number) for number in range(120))]
HEAD = 3 * 17
ADAPTERS = 2 * 2 * 2 * 16 * 2
"""Two layers, of each query and value, two matrices of 16 x rank 2."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    save_bert(folder / "bert", WORDS)
    save_bert(folder / "roberta", WORDS[::-1], "Roberta")
    save_bert(folder / "distil", [*WORDS[3:], *WORDS[:3]], "DistilBert")
    save_sentence_encoder(folder / "sentences", WORDS)
    save_vit(folder / "vit", side=8)
    return folder


def on_texts(folder: Path, clients: Sequence[Any], server: Any, **arm: Any) -> dict[str, Any]:
    """Two rounds on texts of three classes, each with a word of its own."""
    texts = [f"{('alpha', 'bravo', 'xylem')[number % 3]} {number}" for number in range(60)]
    path = Files(folder).csv("texts.csv", text=texts, label=[number % 3 for number in range(60)])
    text = {"length": 6, "vocabulary": 60}
    return {
        "rounds": 2,
        "task": {"format": "csv", "train": path, "clients": 2, "public": 12, "text": text},
        "models": {"clients": list(clients), "server": server},
        "train": {"batch_size": 8, "optimizer": {"name": "adam", "lr": 0.01}},
        "arms": [arm],
    }


@pytest.mark.parametrize(
    ("settings", "trained"),
    [
        ({"lora": 2}, ADAPTERS + HEAD),
        ({"lora": 2, "freeze": "encoder"}, ADAPTERS + HEAD),
        ({"freeze": "encoder"}, HEAD),
    ],
)
def test_only_what_is_trained_crosses(
    settings: dict[str, Any], trained: int, hub: Path, tmp_path: Path
) -> None:
    """Four bytes for each number, and one for the count of samples up; nothing at the start."""
    model = {"name": f"hf:{hub / 'bert'}", **settings}
    arm, run = finished(on_texts(tmp_path, [model], model, method="fedavg", codec="fp32"))
    assert arm.parameters()["server"] == trained
    down, up = 4 * trained, 4 * trained + 1
    assert [entry.payload for entry in run.ledger.entries] == [down, down, up, up] * 2
    assert run.ledger.setup == 0


def test_serial_or_processes(hub: Path, tmp_path: Path) -> None:
    """Dropout of transformers draws from the stream of client and round."""
    model = f"hf:{hub / 'bert'}(lora=2)"
    wanted, arm = ready(on_texts(tmp_path, [model], model, method="fedavg"))
    once = bits(run_serially(wanted, arm))
    with ProcessExecutor(2, wanted, arm.task) as executor:
        assert bits(finish(arm, executor)) == once


@pytest.mark.parametrize("server", ["distil", None])
def test_unlike_tokenizers_teach_each_other(server: str | None, hub: Path, tmp_path: Path) -> None:
    """Two clients with unlike BERTs, and a server with a third or with words of its own."""
    clients = [f"hf:{hub / 'bert'}", f"hf:{hub / 'roberta'}"]
    name = "bag" if server is None else f"hf:{hub / server}"
    wanted = on_texts(tmp_path, clients, name, method="dsfl", distill_epochs=10)
    wanted["train"]["epochs"] = 6
    arm, run = finished(wanted)
    signatures = {name: arm.signature(name).vocabulary for name in (*clients, name)}
    assert signatures[clients[1]] == signatures[clients[0]] + 1  # 0 is no padding of its own
    views = run.records[-1].views
    assert min(views["client@global"], views["server@global"]) > 0.6


@pytest.mark.parametrize("method", ["fedavg", "dsfl", "bridge"])
def test_a_frozen_sentence_encoder_works_with_its_head_alone(method: str, hub: Path, tmp_path: Path) -> None:
    name = f"hf:{hub / 'sentences'}(freeze=encoder)"
    arm, run = finished(on_texts(tmp_path, [name], name, method=method))
    assert set(arm.parameters().values()) == {HEAD}
    assert run.records[-1].views


@pytest.mark.parametrize("method", ["gaussian", "ridge"])
@pytest.mark.parametrize("model", ["sentences", "bert"])
def test_statistics_take_the_features_of_a_model_of_the_hub(
    method: str, model: str, hub: Path, tmp_path: Path
) -> None:
    _, run = finished(on_texts(tmp_path, ["bag"], "bag", method=method, features=f"hf:{hub / model}"))
    assert run.server.model.weights.shape == (HEAD,)
    assert run.records[-1].views["server@global"] > 0.4


def test_images_of_any_size_and_colour(hub: Path) -> None:
    """Grey digits of 8 x 8 pixels, for a network that takes colours."""
    name = f"hf:{hub / 'vit'}(lora=2)"
    wanted = {
        "rounds": 1,
        "task": {"name": "digits", "clients": 2, "limit": 60},
        "models": {"clients": [name], "server": name},
        "train": {"batch_size": 16},
        "arms": [{"method": "fedavg"}],
    }
    arm, run = finished(wanted)
    assert arm.parameters()["server"] == ADAPTERS + 10 * 17
    assert run.records[-1].views["server@global"] > 0


def test_files_that_have_changed_since_the_run_began_are_refused(hub: Path, tmp_path: Path) -> None:
    """As at a site that has another version: its frozen weights would differ without a word."""
    shutil.copytree(hub / "bert", tmp_path / "bert")
    name = f"hf:{tmp_path / 'bert'}(lora=2)"
    raw = on_texts(tmp_path, ["bag"], "bag", method="ridge", features=f"hf:{hub / 'sentences'}")
    raw["arms"].append({"method": "fedavg", "models": {"clients": [name], "server": name}})
    experiment = parse(raw, "test")
    task, _ = prepare(experiment)
    settled = resolve(experiment, task)
    digests = [arm.models.hf_digests for arm in settled.arms]
    assert [list(one or {}) for one in digests] == [[f"hf:{hub / 'sentences'}"], [name]]
    assert ReadyArm.of(settled.arms[1], settled, task).federation.server_model == name
    weights = load_file(tmp_path / "bert" / "model.safetensors")
    save_file({key: value + 1 for key, value in weights.items()}, tmp_path / "bert" / "model.safetensors")
    with pytest.raises(ExperimentError, match="are not those that the run began with"):
        _ = ReadyArm.of(settled.arms[1], settled, task).federation


def test_a_site_allows_models_of_the_hub_or_brings_its_own(hub: Path, tmp_path: Path) -> None:
    name = f"hf:{hub / 'bert'}(lora=2)"
    raw = on_texts(tmp_path, ["bag"], name, method="dsfl")
    assert modules_of(parse(raw, "test")) == ["hf"]
    features = on_texts(tmp_path, ["bag"], "bag", method="ridge", features=f"hf:{hub / 'sentences'}")
    assert modules_of(parse(features, "test")) == ["hf"]
    own = AllowedModules.of({"model": name})
    with before_import(own.check):
        assert preprocessing(name).tokenizer == str(hub / "bert" / "tokenizer.json")
        with pytest.raises(ExperimentError, match='modules="hf" in its node config allows it'):
            preprocessing(f"hf:{hub / 'roberta'}")
    with before_import(AllowedModules.of({"modules": "hf"}).check):
        preprocessing(f"hf:{hub / 'roberta'}")

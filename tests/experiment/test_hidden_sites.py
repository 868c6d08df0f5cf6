"""What results, events and report say of sites, and that they keep silent where they should."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fedistill import parse
from fedistill.experiment.results import ResultsJson
from fedistill.experiment.runner import run_experiment
from fedistill.experiment.summary import results_of_seeds
from helpers.files import Files
from helpers.watchers import Watcher

SITES = {"St. Anna": 40, "Charlottenburg": 25, "Praxis am Ring": 3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, tuple[Path, ResultsJson]]:
    """The folder and the results of a run, by whether sites are hidden."""
    folder = tmp_path_factory.mktemp("sites")
    names = [name for name, size in SITES.items() for _ in range(size)]
    pictures = Files.pixels(len(names) + 20)
    files = Files(folder)
    labels = [f"kind {place % 2}" for place in range(len(names))]
    train = files.images("train.parquet", pictures[: len(names)], labels, site=names)
    test = files.images("test.parquet", pictures[len(names) :], ["kind 0"] * 10 + ["kind 1"] * 10)
    raw: dict[str, Any] = {
        "rounds": 1,
        "task": {
            "format": "parquet",
            "train": train,
            "test": test,
            "partition": {"kind": "natural", "column": "site"},
            "own_test_share": 0.16,
        },
        "models": {"clients": ["mlp-s"], "server": "mlp-s"},
        "train": {"batch_size": 8},
        "runtime": {"kind": "serial"},
        "arms": [{"method": "fedavg"}, {"method": "local"}],
    }
    found = {}
    for hidden in (False, True):
        raw["evaluate"] = {"metrics": ["accuracy", "log-loss"], "hide_sites": hidden}
        out = folder / f"run-{hidden}"
        found[hidden] = out, run_experiment(parse(raw, "test"), out, "test", Watcher())
    return found


def test_each_site_is_named_with_its_sizes_classes_and_figures(
    runs: dict[bool, tuple[Path, ResultsJson]],
) -> None:
    _, results = runs[False]
    task = results["task"]
    assert task["client_names"] == list(SITES)
    assert task["own_tests"] == [6, 4, 0]
    assert task["samples"] == [34, 21, 3]
    assert list(map(sum, task["class_counts"])) == task["samples"]
    fedavg, local = (arm["rounds"][-1] for arm in results["arms"])
    assert set(fedavg["views"]) == {"server@global", "server@own"}
    assert set(local["views"]) == {"client@global", "client@own"}
    for entry, view in ((fedavg, "server@own"), (local, "client@own")):
        accuracies = entry["sites"]["accuracy"][view]
        assert accuracies[2] is None
        assert [round(value * size, 9) % 1 for value, size in zip(accuracies[:2], (6, 4), strict=True)] == [
            0,
            0,
        ]
        assert entry["spread"]["accuracy"][view]["worst"] == min(accuracies[:2])
        assert entry["views"][view] == pytest.approx(sum(accuracies[:2]) / 2)
        assert set(entry["sites"]) == {"accuracy", "log-loss"}
    assert results["arms"][0]["bytes_evaluation"] == sum(fedavg["evaluation"].values()) > 0
    assert "bytes_evaluation" not in results["arms"][1]
    assert results["metrics"] == [{"name": "log-loss", "better": "lower", "most": None}]


def test_hidden_sites_are_in_no_file_that_is_shown(runs: dict[bool, tuple[Path, ResultsJson]]) -> None:
    folder, results = runs[True]
    _, open_results = runs[False]
    for name in ("results.json", "report.html", "events.jsonl", "experiment.toml"):
        text = (folder / name).read_text(encoding="utf-8")
        assert not [site for site in SITES if site in text], name
    (data,) = re.findall(
        r'id="data">(.*?)</script>', (folder / "report.html").read_text(encoding="utf-8"), re.S
    )
    assert json.loads(data)["results"] == json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert (results["task"]["samples"], results["task"]["class_counts"]) == ([], [])
    assert not {"client_names", "own_tests"} & set(results["task"])
    for arm, shown in zip(results["arms"], open_results["arms"], strict=True):
        entry, open_entry = arm["rounds"][-1], shown["rounds"][-1]
        assert "sites" not in entry
        # What is known of all of them together stays.
        assert entry["views"] == open_entry["views"]
        assert entry["spread"] == open_entry["spread"]
    events = (folder / "events.jsonl").read_text(encoding="utf-8")
    assert '"spread"' in events
    assert '"sites"' not in events


def test_liars_are_sites_too(tmp_path: Path) -> None:
    raw: dict[str, Any] = {
        "rounds": 1,
        "task": {"name": "digits", "clients": 3, "limit": 60},
        "models": {"clients": ["mlp-s"], "server": "mlp-s"},
        "runtime": {"kind": "serial"},
        "evaluate": {"hide_sites": True},
        "attack": {"kind": "label-flip", "clients": [1]},
        "arms": [{"method": "fedavg"}],
    }
    (arm,) = run_experiment(parse(raw, "test"), tmp_path / "run", "", Watcher())["arms"]
    assert not {"liars", "reliability", "distrusted"} & set(arm)


def test_results_of_seeds_keep_metrics_and_their_bytes(runs: dict[bool, tuple[Path, ResultsJson]]) -> None:
    _, one = runs[False]
    both = results_of_seeds("test", [0, 1], {0: one, 1: one})
    assert both["metrics"] == one["metrics"]
    (first, _) = both["arms"][0]["seeds"]
    assert first["bytes_evaluation"] == one["arms"][0]["bytes_evaluation"]

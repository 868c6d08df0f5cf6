"""The examples, shortened, by the command that the README names."""

import json
import os
import tomllib
from pathlib import Path

import pytest

from fedistill.config.toml import load
from fedistill.data.sources import DATA_VARIABLE, DEBIAN_FASHION_MNIST
from fedistill.federation.arm import resolve_arm
from helpers.method_rows import FAMILIES
from helpers.program import fedistill, here

ROOT = Path(__file__).parents[2]
HAS_FASHION_MNIST = DEBIAN_FASHION_MNIST.is_dir() or DATA_VARIABLE in os.environ
EXAMPLES = sorted((ROOT / "examples").rglob("*.toml"))


def everyday(example: Path) -> bool:
    """Whether it is run each time: of two that read all 70,000 images, one; of methods, one of each kind."""
    return example.stem != "fashion-mnist" if example.parent.name != "methods" else example.stem in FAMILIES


@pytest.mark.parametrize("example", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_example_is_valid(example: Path) -> None:
    experiment = load(example)
    assert [resolve_arm(arm).method for arm in experiment.arms] == [arm.method for arm in experiment.arms]


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(path, marks=[] if everyday(path) else [pytest.mark.long], id=path.stem)
        for path in EXAMPLES
    ],
)
def test_example_runs_every_arm(example: Path, tmp_path: Path) -> None:
    raw = tomllib.loads(example.read_text())
    if raw["task"].get("name") == "fashion-mnist" and not HAS_FASHION_MNIST:
        pytest.skip(f"no Fashion-MNIST: set {DATA_VARIABLE} or install Debian's dataset-fashion-mnist")
    short = ["--set", "rounds=1", "--set", "task.limit=300", "--set", "train.epochs=1"]
    if isinstance(raw["task"].get("public"), int):
        short += ["--set", "task.public=100"]
    if "seeds" in raw:
        short += ["--set", "seeds=1"]
    # A process for each would spend most of its time on imports.
    run = fedistill if example.stem == "digits" else here
    done = run("compare", example, *short, "--out", tmp_path / "run", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run" / "seed-0" if "seeds" in raw else tmp_path / "run"
    results = json.loads((folder / "results.json").read_text())
    assert [arm["method"] for arm in results["arms"]] == [arm["method"] for arm in raw["arms"]]
    assert all(arm["status"] == "done" and arm["rounds"][0]["views"] for arm in results["arms"])
    dealt = sum(results["task"]["samples"])
    # A pathological partition leaves out the classes that no client was given.
    assert 200 < dealt <= 300 if results["task"]["partition"].startswith("pathological") else dealt == 300
    assert f"report: {tmp_path / 'run' / 'report.html'}" in done.stdout


def test_experiment_in_the_readme_is_valid(tmp_path: Path) -> None:
    """The first block of TOML is a whole experiment; `doctor` accepts it as it stands."""
    block = (ROOT / "README.md").read_text().split("```toml\n")[1].split("```")[0]
    path = tmp_path / "experiment.toml"
    path.write_text(block)
    done = here("doctor", path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "arm 'dsfl'" in done.stdout

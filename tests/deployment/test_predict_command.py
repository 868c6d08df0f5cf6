"""`fedistill predict` on files of every kind: it answers as the run measured, or refuses what is unlike."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import fedistill
from fedistill.config.task import TaskConfig
from fedistill.data.build import build_task
from fedistill.data.task import Task
from fedistill.deployment.description import Columns, Origin
from fedistill.deployment.predictions import predict_file
from fedistill.deployment.saving import Trained, save
from fedistill.experiment.api import Run
from fedistill.models import registry as models
from fedistill.models.signature import Signature
from fedistill.training.model_state import ModelState
from helpers.files import Files
from helpers.program import here

WORDS = {"sport": "goal match team", "science": "atom star cell", "food": "bread soup salt"}
ORIGIN = Origin(
    task="t", arm="a", method="m", codec="fp32", role="server", seed=0, round=1, rounds=1, parameters=1
)


def texts(rows: int, seed: int) -> tuple[list[str], list[str]]:
    """Short texts whose words tell their class, mostly: a few words are of another one."""
    rng = np.random.default_rng(seed)
    labels = [list(WORDS)[number] for number in rng.integers(0, 3, rows)]
    found = []
    for label in labels:
        own, others = WORDS[label].split(), " ".join(WORDS.values()).split()
        found.append(" ".join([*rng.choice(own, 2), *rng.choice(others, 3)]))
    return found, labels


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts in two files, with unusual names of columns."""
    folder = tmp_path_factory.mktemp("texts")
    for name, rows, seed in (("train", 150, 0), ("test", 90, 1)):
        body, topic = texts(rows, seed)
        Files(folder).csv(f"{name}.csv", body=body, topic=topic)
    return folder


@pytest.fixture(scope="module")
def run(place: Path) -> Run:
    experiment: dict[str, Any] = {
        "rounds": 2,
        "task": {
            "format": "csv",
            "train": str(place / "train.csv"),
            "test": str(place / "test.csv"),
            "input": "body",
            "label": "topic",
            "public": 60,
            "clients": 2,
            "text": {"length": 8},
        },
        "models": {"clients": ["bag"], "server": "bag"},
        "runtime": {"kind": "serial"},
        "arms": [{"method": "dsfl", "distill_epochs": 20}, {"method": "naive-bayes", "buckets": 64}],
    }
    return fedistill.compare(fedistill.parse(experiment, "test"), place / "run", quiet=True)


@pytest.fixture
def model(run: Run) -> str:
    return str(run.path / "models" / "dsfl" / "server")


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize(
    ("arm", "name"), [("dsfl", "server"), ("dsfl", "client-1"), ("naive-bayes", "server")]
)
def test_texts_are_classified_as_the_run_measured(run: Run, place: Path, arm: str, name: str) -> None:
    folder = run.path / "models" / arm / name
    ended = here("predict", folder, "test.csv", "--json", cwd=place)
    assert (ended.returncode, ended.stdout != "") == (0, True), ended.stderr
    found = json.loads(ended.stdout)
    measured = fedistill.load_model(folder).description.origin.accuracy
    assert found["accuracy"] == measured
    assert found["accuracy"] > 0.4
    if name == "server":
        assert measured == run[arm].views["server@global"]
    assert (found["samples"], found["labelled"], found["unknown"]) == (90, 90, {})
    assert f"test.csv: 90 samples; accuracy {measured:.2%}" in ended.stderr


def test_a_saved_model_can_be_used_without_fedistill(run: Run, model: str) -> None:
    """By hand: words of the tokenizer in the folder, the mean of their vectors, one linear layer."""
    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    weights = load_file(Path(model) / "model.safetensors")
    description = json.loads((Path(model) / "model.json").read_text())
    assert description["preprocessing"] | {"words": "unicode", "shift": 0} == description["preprocessing"]
    encoding = tokenizer.encode("goal\x1fmatch\x1fnowhere")
    assert len(encoding.ids) == description["preprocessing"]["length"] == 8
    vectors = weights["features.weight"][encoding.ids[:3]]
    logits = weights["head.weight"] @ vectors.mean(dim=0) + weights["head.bias"]
    expected = dict(zip(description["classes"], logits.softmax(dim=0).tolist(), strict=True))
    found = run["dsfl"].server_model()
    assert dict(
        zip(found.classes, found.predict(["Goal MATCH nowhere"])[0].tolist(), strict=True)
    ) == pytest.approx(expected, abs=1e-6)


def test_csv_has_one_row_for_each_sample(run: Run, place: Path, model: str) -> None:
    ended = here("predict", model, "test.csv", "--quiet", cwd=place)
    assert ended.stderr == ""
    rows = rows_of(ended.stdout)
    assert list(rows[0]) == ["row", "predicted", "label", "p(food)", "p(science)", "p(sport)"]
    assert [row["row"] for row in rows] == [str(number) for number in range(90)]
    labels = [row["topic"] for row in rows_of((place / "test.csv").read_text())]
    assert [row["label"] for row in rows] == labels
    given = [row["body"] for row in rows_of((place / "test.csv").read_text())]
    expected = fedistill.load_model(model).predict(given)
    for row, probabilities in zip(rows, expected.tolist(), strict=True):
        found = [float(row[f"p({name})"]) for name in ("food", "science", "sport")]
        assert found == pytest.approx(probabilities, rel=1e-5)
        assert sum(found) == pytest.approx(1, abs=1e-5)
        assert row["predicted"] == ("food", "science", "sport")[int(np.argmax(found))]


def test_forms_of_what_is_written(place: Path, model: str, tmp_path: Path) -> None:
    for name in ("p.csv", "p.parquet", "p.json"):
        ended = here("predict", model, "test.csv", "--out", tmp_path / name, cwd=place)
        assert (ended.returncode, ended.stdout) == (0, "")
    table = pq.read_table(tmp_path / "p.parquet").to_pydict()
    rows = rows_of((tmp_path / "p.csv").read_text())
    content = json.loads((tmp_path / "p.json").read_text())
    assert table["predicted"] == [row["predicted"] for row in rows]
    assert content["predictions"] == [
        dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)
    ]
    ended = here("predict", model, "test.csv", "--out", "p.txt", cwd=place)
    assert (ended.returncode, ended.stderr) == (
        2,
        "fedistill: --out p.txt: must end in .csv, .parquet or .json, which tells the format\n",
    )


def test_tables_of_other_forms_are_read_alike(place: Path, model: str, tmp_path: Path) -> None:
    rows = rows_of((place / "test.csv").read_text())
    bodies, topics = [row["body"] for row in rows], [row["topic"] for row in rows]
    files = Files(tmp_path)
    files.json("a.jsonl", body=bodies, topic=topics)
    files.parquet("a.parquet", body=bodies, topic=topics)
    datasets.Dataset.from_dict({"body": bodies, "topic": topics}).save_to_disk(tmp_path / "saved")
    (tmp_path / "a.tsv").write_text(
        "body\ttopic\n" + "".join(f"{one}\t{two}\n" for one, two in zip(bodies, topics, strict=True)),
        "utf-16",
    )
    expected = here("predict", model, "test.csv", cwd=place).stdout
    for name in ("a.jsonl", "a.parquet", "saved", "a.tsv"):
        assert here("predict", model, name, cwd=tmp_path).stdout == expected, name


def test_labels_may_be_missing_unknown_or_absent(model: str, tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.csv("some.csv", body=["goal", "atom", "soup", "star"], topic=["sport", "", "weather", "weather"])
    ended = here("predict", model, "some.csv", "--json", cwd=tmp_path)
    found = json.loads(ended.stdout)
    assert (found["labelled"], found["unknown"]) == (1, {"weather": 2})
    assert "(1 of 1 with a label)" in ended.stderr or "(0 of 1 with a label)" in ended.stderr
    assert "2 have labels that are not classes of the model ('weather')" in ended.stderr
    assert [row["label"] for row in found["predictions"]] == ["sport", None, "weather", "weather"]
    files.csv("none.csv", headline=["goal", "atom"])
    ended = here("predict", model, "none.csv", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "none.csv: 2 samples\n")
    assert "label" not in rows_of(ended.stdout)[0]


def test_a_file_is_read_as_the_settings_say(model: str, tmp_path: Path) -> None:
    content = "nr;words;kind\n1;goal caf\u00e9;sport\n2;atom;science\n3;;food\n".encode("latin-1")
    (tmp_path / "odd.csv").write_bytes(content)
    names = ("input=words", "label=kind", "encoding=latin-1", "drop_missing=true")
    sets = [part for name in names for part in ("--set", f"task.{name}")]
    ended = here("predict", model, "odd.csv", *sets, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert [(row["row"], row["label"]) for row in rows_of(ended.stdout)] == [("0", "sport"), ("1", "science")]
    for fewer, message in (
        (sets[2:], "cannot tell which column is the input; set task.input to one of nr, words"),
        (sets[:4], "is not text in utf-8"),
        (sets[:6], "values are missing in 1 of 3 rows"),
        (
            ["--set", "task.limit=3"],
            "--set task.limit: only settings that say how a file is read can be set here",
        ),
        (["--set", "task.separator=ab"], "`separator` = 'ab'"),
        (["--set", "rounds=3"], "--set: only settings of task can be set here"),
        (["--set", "task.input=word", *sets[2:]], "'word' is not a column"),
    ):
        ended = here("predict", model, "odd.csv", *fewer, cwd=tmp_path)
        assert ended.returncode == 2
        assert message in ended.stderr
        assert ended.stdout == ""


def test_unlike_files_are_refused_in_one_line(model: str, tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.images("pictures.parquet", files.pixels(2))
    files.csv("numbers.csv", body=[1.5, 2.5])
    files.text("empty.csv", "")
    files.text("a.xlsx", "")
    for name, message in (
        ("pictures.parquet", "column 'image' holds images, but the model reads texts"),
        ("numbers.csv", "holds numbers, neither images nor texts"),
        ("empty.csv", "has no rows"),
        ("none.csv", "there is no such file"),
        ("a.xlsx", "its ending tells no format"),
    ):
        ended = here("predict", model, name, cwd=tmp_path)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert message in ended.stderr
        assert ended.stderr.count("\n") == 1


# --- images ---


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def saved(folder: Path, **keys: Any) -> tuple[Task, Path]:
    """A task of two clients, and an untrained model of it."""
    config = TaskConfig.model_validate({"clients": 2, **keys})
    task = build_task(config, 0)
    network = models.build_model("mlp-s", task.signature, seed=0, client=0)
    trained = Trained("mlp-s", "mlp-s", network, ModelState.of(network))
    save(folder, trained, task, Columns(), config.image_size is not None, ORIGIN)
    return task, folder


def inputs(folder: Path, path: str, **settings: Any) -> torch.Tensor:
    """What a model is given of a file, by a network that returns the sum of its pixels in place of logits."""
    model = fedistill.load_model(folder)
    seen: list[torch.Tensor] = []
    handle = model.network.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    predict_file(model, path, settings)
    handle.remove()
    return ((torch.cat(seen) + 1) * 127.5).round().to(torch.uint8)


def odd_pictures(count: int, seed: int) -> list[bytes]:
    """Pictures of 16 bits, transparent ones, and turned ones; some larger than others."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        side = 8 + number % 3
        if number % 3 == 0:
            picture = PIL.Image.fromarray(rng.integers(0, 4096, (side, side)).astype(np.uint16))
        elif number % 3 == 1:
            picture = PIL.Image.fromarray(rng.integers(0, 256, (side, side, 2)).astype(np.uint8), "LA")
        else:
            picture = PIL.Image.fromarray(rng.integers(0, 256, (side, side + 3)).astype(np.uint8))
        sink = io.BytesIO()
        exif = PIL.Image.Exif()
        exif[0x0112] = 6
        picture.save(sink, "PNG", **({"exif": exif} if number % 3 == 2 else {}))
        found.append(sink.getvalue())
    return found


def test_pictures_become_the_pixels_that_they_are_in_training(files: Files) -> None:
    """Transparency, 16 bits, turned pictures and scaling follow what the training data have chosen."""
    train = files.images("train.parquet", odd_pictures(12, 0), ["a", "b"] * 6)
    test = files.images("test.parquet", odd_pictures(6, 1), ["a", "b"] * 3)
    keys = {"format": "parquet", "train": train, "test": test, "image_size": [8, 8]}
    task, folder = saved(files.folder / "model", **keys)
    assert task.rendering.background in ("black", "white")
    assert task.rendering.white_level == 4095
    assert torch.equal(inputs(folder, test), task.test.samples)
    # One alone would choose another white level.
    dark = io.BytesIO()
    PIL.Image.fromarray(np.full((8, 8), 1000, dtype=np.uint16)).save(dark, "PNG")
    (files.folder / "dark.png").write_bytes(dark.getvalue())
    assert set(inputs(folder, str(files.folder / "dark.png")).flatten().tolist()) == {
        round(1000 * 255 / 4095)
    }
    bright = inputs(folder, str(files.folder / "dark.png"), white_level=1023)
    assert set(bright.flatten().tolist()) == {round(1000 * 255 / 1023)}


def test_a_task_keeps_its_rendering_where_it_is_sent(files: Files) -> None:
    train = files.images("train.parquet", odd_pictures(12, 0), ["a", "b"] * 6)
    task, _ = saved(files.folder / "model", format="parquet", train=train, image_size=[8, 8])
    assert Task.in_file(task.file(), None).rendering == task.rendering


@pytest.mark.parametrize("layout", ["classes", "flat", "one"])
def test_folders_of_images_and_one_image(files: Files, layout: str) -> None:
    pictures = files.pixels(6)
    tree = files.tree("tree", cat=pictures[:3], dog=pictures[3:])
    task, folder = saved(files.folder / "model", format="imagefolder", train=tree)
    assert task.classes == ("cat", "dog")
    flat = files.folder / "test"  # a name that stands for a split elsewhere
    flat.mkdir()
    for number, one in enumerate(pictures):
        (flat / f"{number}.png").write_bytes(files.png(one))
    path = {"classes": "tree", "flat": "test", "one": "test/4.png"}[layout]
    ended = here("predict", folder, path, cwd=files.folder)
    assert ended.returncode == 0, ended.stderr
    rows = rows_of(ended.stdout)
    names = {
        "classes": [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(3)],
        "flat": [f"{number}.png" for number in range(6)],
        "one": ["4.png"],
    }[layout]
    assert [row["file"] for row in rows] == names
    assert ("label" in rows[0]) == (layout == "classes")
    expected = fedistill.load_model(folder).predict(np.stack(pictures))
    expected = expected[4:5] if layout == "one" else expected
    assert [float(row["p(dog)"]) for row in rows] == pytest.approx(expected[:, 1].tolist(), rel=1e-5)


def test_images_of_another_shape_are_refused(files: Files) -> None:
    train = files.images("train.parquet", files.pixels(6), ["a", "b"] * 3)
    _, folder = saved(files.folder / "model", format="parquet", train=train)
    files.images("colours.parquet", files.pixels(2, channels=3))
    files.images("large.parquet", files.pixels(2, height=9))
    files.images("mixed.parquet", files.pixels(1) + files.pixels(1, height=9))
    files.csv("texts.csv", text=["a film", "a book"])
    for name, message in (
        ("colours.parquet", "has images with 3 channels, but the model reads 1: convert them to grey"),
        ("large.parquet", "has images of 9x8 pixels, but the model reads 8x8: scale them"),
        ("mixed.parquet", "images differ in size, 8x8 pixels and, in row 1, 9x8; scale them to 8x8"),
        ("texts.csv", "column 'text' holds texts, but the model reads images"),
    ):
        ended = here("predict", folder, name, cwd=files.folder)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert message in ended.stderr


def test_grey_images_suit_a_model_of_colours(files: Files) -> None:
    train = files.images("train.parquet", files.pixels(6, channels=3), ["a", "b"] * 3)
    _, folder = saved(files.folder / "model", format="parquet", train=train)
    (grey,) = files.pixels(1, seed=3)
    path = files.images("grey.parquet", [grey])
    assert torch.equal(inputs(folder, path)[0], torch.from_numpy(np.stack([grey] * 3)))


# --- models of somebody's own ---

OWN = """
from torch import nn

def small(signature):
    channels, height, width = signature.shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, signature.classes))
"""


def test_own_models_are_imported_where_the_operator_allows_it(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.text("predicted_models.py", OWN)
    monkeypatch.syspath_prepend(str(files.folder))
    train = files.images("train.parquet", files.pixels(6), ["a", "b"] * 3)
    task = build_task(TaskConfig.model_validate({"format": "parquet", "train": train, "clients": 2}), 0)
    name, folder = "predicted_models:small", files.folder / "model"
    network = models.build_model(name, task.signature, seed=3, client=0)
    save(folder, Trained(name, name, network, ModelState.of(network)), task, Columns(), False, ORIGIN)
    ended = here("predict", folder, "train.parquet", cwd=files.folder)
    assert ended.returncode == 2
    assert "if you trust the module predicted_models, allow it by --modules predicted_models" in ended.stderr
    ended = here("predict", folder, "train.parquet", "--modules", "predicted_models", cwd=files.folder)
    assert ended.returncode == 0, ended.stderr
    assert len(rows_of(ended.stdout)) == 6
    monkeypatch.delattr("predicted_models.small")
    ended = here("predict", folder, "train.parquet", "--modules", "predicted_models", cwd=files.folder)
    assert ended.returncode == 2
    assert "predicted_models has no function 'small'" in ended.stderr


@pytest.mark.parametrize("kind", ["image", "text"])
def test_shapes_are_known_without_memory(kind: Any) -> None:
    """As they are of the module itself."""
    from fedistill.deployment.architecture import Architecture

    signature = Signature("image", (1, 8, 8), 3, 0) if kind == "image" else Signature("text", (8,), 3, 20)
    for name in models.model_names(kind):
        module = models.build_model(name, signature, seed=0, client=0)
        expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
        assert Architecture(name=name).shapes(signature) == expected

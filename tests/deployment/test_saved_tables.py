"""A saved model of tables: model.json has its columns; predict and export answer as the run measured."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import fedistill
from fedistill.config.toml import load
from fedistill.data.records import Features
from fedistill.deployment.description import Description
from fedistill.errors import ExperimentError
from fedistill.experiment.api import Run
from fedistill.experiment.preflight import examine
from fedistill.experiment.runner import prepare
from helpers.files import Files
from helpers.program import here


def rows(folder: Path, name: str, count: int, seed: int) -> pd.DataFrame:
    """A file of patients, without a header and with "?" for what is missing; two columns tell who is ill."""
    rng = np.random.default_rng(seed)
    ages, pains = rng.integers(20, 90, count), rng.choice(["none", "mild", "strong"], count)
    ill = ((ages > 55) | (pains == "strong")).astype(int)
    shown = [age if row % 8 else "?" for row, age in enumerate(ages)]
    Files(folder).csv(name, age=shown, pain=pains, number=[f"no {row}" for row in range(count)], num=ill)
    lines = (folder / name).read_text().split("\n", 1)
    (folder / name).write_text(lines[1])
    return pd.DataFrame({"pain": pains, "age": [age if row % 8 else None for row, age in enumerate(ages)]})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    rows(folder, "train.csv", 200, 0)
    rows(folder, "test.csv", 80, 1)
    return folder


@pytest.fixture(scope="module")
def run(place: Path) -> Run:
    experiment: dict[str, Any] = {
        "rounds": 2,
        "task": {
            "format": "csv",
            "train": str(place / "train.csv"),
            "test": str(place / "test.csv"),
            "column_names": ["age", "pain", "number", "num"],
            "missing": ["?"],
            "label": "num",
            "relabel": {"0": "well", "1": "ill"},
            "public": 60,
            "clients": 2,
            "table": {},
        },
        "models": {"clients": ["mlp-tab"], "server": "mlp-tab"},
        "runtime": {"kind": "serial"},
        "arms": [{"method": "fedavg"}, {"method": "gaussian"}],
    }
    return fedistill.compare(fedistill.parse(experiment, "test"), place / "run", quiet=True)


def test_its_folder_says_what_a_row_becomes(place: Path, run: Run) -> None:
    described = json.loads((place / "run/models/fedavg/server/model.json").read_text())
    encoding = described["preprocessing"]["encoding"]
    assert [column["name"] for column in encoding["numeric"]] == ["age"]
    assert encoding["numeric"][0]["missing"]
    assert 40 < encoding["numeric"][0]["mean"] < 70
    assert encoding["categorical"] == [
        {"name": "pain", "categories": ["mild", "none", "strong"], "missing": False}
    ]
    assert described["classes"] == ["ill", "well"]
    assert described["columns"]["missing"] == ["?"]
    card = (place / "run/models/fedavg/server/README.md").read_text()
    assert "pipeline_tag: tabular-classification" in card
    assert "float32 rows of the shape (n, 5)" in card


@pytest.mark.parametrize("arm", ["fedavg", "gaussian"])
def test_predict_answers_as_the_run_measured(place: Path, run: Run, arm: str) -> None:
    ended = here("predict", f"run/models/{arm}/server", "test.csv", cwd=place)
    assert ended.returncode == 0
    table = list(csv.DictReader(io.StringIO(ended.stdout)))
    right = sum(row["predicted"] == row["label"] for row in table)
    saved = Description.read(place / f"run/models/{arm}/server")
    measured = saved.origin.views["server@global"]
    assert right / 80 == pytest.approx(measured)
    assert right / 80 > 0.8
    assert f"({right} of 80 with a label)" in ended.stderr


def test_a_data_frame_is_answered_as_its_file(place: Path, run: Run) -> None:
    frame = rows(place, "again.csv", 80, 1)
    model = fedistill.load_model(place / "run/models/fedavg/server")
    found = model.predict(frame)
    assert found.shape == (80, 2)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(80, dtype=torch.float64))
    # Other columns, another order, missing values of any kind: the same answers.
    frame["more"] = 1
    nullable = frame[["more", "pain", "age"]].astype({"age": "Int64", "pain": "category"})
    assert model.predict(nullable).equal(found)
    assert model.predict(frame.to_dict("records")).equal(found)
    assert model.predict(frame[:0]).shape == (0, 2)


def test_an_unseen_category_is_unknown(place: Path, run: Run) -> None:
    model = fedistill.load_model(place / "run/models/fedavg/server")
    odd, gone = model.predict([{"age": 50, "pain": "awful"}, {"age": 50, "pain": None}])
    assert odd.equal(gone)
    assert torch.isfinite(odd).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (pd.DataFrame({"age": [3]}), "the model reads 2 columns, and the data frame lacks 'pain'"),
        ([{"pain": "mild"}], "the model reads 2 columns, and row 0 (the first is 0) lacks 'age'"),
        (["a text"], "the model reads rows of a table: give a data frame, or a list of dictionaries"),
        ([{"age": "old", "pain": "mild"}], "column 'age' is numeric, but row 0 (the first is 0) has 'old'"),
    ],
)
def test_what_is_no_such_row_is_refused(place: Path, run: Run, given: Any, message: str) -> None:
    model = fedistill.load_model(place / "run/models/fedavg/server")
    with pytest.raises(ExperimentError) as refused:
        model.predict(given)
    assert message in str(refused.value)


def test_a_file_without_a_column_is_refused(place: Path, run: Run) -> None:
    lacking = Files(place).csv("lacking.csv", age=[1, 2], colour=["a", "b"])
    names = 'task.column_names=["age","colour"]'
    ended = here("predict", "run/models/fedavg/server", lacking, "--set", names, cwd=place)
    assert ended.returncode == 2
    assert (
        "has no column 'pain', which is an input of this task's models; there are age, colour" in ended.stderr
    )


def test_it_is_exported_as_a_program(place: Path, run: Run) -> None:
    ended = here("export", "run/models/fedavg/server", "test.csv", "--torch-export", cwd=place)
    assert ended.returncode == 0
    assert "takes encoded rows, float32 (n, 5), returns probabilities (n, 2)" in ended.stdout
    program = torch.export.load(place / "run/models/fedavg/server/model.pt2").module()
    model = fedistill.load_model(place / "run/models/fedavg/server")
    encoded = torch.tensor([[0.5, 0, 0, 1, 0], [-1.0, 0, 1, 0, 0]])
    torch.testing.assert_close(program(encoded), model(encoded).softmax(dim=1))


def test_a_damaged_encoding_is_refused(place: Path, run: Run, tmp_path: Path) -> None:
    described = json.loads((place / "run/models/fedavg/server/model.json").read_text())
    described["preprocessing"]["encoding"]["numeric"][0]["missing"] = False
    (tmp_path / "model.json").write_text(json.dumps(described))
    with pytest.raises(ExperimentError, match="`encoding` makes 4 numbers of a row, but the model reads 5"):
        Description.read(tmp_path)


def test_features_are_told(place: Path, run: Run) -> None:
    model = fedistill.load_model(place / "run/models/fedavg/server")
    assert model.features == Features(("age",), ("pain",))


def started(place: Path, **task: Any) -> list[str]:
    """What is found of an arm that starts from the saved model, where the file is the test's."""
    experiment = load(place / "run" / "experiment.toml").model_dump(exclude_none=True)
    start = str(place / "run/models/fedavg/server")
    raw = {
        "rounds": 1,
        "task": {**experiment["task"], **task},
        "arms": [{"method": "fedavg"}],
        "models": {"clients": ["mlp-tab"], "server": "mlp-tab", "start": start},
    }
    wanted = fedistill.parse(raw, "test")
    task_of, (arm,) = prepare(wanted)
    return [f"{one.level} {one.what}" for one in examine(wanted, task_of, [arm]) if "saved model" in one.what]


def test_a_start_that_has_read_other_rows_is_told(place: Path, run: Run) -> None:
    assert started(place) == []
    assert started(place, public=40) == [
        "fact columns had other means and deviations when the saved model was trained"
    ]
    other = (place / "train.csv").read_text().replace("strong", "severe")
    (place / "other.csv").write_text(other)
    tested = (place / "test.csv").read_text().replace("strong", "severe")
    (place / "tested.csv").write_text(tested)
    (warning,) = started(place, train=str(place / "other.csv"), test=str(place / "tested.csv"))
    assert warning.startswith("warning the saved model reads other columns or categories, in as many places")

"""Tables as tasks: which columns are inputs, how rows are encoded, and what clients share for it."""

import contextlib
import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler

from fedistill import parse
from fedistill.communication.kinds import Kind
from fedistill.communication.protocol.frame import Frame, decode, encode
from fedistill.config.task import TableConfig, TaskConfig
from fedistill.data.build import build_task
from fedistill.data.record_columns import choose_features
from fedistill.data.record_encoding import (
    LIMIT,
    CategoricalColumn,
    NumericColumn,
    RecordEncoding,
    encoding_frame,
    read_encoding,
)
from fedistill.data.record_sums import ColumnSums, combined, read_sums, sums_frame
from fedistill.data.records import Features, Records, records_of
from fedistill.data.tables import read_csv
from fedistill.data.task import Task
from fedistill.errors import ExperimentError, FrameError
from fedistill.experiment.runner import prepare
from fedistill.experiment.task_checks import check_task
from fedistill.federation.setup import start_run
from fedistill.models.signature import Preprocessing
from helpers.files import Files

Make = Callable[..., Task]
Refused = Callable[..., str]
BOTH = Features(("age",), ("colour",))


def records(ages: list[Any], colours: list[Any]) -> Records:
    return records_of({"age": ages, "colour": colours}, BOTH, len(ages), "here")


def patients(files: Files, name: str = "patients.csv", rows: int = 60, seed: int = 0) -> str:
    """A file whose class follows from age and colour; every sixth age is missing."""
    rng = np.random.default_rng(seed)
    ages, colours = rng.integers(20, 90, rows), rng.choice(["red", "green", "blue"], rows)
    ill = np.where((ages > 55) ^ (colours == "red"), "ill", "well")
    return files.csv(
        name,
        age=["" if row % 6 == 5 else age for row, age in enumerate(ages)],
        colour=colours,
        site=[f"site {row % 3}" for row in range(rows)],
        label=ill,
    )


# Encoding.


def test_a_row_is_scaled_numbers_marks_of_missing_ones_and_categories() -> None:
    encoding = RecordEncoding(
        numeric=(NumericColumn(name="age", mean=50, std=10, missing=True),),
        categorical=(CategoricalColumn(name="colour", categories=("blue", "red"), missing=True),),
    )
    found = encoding.encode(records([60, "45,5", None, 1e9], ["red", " blue ", "", "green"]))
    assert found.dtype == np.float32
    assert encoding.width == 5
    assert found.tolist() == [
        [1.0, 0, 0, 1, 0],
        [np.float32(-0.45), 0, 1, 0, 0],
        [0.0, 1, 0, 0, 1],  # the mean, a mark, and a category of its own
        [LIMIT, 0, 0, 0, 0],  # cut, and not known
    ]


def test_without_missing_values_there_is_no_place_for_them() -> None:
    sums = ColumnSums.of(records([1, 3], ["red", "red"]))
    encoding = sums.encoding(BOTH)
    assert encoding.width == 2
    assert encoding.encode(records([2, None], ["red", None])).tolist() == [[0, 1], [0, 0]]


@pytest.mark.parametrize(("value", "std"), [(5.0, 5.0), (-3.0, 3.0), (0.0, 1.0)])
def test_a_constant_column_is_divided_by_its_size(value: float, std: float) -> None:
    (column,) = ColumnSums.of(records([value] * 4, ["red"] * 4)).encoding(BOTH).numeric
    assert (column.mean, column.std) == (value, std)


def test_categories_that_are_whole_numbers_have_one_spelling() -> None:
    sums = ColumnSums.of(records([1, 2, 3], ["3.0", 3, 3.0]))
    assert sums.categorical[0].categories == ("3",)


def test_what_is_no_number_is_refused_with_its_row_and_two_remedies() -> None:
    with pytest.raises(ExperimentError) as refused:
        records([1, "?"], ["a", "b"])
    assert str(refused.value) == (
        "here: column 'age' is numeric, but row 1 (the first is 0) has '?': list the column in"
        " task.table.categorical, or, if that means that the value is missing, set task.missing = ['?']"
    )


# Sums.

keys = some.sampled_from(["rows", "numeric", "categorical", "count", "name", "missing"])
trees = some.recursive(
    some.none() | some.floats() | some.integers() | some.text(),
    lambda part: some.lists(part) | some.dictionaries(keys, part),
)

values = some.one_of(some.none(), some.floats(-1e6, 1e6), some.integers(-1000, 1000))
categories = some.one_of(some.none(), some.sampled_from(["a", "b", "c", "3"]))
rows = some.lists(some.tuples(values, categories), max_size=12)


@given(some.lists(rows, min_size=1, max_size=4))
def test_sums_of_parts_are_those_of_all_rows(parts: list[list[tuple[Any, Any]]]) -> None:
    shared = [ColumnSums.of(records([a for a, _ in part], [c for _, c in part])) for part in parts]
    together = combined(shared, BOTH)
    everything = [row for part in parts for row in part]
    numbers = np.array([math.nan if a is None else a for a, _ in everything], dtype=float)
    present = numbers[~np.isnan(numbers)]
    (numeric,), (seen,) = together.numeric, together.categorical
    assert together.rows == len(everything)
    assert numeric.count == len(present)
    if len(present):
        assert numeric.mean == pytest.approx(present.mean(), abs=1e-6)
        assert numeric.squares == pytest.approx(present.var() * len(present), rel=1e-6, abs=1e-3)
    assert seen.categories == tuple(sorted({c for _, c in everything if c is not None}))
    assert seen.missing == sum(c is None for _, c in everything)


@given(rows)
def test_sums_and_encodings_survive_their_frames(part: list[tuple[Any, Any]]) -> None:
    own = records([1.5, None, *(a for a, _ in part)], ["x", None, *(c for _, c in part)])
    sums = ColumnSums.of(own)
    assert read_sums(sums_frame(sums, 3), BOTH, len(own)) == sums
    assert decode(sums_frame(sums, 3)).peer == 4
    encoding = sums.encoding(BOTH)
    assert read_encoding(encoding_frame(encoding)) == encoding


def framed(content: Any, kind: Kind = Kind.COLUMN_SUMS) -> bytes:
    data = content if isinstance(content, bytes) else zlib.compress(json.dumps(content).encode())
    return encode(Frame(kind, 0, 1, (data,)))


SUMS = {"rows": 4, "numeric": [{"count": 4, "mean": 1.0, "squares": 2.0}], "categorical": [{}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no zlib", "cannot be read"),
        (zlib.compress(b"{}")[:-1], "not whole"),
        (zlib.compress(b"[" * 100_000), "cannot be read"),
        ({"rows": 4}, "sums are of 0 numeric and 0 categorical columns"),
        (SUMS | {"rows": 5}, "sums are of 5 rows"),
        (SUMS | {"numeric": [{"count": 9}]}, "the client has 4"),
        (SUMS | {"numeric": [{"count": 1, "mean": float("nan")}]}, "cannot be read"),
        (SUMS | {"numeric": [{"count": 1, "squares": -1}]}, "cannot be read"),
        (SUMS | {"categorical": [{"categories": ["b", "a"]}]}, "cannot be read"),
        (SUMS | {"categorical": [{"categories": [str(n) for n in range(2000)]}]}, "cannot be read"),
        (SUMS | {"more": 1}, "cannot be read"),
    ],
)
def test_damaged_sums_are_refused(content: Any, message: str) -> None:
    read_sums(framed(SUMS), BOTH, 4)
    with pytest.raises(FrameError, match=message):
        read_sums(framed(content), BOTH, 4)


@given(some.one_of(some.binary(max_size=60), trees))
def test_whatever_comes_is_read_or_refused(content: Any) -> None:
    for kind, read in (
        (Kind.COLUMN_SUMS, lambda frame: read_sums(frame, BOTH, 4)),
        (Kind.RECORD_ENCODING, read_encoding),
    ):
        with contextlib.suppress(FrameError):
            read(framed(content, kind))


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"numeric": [{"name": "a", "mean": 0, "std": 0}]},
        {"numeric": [{"name": "a", "mean": 0, "std": 1}] * 2},
        {"categorical": [{"name": "a", "categories": ["x", "x"]}]},
    ],
)
def test_damaged_encodings_are_refused(content: Any) -> None:
    with pytest.raises(FrameError):
        read_encoding(framed(content, Kind.RECORD_ENCODING))
    with pytest.raises(FrameError, match="kind record-encoding"):
        read_encoding(framed(content))


# Which columns are inputs.


def chosen(tmp_path: Path, **columns: list[Any]) -> tuple[Features, dict[str, str]]:
    path = Files(tmp_path).csv("table.csv", **columns)
    split = read_csv(Path(path), TaskConfig(format="csv", train=path))
    found = choose_features(split, TableConfig(), [], "table.csv")
    return found.features, found.left_out


def test_columns_are_found_by_what_they_hold(tmp_path: Path) -> None:
    count = range(100)
    features, left_out = chosen(
        tmp_path,
        age=[row / 3 for row in count],
        pressure=[row % 50 if row % 7 else "" for row in count],
        pain=[row % 4 for row in count],
        town=["Rome", "Oslo"] * 50,
        PassengerId=[row * 7 for row in count],
        row=list(count),
        person=[f"name {row}" for row in count],
        chol=["?" if row % 9 == 0 else row for row in count],
        constant=[1] * 100,
        empty=[""] * 100,
    )
    assert features.categorical == ("pain", "town")
    assert features.numeric == ("age", "pressure")
    assert left_out == {
        "PassengerId": "another number in each row, as its name says",
        "row": "numbers of the rows",
        "person": "texts of which 100 are different",
        "chol": "numbers, but also '?'; if that means that a value is missing, list it in task.missing",
        "constant": "one value in all rows",
        "empty": "no values",
    }


def test_named_columns_are_the_inputs_and_no_others(make: Make, files: Files) -> None:
    path = patients(files)
    task = make(format="csv", train=path, public=20, table={"numeric": ["age"], "categorical": ["site"]})
    encoding = task.record_encoding()
    assert encoding is not None
    assert encoding.features == Features(("age",), ("site",))
    assert task.left_out == {"colour": "not named"}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"numeric": ["agee"]},
            "task.table.numeric has 'agee', which is not a column; there are age, colour,",
        ),
        ({"numeric": ["colour"]}, "column 'colour' is numeric, but row 0 (the first is 0) has "),
        ({"categorical": ["label"]}, "task.table names the column of labels, 'label', as an input"),
    ],
)
def test_columns_that_cannot_be_inputs_are_refused(
    refused: Refused, files: Files, table: dict[str, Any], message: str
) -> None:
    assert message in refused(format="csv", train=patients(files), public=20, table=table)


# Tasks.


def test_breast_cancer_is_scikit_learns_scaled_by_its_public_set(make: Make) -> None:
    task = make(name="breast-cancer", clients=3, public=100)
    data = load_breast_cancer()
    encoding = task.record_encoding()
    assert encoding is not None
    assert encoding.features.numeric == tuple(map(str, data.feature_names))
    assert task.classes == tuple(map(str, data.target_names))
    assert task.public is not None
    # The public rows have mean 0 and standard deviation 1 in every column, but where they were cut.
    np.testing.assert_allclose(task.public.samples.mean(dim=0), np.zeros(30), atol=0.02)
    np.testing.assert_allclose(task.public.samples.std(dim=0, correction=0), np.ones(30), atol=0.05)


def test_sums_scale_as_a_scaler_of_all_private_rows_would(make: Make) -> None:
    task = make(name="breast-cancer", clients=3, public=0, table={"scaling": "sums"})
    encoding = task.record_encoding()
    assert encoding is not None
    inputs = torch.cat([task.client_inputs(client, Preprocessing()) for client in range(3)])
    # What was cut is missing from these; it was little.
    raw = inputs.double().numpy() * [one.std for one in encoding.numeric]
    raw += [one.mean for one in encoding.numeric]
    scaler = StandardScaler().fit(raw)
    np.testing.assert_allclose(scaler.mean_, [one.mean for one in encoding.numeric], rtol=0.02)
    np.testing.assert_allclose(scaler.scale_, [one.std for one in encoding.numeric], rtol=0.1)
    assert len(task.column_sums) == 3
    assert Task.in_file(task.file(), None).fingerprint() == task.fingerprint()


def test_a_column_of_sites_is_no_input(make: Make, files: Files) -> None:
    task = make(
        format="csv",
        train=patients(files),
        clients=None,
        public=12,
        partition={"kind": "natural", "column": "site"},
        table={},
    )
    encoding = task.record_encoding()
    assert encoding is not None
    assert sorted(task.client_names) == ["site 0", "site 1", "site 2"]
    assert encoding.features == Features(("age",), ("colour",))
    assert encoding.numeric[0].missing


def test_each_file_is_a_site(make: Make, files: Files) -> None:
    paths = [patients(files, f"{name}.csv", 30, seed) for seed, name in enumerate(("north", "south"))]
    task = make(format="csv", train=paths, clients=None, table={"scaling": "sums"})
    assert sorted(task.client_names) == ["north", "south"]


def test_public_rows_may_be_of_another_file(make: Make, files: Files) -> None:
    others = files.csv("others.csv", colour=["red", "blue", "red"], age=[40, 50, 60])
    public = {"format": "csv", "train": others, "samples": 3}
    task = make(format="csv", train=patients(files), public=public, table={"numeric": ["age"]})
    encoding = task.record_encoding()
    assert encoding is not None
    assert (encoding.numeric[0].mean, encoding.numeric[0].std) == (50, pytest.approx(math.sqrt(200 / 3)))
    assert not encoding.numeric[0].missing
    assert task.public_labels is None


def test_a_public_file_needs_the_columns(refused: Refused, files: Files) -> None:
    others = files.csv("others.csv", colour=["red", "blue", "red"])
    public = {"format": "csv", "train": others, "samples": 2}
    message = refused(format="csv", train=patients(files), public=public, table={"numeric": ["age"]})
    assert message == (
        f"{others}: has no column 'age', which is an input of this task's models; there are colour"
    )


def test_without_a_public_set_somebody_must_agree_to_share(refused: Refused) -> None:
    assert refused(name="breast-cancer", clients=2) == (
        'a table is scaled by its public set: set task.public, or set task.table.scaling = "sums", if all'
        " clients may share counts, means and deviations of their columns and the categories in them"
    )


def test_measured_labels_are_refused(refused: Refused, files: Files) -> None:
    path = files.csv("prices.csv", rooms=[row % 9 for row in range(60)], label=[row / 7 for row in range(60)])
    message = refused(format="csv", train=path, public=10, table={})
    assert "column 'label' holds 60 different numbers such as " in message
    assert message.endswith("but labels must be classes (regression is not supported)")


def test_settings_that_exclude_each_other_are_refused() -> None:
    for settings, message in (
        ({"table": {"numeric": []}}, "name no column"),
        ({"table": {"numeric": ["a"], "categorical": ["a"]}}, "'a' is named twice"),
        ({"table": {}, "input": "a"}, "the columns of a table are named in"),
        ({"format": "json", "missing": ["?"]}, "`missing` is for CSV files"),
    ):
        raw = {"format": "csv", "train": "a.csv", **settings}
        with pytest.raises(ValueError, match=message):
            TaskConfig.model_validate(raw)


# The layout of FLamby's Heart Disease: one file for each centre, no header, "?" for what is missing.

CENTRES = {
    "cleveland": "63.0,1.0,1.0,145.0,233.0,1.0,2.0,150.0,0.0,2.3,3.0,0.0,6.0,0",
    "hungarian": "28,1,2,130,132,0,2,185,0,0,?,?,?,0",
    "switzerland": "32,1,1,95,0,?,0,127,0,.7,1,?,?,1",
    "va": "63,1,4,140,260,0,1,112,1,3,2,?,?,2",
}
COLUMNS = [
    *("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca"),
    *("thal", "num"),
]


def heart(folder: Path, rows: int = 40) -> str:
    """Files in this layout: the first row of each is of that centre's file, others are made like it."""
    rng = np.random.default_rng(0)
    for centre, first in CENTRES.items():
        lines = [first]
        for _ in range(rows - 1):
            age, rate, ill = rng.integers(30, 77), rng.integers(80, 200), rng.integers(0, 5)
            thal = rng.choice(["3", "7"])
            bold = "1.0" if centre == "cleveland" else "1"
            lines.append(
                f"{age + 3 * ill},{bold},{rng.integers(1, 5)},{rng.integers(100, 180)},?,0,"
                f"{rng.integers(0, 3)},{rate - 10 * ill},0,{ill * 0.7:.1f},?,?,{thal},{ill}"
            )
        (folder / f"processed.{centre}.data").write_text("\n".join(lines) + "\n")
    return str(folder / "processed.*.data")


HEART: dict[str, Any] = {
    "format": "csv",
    "column_names": COLUMNS,
    "missing": ["?"],
    "label": "num",
    "relabel": {"0": "healthy", "1": "ill", "2": "ill", "3": "ill", "4": "ill"},
    "table": {"scaling": "sums"},
    "clients": None,
}


def test_four_centres_are_read_as_flamby_has_them(make: Make, tmp_path: Path) -> None:
    task = make(train=heart(tmp_path), **HEART)
    assert sorted(task.client_names) == [f"processed.{name}" for name in CENTRES]
    assert task.classes == ("healthy", "ill")
    encoding = task.record_encoding()
    assert encoding is not None
    names = {one.name: one for one in encoding.categorical}
    # "1.0" in one file is "1" in another.
    assert names["cp"].categories == ("1", "2", "3", "4")
    assert task.left_out["sex"] == "one value in all rows"
    assert set(names["thal"].categories) <= {"3", "6", "7"}
    assert {"age", "trestbps", "thalach", "oldpeak"} <= set(encoding.features.numeric)


def test_names_of_columns_are_as_many_as_columns(refused: Refused, tmp_path: Path) -> None:
    settings = HEART | {"column_names": COLUMNS[:-1], "label": "thal"}
    path = heart(tmp_path).replace("*", "va")
    assert refused(train=path, **settings) == (
        f"task.train = {path}: has 14 columns, but task.column_names has 13: name each once, in order"
    )


# What crosses before round 1.


def ledger_of(method: str, **task: Any) -> tuple[Task, Any]:
    wanted = parse(
        {
            "rounds": 1,
            "task": {"name": "breast-cancer", "clients": 3, "limit": 60, "public": 40, **task},
            "models": {"clients": ["logistic"], "server": "logistic"},
            "arms": [{"method": method}],
        },
        "test",
    )
    found, (arm,) = prepare(wanted)
    return found, start_run(arm).ledger


@pytest.mark.parametrize(("method", "copies"), [("fedavg", 3), ("gaussian", 3), ("dsfl", 0), ("local", 0)])
def test_the_encoding_is_sent_to_clients_without_the_public_set(method: str, copies: int) -> None:
    task, ledger = ledger_of(method)
    assert decode(task.vocabulary_frame).kind is Kind.RECORD_ENCODING
    assert ledger.setup == ledger.total == copies * len(task.vocabulary_frame)


@pytest.mark.parametrize(("method", "shares"), [("fedavg", True), ("dsfl", True), ("local", False)])
def test_sums_go_up_and_the_encoding_down_to_all(method: str, shares: bool) -> None:
    task, ledger = ledger_of(method, table={"scaling": "sums"})
    up = [entry.bytes for entry in ledger.entries if entry.direction == "up"]
    down = [entry.bytes for entry in ledger.entries if entry.direction == "down"]
    assert up == (list(map(len, task.column_sums)) if shares else [])
    assert down == ([len(task.vocabulary_frame)] * 3 if shares else [])
    assert ledger.setup == sum(up) + sum(down)
    assert not shares or ledger.kinds(0, "up") == {"column-sums": sum(up)}


def test_doctor_says_which_columns_are_inputs(make: Make, files: Files) -> None:
    task = make(format="csv", train=patients(files), public=20, table={})
    (fact,) = [one for one in check_task(task, []) if one.where == "task.table"]
    assert fact.level == "fact"
    assert "1 numeric columns (1 of them with missing values)" in fact.what
    assert "categorical ones: 'colour' (3), 'site' (3)" in fact.what


def test_unknown_categories_are_warned_of(make: Make, files: Files) -> None:
    others = files.csv("others.csv", colour=["violet", "blue"] * 4, age=list(range(40, 48)))
    public = {"format": "csv", "train": others, "samples": 8}
    task = make(format="csv", train=patients(files), public=public, table={"categorical": ["colour"]})
    (warning,) = [one for one in check_task(task, []) if one.level == "warning" and one.where == "task.table"]
    assert "of the categories in private rows are unknown to the encoding" in warning.what


def test_rows_of_few_values_are_no_copies(make: Make, files: Files) -> None:
    """Else no private row would be left beside public ones, which have all of their values."""
    labels = ["a" if row % 3 else "b" for row in range(90)]
    path = files.csv("few.csv", colour=[f"c{row % 4}" for row in range(90)], label=labels)
    task = make(format="csv", train=path, public=20, table={})
    assert sum(map(len, task.clients)) == 90 - 18 - 20


def test_rows_of_many_values_are_copies_if_they_are_equal(make: Make, files: Files) -> None:
    ages = [row / 7 for row in range(90)]
    ages[1] = ages[0]
    path = files.csv("many.csv", age=ages, label=["a", "b"] * 45)
    tasks = [make(seed, format="csv", train=path, public=40, table={}) for seed in range(4)]
    assert {sum(map(len, task.clients)) for task in tasks} == {90 - 18 - 40, 90 - 18 - 40 - 1}


def test_building_twice_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    config = TaskConfig.model_validate({"train": heart(tmp_path), **HEART})
    assert build_task(config, 0).fingerprint() == build_task(config, 0).fingerprint()
    assert build_task(config, 0).fingerprint() != build_task(config, 1).fingerprint()

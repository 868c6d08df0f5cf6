"""What `init` takes data for, by their names and by what they hold, and the settings that it writes."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedistill.data import sources
from fedistill.errors import ExperimentError
from fedistill.experiment.starter import draft
from fedistill.experiment.starter.draft import MOST_SITES, rounded
from fedistill.experiment.starter.locate import locate
from fedistill.experiment.starter.start import Started, start
from helpers.files import Files

Begin = Callable[..., tuple[Started, dict[str, Any]]]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    monkeypatch.chdir(tmp_path)
    return Files(tmp_path)


@pytest.fixture
def begin() -> Begin:
    """Starts from data; returns what was found, and the experiment as the file has it."""

    def run(
        *data: str, public: str | None = None, out: str | None = None, label: str | None = None
    ) -> tuple[Started, dict[str, Any]]:
        started = start(data, public, label, None, None if out is None else Path(out))
        return started, tomllib.loads(started.path.read_text(encoding="utf-8"))

    return run


def rows(count: int, word: str = "word") -> dict[str, list[str]]:
    return {
        "text": [f"{word}{n % 9} {n}" for n in range(count)],
        "label": ["ab"[n % 2] for n in range(count)],
    }


def test_a_file_for_training_and_one_for_testing(files: Files, begin: Begin) -> None:
    files.csv("my_train.csv", **rows(60))
    files.csv("my_test.csv", **rows(20, "other"))
    started, raw = begin("my_test.csv", "my_train.csv")
    assert (raw["task"]["train"], raw["task"]["test"]) == ("my_train.csv", "my_test.csv")
    assert (started.survey.samples, started.survey.tests, started.survey.sites) == (60, 20, {})


def test_files_of_one_folder_are_sites(files: Files, begin: Begin) -> None:
    Path("clinics").mkdir()
    for name, count in (("north", 40), ("south", 60)):
        files.csv(f"clinics/{name}.csv", **rows(count, name))
    for data in (["clinics"], ["clinics/*.csv"]):
        started, raw = begin(*data, out=f"{len(data[0])}.toml")
        assert raw["task"]["train"] == "clinics/*.csv"
        assert "clients" not in raw["task"]
        assert started.survey.sites == {"south": 60, "north": 40}
    listed, raw = begin("clinics/north.csv", "clinics/south.csv")
    assert listed.path == Path("clinics.toml")
    assert raw["task"]["train"] == ["clinics/north.csv", "clinics/south.csv"]


def test_numbered_files_are_parts_of_one_data_set(files: Files, begin: Begin) -> None:
    for number in range(2):
        files.json(f"part-{number:05}-of-00002.json", **rows(40, f"p{number}"))
    started, raw = begin("part-*.json")
    assert started.survey.sites == {}
    assert raw["task"]["partition"] == "iid"
    assert started.survey.samples == 80


def test_folders_of_images_that_share_classes_are_sites(files: Files, begin: Begin) -> None:
    for place, site in enumerate(("east", "west")):
        cats, dogs = files.pixels(20, seed=place), files.pixels(20, seed=place + 2)
        files.tree(f"pets/{site}", cat=cats, dog=dogs)
    started, raw = begin("pets")
    assert raw["task"] | {"public": 0} == {"format": "imagefolder", "train": "pets/*", "public": 0}
    assert started.survey.sites == {"east": 40, "west": 40}
    assert started.survey.classes == {"cat": 40, "dog": 40}


def test_folders_of_images_by_kind_are_no_sites(files: Files) -> None:
    files.tree("things/animals", cat=files.pixels(2))
    files.tree("things/vehicles", car=files.pixels(2))
    assert locate(["things"]).source["train"] == "things"
    files.tree("split/train", cat=files.pixels(2))
    files.tree("split/test", cat=files.pixels(2))
    assert locate(["split"]).source["train"] == "split"


def test_a_saved_data_set_of_many_writers(files: Files, begin: Begin) -> None:
    sites = MOST_SITES + 1
    table = rows(12 * sites) | {"writer_id": [n % sites for n in range(12 * sites)]}
    datasets.Dataset.from_dict(table).save_to_disk("saved")
    started, raw = begin("saved")
    assert raw["task"]["format"] == "save_to_disk"
    assert raw["task"]["partition"] == {"kind": "natural", "column": "writer_id"}
    assert raw["task"]["clients"] == MOST_SITES
    assert len(started.survey.sites) == sites


def test_sites_of_a_few_samples_may_end_up_without_any(files: Files, begin: Begin) -> None:
    sites = MOST_SITES + 1
    files.csv("few.csv", **rows(4 * sites), client=[n % sites for n in range(4 * sites)])
    _, raw = begin("few.csv")
    assert "clients" not in raw["task"]


def test_a_data_set_of_the_hub(files: Files, begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read once: the hub's files are never loaded a second time."""
    loaded = []
    table = datasets.Dataset.from_dict(rows(100))

    def load(place: str, split: str, **_: Any) -> datasets.Dataset:
        loaded.append((place, split))
        return table

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_, **__: ["train"])
    started, raw = begin("hf:somebody/Short-Texts")
    assert started.path == Path("Short-Texts.toml")
    assert raw["task"]["name"] == "hf:somebody/Short-Texts"
    assert loaded == [("somebody/Short-Texts", "train")]


def test_files_are_read_once(files: Files, begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedistill.data import files as reader

    read = []
    plain = reader.read_csv
    monkeypatch.setattr(
        reader, "read_csv", lambda path, source: read.append(path.name) or plain(path, source)
    )
    files.csv("texts.csv", **rows(60))
    begin("texts.csv")
    assert read == ["texts.csv"]


def test_images_of_several_sizes_are_scaled(files: Files, begin: Begin) -> None:
    small, large = files.pixels(20, 20, 30), files.pixels(20, 80, 70, seed=1)
    files.images("mixed.parquet", [*small, *large], ["a", "b"] * 20)
    started, raw = begin("mixed.parquet")
    assert raw["task"]["image_size"] == [32, 32]
    assert started.survey.sizes == {(20, 30): 20, (80, 70): 20}


def test_a_large_data_set_is_limited_at_first(
    files: Files, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft, "LIMIT", 100)
    files.csv("many.csv", **rows(101))
    _, raw = begin("many.csv")
    assert raw["task"]["limit"] == 100


def test_names_that_toml_must_escape(files: Files, begin: Begin) -> None:
    odd, head = 'say "x"\x7f', '"say ""x""\x7f",label'
    files.text("odd.csv", "\n".join([head, *(f"t{n},{'ab'[n % 2]}" for n in range(40))]))
    started, raw = begin("odd.csv")
    assert raw["task"]["input"] == odd
    assert started.survey.columns.input == odd


def test_what_is_written_may_lie_elsewhere(files: Files, begin: Begin, tmp_path: Path) -> None:
    """Paths are those from the file to the data; data that do not lie below it keep their full path."""
    files.csv("texts.csv", **rows(40))
    for name in ("first", "second"):
        Path(name).mkdir()
    _, raw = begin("texts.csv", out="first/x.toml")
    assert raw["task"]["train"] == "../texts.csv"
    _, raw = begin(str(tmp_path / "texts.csv"), out="second/x.toml")
    assert raw["task"]["train"] == (tmp_path / "texts.csv").as_posix()
    _, raw = begin(str(tmp_path / "texts.csv"))
    assert raw["task"]["train"] == "texts.csv"


def test_sources_without_a_label_column_by_name(files: Files, begin: Begin) -> None:
    files.csv(
        "t.csv",
        no=range(60),
        message=rows(60)["text"],
        urgent=["yes", "no"] * 30,
        price=[n / 7 for n in range(60)],
    )
    started, _ = begin("t.csv")
    assert (started.survey.columns.input, started.survey.columns.label) == ("message", "urgent")


@given(st.integers(1, 10**9))
def test_rounded_keeps_one_digit_and_never_exceeds(count: int) -> None:
    assert rounded(count) <= count < rounded(count) + 10 ** (len(str(count)) - 1)
    assert set(str(rounded(count))[1:]) <= {"0"}


def test_a_place_that_is_no_folder_ends_in_a_message(files: Files) -> None:
    files.csv("texts.csv", **rows(40))
    with pytest.raises(sources.ExperimentError, match=r"no/x\.toml: cannot be written"):
        start(["texts.csv"], None, None, None, Path("no/x.toml"))


def patients(count: int, **more: list[Any]) -> dict[str, Any]:
    """Columns of a table of patients, of whom those above 50 with high pressure are ill."""
    ages, pressures = (
        [20 + 7 * row % 61 for row in range(count)],
        [90 + 11 * row % 83 for row in range(count)],
    )
    ill = [age > 50 and pressure > 120 for age, pressure in zip(ages, pressures, strict=True)]
    return {
        "patient_no": list(range(1000, 1000 + count)),
        "person": [f"Ann {row}" for row in range(count)],
        "age": ages,
        "pressure": [f"{pressure}.5" if row % 9 else "" for row, pressure in enumerate(pressures)],
        "smoker": [("no", "yes", "once")[row % 3] for row in range(count)],
        **more,
        "diagnosis": ["ill" if one else "well" for one in ill],
    }


def test_a_table_with_sites(files: Files, begin: Begin) -> None:
    count = 180
    hospitals = [f"h{row % 3}" for row in range(count)]
    started, written = begin(files.csv("patients.csv", **patients(count, hospital=hospitals)))
    survey = started.survey
    assert (survey.kind, survey.columns.input, survey.columns.label) == ("table", None, "diagnosis")
    assert survey.left_out == {
        "patient_no": "numbers of the rows",
        "person": "texts of which 180 are different",
    }
    assert survey.sites == {"h0": 60, "h1": 60, "h2": 60}
    task = written["task"]
    assert task["table"] == {
        "numeric": ["age", "pressure"],
        "categorical": ["smoker"],
        "scaling": "sums",
    }
    assert task["partition"] == {"kind": "natural", "column": "hospital"}
    assert task["public"] == 0
    assert [arm["method"] for arm in written["arms"]] == [
        *("gaussian", "random-mask", "fedavg", "fedavg", "local")
    ]


def test_a_table_without_sites_is_scaled_by_public_rows(files: Files, begin: Begin) -> None:
    _, written = begin(files.csv("patients.csv", **patients(600)))
    assert written["task"]["public"] == 100
    assert written["task"]["table"]["scaling"] == "public"
    assert "input" not in written["task"]


def test_public_rows_of_another_file(files: Files, begin: Begin) -> None:
    path = files.csv("patients.csv", **patients(120))
    others = {name: column for name, column in patients(90).items() if name in ("age", "pressure", "smoker")}
    others["age"] = [age + 0.5 for age in others["age"]]
    _, written = begin(path, public=files.csv("others.csv", **others))
    assert written["task"]["public"] == {"format": "csv", "train": "others.csv", "samples": 90}
    assert written["task"]["table"]["scaling"] == "public"


def test_a_copy_of_the_label_is_no_input_and_nearly_one_class_is_a_doubt(files: Files, begin: Begin) -> None:
    columns = patients(200)
    columns["diagnosis"] = ["ill" if row % 20 == 0 else "well" for row in range(200)]
    columns["result"] = ["+" if label == "ill" else "-" for label in columns["diagnosis"]]
    started, written = begin(files.csv("patients.csv", **columns))
    assert "result" not in written["task"]["table"]["categorical"]
    doubts = [str(finding) for finding in started.findings if finding.where == "data"]
    assert doubts == [
        "data: column 'result' says the same as the label in every row, and is no input: add it to task.table"
        " if it is known before the label is",
        "data: 95.0% of the samples are of class 'well': read every accuracy beside 95.0%, which a model has"
        " that always says 'well'",
    ]


def test_titles_beside_numbers_are_no_texts_but_longer_texts_are(files: Files, begin: Begin) -> None:
    count = 120
    words = [" ".join(f"word{row * place % 97}" for place in range(12)) for row in range(count)]
    more = {
        "rating": [row % 50 / 7 for row in range(count)],
        "year": [1950 + row % 60 for row in range(count)],
    }
    genre = ["drama" if row % 2 else "comedy" for row in range(count)]
    short = files.csv("films.csv", title=[f"Film no {row}" for row in range(count)], **more, genre=genre)
    assert begin(short, label="genre")[0].survey.kind == "table"
    long = files.csv("plots.csv", plot=words, **more, genre=genre)
    assert begin(long, label="genre")[0].survey.kind == "text"


def test_measured_labels_end_in_a_message(files: Files, begin: Begin) -> None:
    columns = patients(120) | {"target": [row / 7 for row in range(120)]}
    path = files.csv("prices.csv", **columns)
    with pytest.raises(ExperimentError, match=r"120 different numbers.*regression is not supported"):
        begin(path)

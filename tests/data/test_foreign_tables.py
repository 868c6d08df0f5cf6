"""Tables as people have them: labels like numbers or like nothing, other separators and encodings."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest

from fedistill.data.task import Task
from helpers.files import Files

Make = Callable[..., Task]
Refused = Callable[..., str]

NUMBERED = ["007", "7", "07"] * 4
NOTHING_LIKE = ["None", "NA", "null", "nan"] * 3
WORDS = [f"word{number} common" for number in range(12)]


def write(files: Files, form: str, **columns: Sequence[Any]) -> str:
    name = f"train.{form}"
    if form == "array":
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return files.text("train.json", json.dumps(rows, indent=1))
    if form == "columns":
        return files.text("train.json", json.dumps({name: list(one) for name, one in columns.items()}))
    return str({"csv": files.csv, "json": files.json, "parquet": files.parquet}[form](name, **columns))


def counts(task: Task) -> dict[str, int]:
    """How many samples each class has, public ones included."""
    assert task.public_labels is not None
    labels = [*(part.labels.tolist() for part in (*task.clients, task.test)), task.public_labels.tolist()]
    flat = [label for part in labels for label in part]
    return {name: flat.count(number) for number, name in enumerate(task.classes)}


FORMS = ["csv", "json", "parquet", "array", "columns"]


@pytest.mark.parametrize("form", FORMS)
def test_labels_that_differ_as_texts_are_different_classes(make: Make, files: Files, form: str) -> None:
    path = write(files, form, text=WORDS, label=NUMBERED)
    kind = "json" if form in ("array", "columns") else form
    assert counts(make(format=kind, train=path, public=4)) == {"007": 4, "07": 4, "7": 4}


@pytest.mark.parametrize("form", FORMS)
def test_words_for_nothing_are_values(make: Make, files: Files, form: str) -> None:
    path = write(files, form, text=NOTHING_LIKE, label=NOTHING_LIKE)
    kind = "json" if form in ("array", "columns") else form
    # Nothing may be tested on that is trained on, and each text is here three times.
    task = make(format=kind, train=path, public=2)
    assert set(task.classes) == set(NOTHING_LIKE)
    assert {text for part in (*task.clients, task.test) for text in part.samples} <= set(NOTHING_LIKE)


def test_classes_that_are_whole_numbers_are_in_their_order(make: Make, files: Files) -> None:
    path = files.csv("train.csv", text=WORDS, label=["10", "9", "100"] * 4)
    assert make(format="csv", train=path, public=4).classes == ("9", "10", "100")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separators_are_found(make: Make, files: Files, separator: str) -> None:
    # Other separators are part of the texts, which are quoted only where they must be.
    other = ";" if separator == "," else ","
    rows = [f'"a{other}{number}{separator} b{other}"{separator}{number % 2}' for number in range(12)]
    path = files.text("train.csv", f"text{separator}label\n" + "\n".join(rows))
    task = make(format="csv", train=path, public=4)
    assert task.classes == ("0", "1")
    found = {text for part in (*task.clients, task.test) for text in part.samples}
    assert found <= {f"a{other}{number}{separator} b{other}" for number in range(12)}


def test_a_separator_that_is_set_is_used_and_one_that_cannot_be_told_is_asked_for(
    make: Make, refused: Refused, files: Files
) -> None:
    rows = "".join(f"w{number};a,{number % 2};b\n" for number in range(12))
    path = files.text("train.csv", "text;more,label;x\n" + rows)
    task = make(format="csv", train=path, public=4, input="text", label="more,label")
    assert task.classes == tuple(sorted(["a,0", "a,1"]))
    tie = files.text("tie.csv", "text,label;x\n" + "".join(f"{n},a;{n % 2}\n" for n in range(12)))
    assert refused(format="csv", train=tie) == (
        f"task.train = {tie}: cannot tell whether ',' or ';' separates its fields: set task.separator"
    )
    keys = {"format": "csv", "train": tie, "public": 4}
    assert refused(**keys, separator="~") == (
        f"{tie}: cannot tell which column is the label; set task.label to one of text,label;x (private data"
        " without labels, as for self-supervised learning or language modelling, are not supported: fedistill"
        " learns to classify, with one label for each sample)"
    )
    chosen = make(**keys, separator=";", input="text,label", label="x")
    assert chosen.classes == ("0", "1")


def test_latin_1_is_named_and_read_where_it_is_set(make: Make, refused: Refused, files: Files) -> None:
    path = files.folder / "train.csv"
    rows = [f"mot{number},{'été' if number % 2 else 'hiver'}" for number in range(12)]
    path.write_bytes(("text,label\n" + "\n".join(rows)).encode("latin-1"))
    assert refused(format="csv", train=str(path)) == (
        f"task.train = {path}: cannot be read as csv (line 3 is not text in utf-8: byte 0xe9): set"
        " task.encoding, for example to 'latin-1' or 'cp1252'"
    )
    assert make(format="csv", train=str(path), encoding="latin-1", public=4).classes == ("hiver", "été")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_say_the_encoding(make: Make, files: Files, encoding: str) -> None:
    path = files.folder / "train.csv"
    rows = [f"{word},{'été' if n % 2 else 'hiver'}" for n, word in enumerate(WORDS)]
    path.write_bytes(("text,label\r\n" + "\r\n".join(rows)).encode(encoding))
    assert make(format="csv", train=str(path), public=4).classes == ("hiver", "été")


def test_settings_that_are_unknown_are_refused_by_name() -> None:
    from pydantic import ValidationError

    from fedistill.config.task import Source

    for key, value in (("encoding", "latin-99"), ("background", "whitish"), ("separator", ",,")):
        with pytest.raises(ValidationError, match=key):
            Source.model_validate({"name": "digits", key: value})


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_missing_values_are_counted_together_and_can_be_dropped(
    make: Make, refused: Refused, files: Files, form: str
) -> None:
    empty = "" if form == "csv" else None
    labels: list[Any] = ["a", "b"] * 6
    labels[1] = labels[2] = ""  # an empty label is missing in every format
    texts: list[Any] = list(WORDS)
    texts[2] = texts[9] = empty
    path = write(files, form, text=texts, label=labels)
    assert refused(format=form, train=path, public=2) == (
        f"{path}: values are missing in 3 of 12 rows (no 'label' in 2: rows 1, 2, no 'text' in 2: rows 2, 9;"
        " the first row is 0): fill them in, or leave those rows out with task.drop_missing = true"
    )
    task = make(format=form, train=path, public=2, drop_missing=True)
    assert counts(task) == {"a": 5, "b": 4}


def test_dropping_rows_keeps_inputs_labels_and_row_numbers_together(
    make: Make, refused: Refused, files: Files
) -> None:
    pictures: list[Any] = files.pixels(12)
    labels: list[Any] = [None, *"bcdefghijkl"]
    known = {one.tobytes(): label for one, label in zip(pictures, labels, strict=True)}
    missing = [*pictures[:5], None, *pictures[6:]]
    path = files.images("train.parquet", missing, labels)
    task = make(format="parquet", train=path, drop_missing=True)
    found = {
        sample.numpy().tobytes(): task.classes[label]
        for part in (*task.clients, task.test)
        for sample, label in zip(part.samples, part.labels.tolist(), strict=True)
    }
    assert found == {key: label for key, label in known.items() if label not in (None, "f")}
    broken = files.images("broken.parquet", [*missing[:7], b"no picture", *missing[8:]], labels)
    assert "the image of row 7 (the first is 0) cannot be decoded" in refused(
        format="parquet", train=broken, drop_missing=True
    )


def test_a_column_of_numbers_or_of_paths_is_no_text(refused: Refused, files: Files) -> None:
    paths = files.csv("paths.csv", image=[f"img/{n}.PNG" for n in range(12)], label=["a", "b"] * 6)
    assert refused(format="csv", train=paths) == (
        f"{paths}: column 'image' holds paths of images, not texts: use format = \"imagefolder\" and, in that"
        " folder, a metadata.csv with the columns file_name and label"
    )
    numbers = files.csv("numbers.csv", text=[n / 2 for n in range(12)], label=["a", "b"] * 6)
    assert refused(format="csv", train=numbers) == (
        f"{numbers}: column 'text' holds numbers, neither images nor texts; set task.input"
    )


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
@pytest.mark.parametrize("names", [("train", "test"), ("my-training-data", "data_eval"), ("Train", "valid")])
def test_a_folder_of_tables_is_tested_on_its_test_split_alone(
    make: Make, files: Files, form: str, names: tuple[str, str]
) -> None:
    writer: Any = {"csv": files.csv, "json": files.json, "parquet": files.parquet}[form]
    (files.folder / "data").mkdir()
    for name, texts in zip(names, (WORDS[:8], WORDS[8:]), strict=True):
        writer(f"data/{name}.{form}", text=texts, label=["a", "b"] * (len(texts) // 2))
    task = make(format=form, train=str(files.folder / "data"), public=2)
    assert list(task.test.samples) == WORDS[8:]


def test_a_folder_of_tables_without_split_names_is_all_training_data(make: Make, files: Files) -> None:
    (files.folder / "data").mkdir()
    files.csv("data/latest.csv", text=WORDS[:6], label=["a", "b"] * 3)
    files.csv("data/contest.csv", text=WORDS[6:], label=["a", "b"] * 3)
    task = make(format="csv", train=str(files.folder / "data"), public=2)
    assert sum(counts(task).values()) == 12


@pytest.mark.parametrize("split_names", [None, ("train", "test"), ("train", "validation")])
def test_what_datasets_has_saved(make: Make, tmp_path: Path, split_names: tuple[str, str] | None) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "y"])}
    )
    rows = datasets.Dataset.from_dict({"text": WORDS, "label": [0, 1] * 6}, features=features)
    saved: Any = rows
    if split_names:
        parts = (rows.select(range(8)), rows.select(range(8, 12)))
        saved = datasets.DatasetDict(dict(zip(split_names, parts, strict=True)))
    saved.save_to_disk(str(tmp_path / "saved"))
    task = make(format="save_to_disk", train=str(tmp_path / "saved"), public=2)
    assert task.classes == ("z", "y")
    assert counts(task) == {"z": 6, "y": 6}
    if split_names:
        assert list(task.test.samples) == WORDS[8:]


def test_a_folder_that_datasets_has_not_saved_is_refused(refused: Refused, files: Files) -> None:
    (files.folder / "bare").mkdir()
    bare = str(files.folder / "bare")
    assert refused(format="save_to_disk", train=bare).startswith(
        f"task.train = {bare}: cannot be read as save_to_disk ("
    )


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_bytes_of_images_in_a_binary_column_are_images(make: Make, files: Files, kind: Any) -> None:
    pictures = files.pixels(12)
    cells = pa.array([files.png(one) for one in pictures], type=kind)
    task = make(format="parquet", train=files.parquet("train.parquet", image=cells, label=["a", "b"] * 6))
    found = {one.numpy().tobytes() for part in (*task.clients, task.test) for one in part.samples}
    assert found == {one.tobytes() for one in pictures}
    assert all(np.ndim(one) == 3 for one in task.test.samples)


def test_labels_in_bytes_are_the_texts_that_they_spell(make: Make, files: Files) -> None:
    labels = pa.array(["Zürich".encode(), "Genève".encode("latin-1")] * 6, type=pa.binary())
    path = files.parquet("train.parquet", text=WORDS, label=labels)
    assert make(format="parquet", train=path, public=4).classes == ("Gen\\xe8ve", "Zürich")


def test_a_wrong_byte_is_named_with_its_line_behind_a_byte_order_mark(refused: Refused, files: Files) -> None:
    rows = b"".join(b"a%d,b\n" % number for number in range(1000))
    (files.folder / "train.csv").write_bytes(b"\xef\xbb\xbftext,label\n" + b"x\xe9,b\n" + rows)
    assert "line 2 is not text" in refused(format="csv", train=str(files.folder / "train.csv"), public=4)

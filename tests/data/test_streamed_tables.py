"""CSV and JSON files are read some rows at a time, with the outcome of reading them at once."""

import bz2
import csv
import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import csv as arrow_csv

from fedistill.config.task import TaskConfig
from fedistill.data import tables, text_file
from fedistill.data.files import read_files
from fedistill.data.tables import read_csv, read_json
from fedistill.errors import ExperimentError, RuntimeFailure


def source(form: str, **more: Any) -> TaskConfig:
    return TaskConfig.model_validate({"format": form, "train": "-", **more})


def csv_at_once(content: str, separator: str = ",") -> pa.Table:
    names = next(csv.reader(io.StringIO(content, newline=""), delimiter=separator))
    return arrow_csv.read_csv(
        pa.BufferReader(content.encode()),
        arrow_csv.ReadOptions(column_names=names, skip_rows_after_names=1),
        arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
        ),
    )


def json_at_once(rows: list[dict[str, Any]]) -> datasets.Dataset:
    names = dict.fromkeys(name for row in rows for name in row)
    return datasets.Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that characters, lines and rows are divided, as in large files."""
    monkeypatch.setattr(text_file, "_PART", 7)
    monkeypatch.setattr(tables, "_BATCH", 3)


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=("Cs",)), max_size=6)


@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=12), end=st.sampled_from(["\n", "\r\n"]))
def test_csv_has_the_rows_of_reading_at_once(
    rows: list[tuple[str, str]], end: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("text", "label"), *rows])
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    path.write_bytes(sink.getvalue().encode())
    found = read_csv(path, source("csv", separator=","))
    assert found.data.table.combine_chunks() == csv_at_once(sink.getvalue()).combine_chunks()


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**40), 2**40),
    st.floats(allow_nan=False, width=32),
    st.text(st.characters(codec="utf-8"), max_size=4),
    st.lists(st.integers(0, 3), max_size=2),
    st.fixed_dictionaries({"x": st.integers(0, 3)}),
)


def lines(rows: list[dict[str, Any]]) -> str:
    return "\n".join(map(json.dumps, rows)) + "\n\n"


def array(rows: list[dict[str, Any]]) -> str:
    return json.dumps(rows)


def indented(rows: list[dict[str, Any]]) -> str:
    return f"\n {json.dumps(rows, indent=4, ensure_ascii=False)}\r\n\t"


@given(
    columns=st.lists(st.lists(VALUES, min_size=8, max_size=8), min_size=1, max_size=3),
    present=st.lists(st.booleans(), min_size=8, max_size=8),
)
@pytest.mark.parametrize("layout", [lines, array, indented])
def test_json_has_the_types_and_rows_of_reading_at_once(
    layout: Callable[[list[dict[str, Any]]], str],
    columns: list[list[Any]],
    present: list[bool],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Whatever is in them, the outcome is that of reading them at once, be it an error."""
    rows = [
        {f"c{place}": column[number] for place, column in enumerate(columns) if place == 0 or present[number]}
        for number in range(8)
    ]
    path = tmp_path_factory.mktemp("json") / "rows.json"
    path.write_text(layout(rows))
    try:
        expected = json_at_once(rows)
    except (pa.ArrowException, OverflowError) as error:
        with pytest.raises(type(error)):
            read_json(path, source("json"))
        return
    found = read_json(path, source("json"))
    assert found.features == expected.features
    assert found.column_names == expected.column_names
    assert found.to_list() == expected.to_list()


def test_types_that_only_later_rows_decide(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"a": None, "b": 1, "c": "007"} for _ in range(5)]
    rows += [{"a": "x", "b": 0.5, "c": "None", "d": True}]
    path = tmp_path / "rows.json"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = read_json(path, source("json"))
    assert found.to_list() == json_at_once(rows).to_list()
    assert [found.features[name].dtype for name in "abcd"] == ["string", "float64", "string", "bool"]
    assert found[0]["c"] == "007"


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('{"a": 1}\n{"a": 2}\n\n{"a": 3\n{"a": 4}\n')
    with pytest.raises(ExperimentError, match="line 4: Expecting"):
        read_json(path, source("json"))


@pytest.mark.parametrize(
    "content",
    [
        '[{"a": 1}, {"a": 2}',
        '[{"a": 1} {"a": 2}]',
        '[{"a": 1}, ]',
        '[{"a": 1}, 2]',
        '[{"a": 1}, [{"a": 2}]]',
        '[{"a": 1}]]',
        '[{"a": 1}] {"a": 2}',
        '[{"a": "1}]',
        "[1, 2]",
        "[",
    ],
)
def test_what_is_not_an_array_of_objects_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(content)
    with pytest.raises(ExperimentError, match="cannot be read as json"):
        read_json(path, source("json"))


def test_a_long_object_is_tried_a_few_times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each trial reads it from its start: one for each of its parts would take hours for a large one."""
    decoded: list[int] = []
    decode = json.JSONDecoder.raw_decode

    def counted(self: json.JSONDecoder, text: str, at: int = 0) -> tuple[Any, int]:
        decoded.append(at)
        return decode(self, text, at)

    monkeypatch.setattr(json.JSONDecoder, "raw_decode", counted)
    rows = [{"text": "word " * 5000}, {"text": "b"}]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    assert read_json(path, source("json")).to_list() == rows
    assert len(decoded) < 40


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress], ids=["plain", "gzip", "bzip2"])
def test_characters_across_parts_are_whole(encoding: str, pack: Any, tmp_path: Path) -> None:
    content = "\r\n\ntext,label\n" + "".join(f"schön {number} ü,ä\n" for number in range(9))
    ending = {"bytes": "", "compress": ".gz" if pack is gzip.compress else ".bz2"}[pack.__name__]
    path = tmp_path / f"rows.csv{ending}"
    path.write_bytes(pack(content.encode(encoding)))
    chosen = {"encoding": encoding} if encoding == "latin-1" else {}
    found = read_csv(path, source("csv", **chosen))
    assert found["text"][:] == [f"schön {number} ü" for number in range(9)]
    assert set(found["label"]) == {"ä"}


def test_a_character_that_is_wrong_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"text,label\n" + "ä,b\n".encode() * 9 + b"\xe4,b\n")
    with pytest.raises(ExperimentError, match="line 11 is not text in utf-8: byte 0xe4"):
        read_csv(path, source("csv"))
    path.write_bytes(b"text,label\na,b\n\xc3")  # it ends within a character
    with pytest.raises(ExperimentError, match="line 3 is not text in utf-8: byte 0xc3"):
        read_csv(path, source("csv"))


def test_rows_that_do_not_fit_on_the_disk_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "a,b\n" * 5)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(RuntimeFailure, match="cannot be written there"):
        read_files(TaskConfig(format="csv", train=str(path)))


MEASURED = """
import ctypes
import gc
import sys
from pathlib import Path

import numpy as np

from fedistill.config.task import TaskConfig
from fedistill.data.sources import open_source


def held():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


path, form = sys.argv[1:]
loaded = open_source(TaskConfig(format=form, train=path))
before = held()
loaded = open_source(TaskConfig(format=form, train=path))
assert loaded.train.read(np.arange(2))[0].startswith("word")
print(held() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is known on Linux alone")
@pytest.mark.parametrize(
    ("form", "start", "between", "end"),
    [
        ("csv", "text,label\n", "\n", "\n"),
        pytest.param("json", "", "\n", "\n", marks=pytest.mark.long),
        ("json", "[", ",", "]"),
    ],
    ids=["csv", "lines", "array"],
)
def test_rows_are_not_held_in_memory(form: str, start: str, between: str, end: str, tmp_path: Path) -> None:
    # What is freed is given back at once: Arrow's own allocators do so when they see fit.
    given_back = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
    text, rows = "word " * 2000, 12_000
    path = tmp_path / f"rows.{form}"
    with path.open("w") as sink:
        for number in range(rows):
            label = "ab"[number % 2]
            row = f"{text}{number},{label}" if form == "csv" else json.dumps({"text": text, "label": label})
            sink.write((between if number else start) + row)
        sink.write(end)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(path), form],
        env=os.environ | given_back | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < path.stat().st_size / 2

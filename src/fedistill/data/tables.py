"""Reads CSV and JSON files without a change to their values: what is written as text stays text."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from pyarrow import csv as arrow_csv

from fedistill.config.task import Source
from fedistill.data.table import Split, place_of
from fedistill.errors import ExperimentError

SEPARATORS = (",", ";", "\t", "|")
_PROBED_ROWS = 100
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
"""Byte order marks, which programs for spreadsheets write."""


def read_csv(path: Path, source: Source) -> Split:
    """Read a CSV file, all columns as text; a field is missing if it is empty or in ``source.missing``.

    Raises:
        ExperimentError: the encoding or the separator is not that of the file, or cannot be found.
    """
    content = _decoded(path, source)
    content = content.lstrip("\r\n")
    if not content.strip():
        raise ExperimentError("has no rows")
    separator = source.separator or _separator(content, place_of(source))
    header = next(csv.reader(io.StringIO(content, newline=""), delimiter=separator))
    names = [name or f"column {number}" for number, name in enumerate(header, 1)]
    if source.column_names is not None:
        if len(source.column_names) != len(header):
            raise ExperimentError(
                f"has {len(header)} columns, but {place_of(source)}.column_names has"
                f" {len(source.column_names)}: name each once, in order"
            )
        names = source.column_names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ExperimentError(f"has several columns called {', '.join(map(repr, twice))}")
    table = arrow_csv.read_csv(
        pa.BufferReader(content.encode()),
        arrow_csv.ReadOptions(column_names=names, skip_rows_after_names=0 if source.column_names else 1),
        arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=["", *source.missing],
            strings_can_be_null=True,
        ),
    )
    if table.num_rows == 0:
        raise ExperimentError("has no rows")
    return datasets.Dataset(table)


def read_json(path: Path, source: Source) -> Split:
    """Read one JSON object per line, an array of objects, or one object with an array for each column.

    Raises:
        ExperimentError: the file is not JSON, or none of these.
    """
    content = _decoded(path, source)
    if not content.strip():
        raise ExperimentError("has no rows")
    rows = _objects(content)
    if isinstance(rows, dict):
        return datasets.Dataset.from_dict(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    return datasets.Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})


def _objects(content: str) -> list[dict[str, Any]] | dict[str, list[Any]]:
    try:
        everything = json.loads(content)
    except json.JSONDecodeError:
        return _lines(content)
    if isinstance(everything, dict):
        if everything and all(isinstance(column, list) for column in everything.values()):
            return everything
        return [everything]
    if not isinstance(everything, list) or not all(isinstance(row, dict) for row in everything):
        raise ExperimentError("cannot be read as json (it must hold objects, one for each sample)")
    return everything


def _lines(content: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ExperimentError(f"cannot be read as json (line {number}: {error})") from None
        if not isinstance(row, dict):
            raise ExperimentError(f"cannot be read as json (line {number} is not an object)")
        rows.append(row)
    return rows


def _decoded(path: Path, source: Source) -> str:
    with pa.input_stream(str(path), compression="detect") as stream:
        data = bytes(stream.read())
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), source.encoding)
    if b"\0" in data and not encoding.lower().startswith(("utf-16", "utf_16", "utf-32", "utf_32")):
        raise ExperimentError(f"cannot be read as {source.format} (it is not a text file)")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ExperimentError(
            f"cannot be read as {source.format} (line {line} is not text in {encoding}:"
            f" byte {data[error.start]:#04x}): set {place_of(source)}.encoding, for example to 'latin-1' or"
            " 'cp1252'"
        ) from None


def _separator(content: str, place: str) -> str:
    """Find the separator that divides the first rows into the same number of fields, and into the most."""
    fields = {}
    for separator in SEPARATORS:
        rows = csv.reader(io.StringIO(content, newline=""), delimiter=separator)
        try:
            counts = [len(row) for row, _ in zip(rows, range(_PROBED_ROWS), strict=False) if row]
        except csv.Error:  # a field beyond the reader's limit
            continue
        if counts and counts[0] > 1:
            fields[separator] = counts[0] if len(set(counts)) == 1 else 0
    most = max(fields.values(), default=0)
    best = [separator for separator, count in fields.items() if count == most]
    if len(best) > 1:
        raise ExperimentError(
            f"cannot tell whether {' or '.join(map(repr, best))} separates its fields: set {place}.separator"
        )
    return best[0] if best else ","

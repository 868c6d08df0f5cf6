"""Reads CSV and JSON files without a change to their values: what is written as text stays text.

Rows are read some at a time and laid down in a file without a name, from which they are mapped into memory
like those of a Parquet file.
"""

import contextlib
import csv
import io
import itertools
import json
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import datasets
import pyarrow as pa
from pyarrow import csv as arrow_csv

from fedistill.config.section import RawTable
from fedistill.config.task import Source
from fedistill.data.json_array import NoArrayOfObjects, begins_array, objects_of
from fedistill.data.nameless_file import NamelessFile
from fedistill.data.table import Split, place_of
from fedistill.data.text_file import TextFile
from fedistill.errors import ExperimentError

SEPARATORS = (",", ";", "\t", "|")
_PROBED_ROWS = 100
_BATCH = 1000
_LONGEST_ROW = 1 << 24
"""Bytes of a CSV file that are read at once; no row may be longer."""
"""Rows of a JSON file that are converted at a time."""


def read_csv(path: Path, source: Source) -> Split:
    """Read a CSV file, all columns as text; a field is missing if it is empty or in ``source.missing``.

    Raises:
        ExperimentError: the encoding or the separator is not that of the file, or cannot be found.
        RuntimeFailure: the disk of temporary files is full or fails.
    """
    text = TextFile(path, source)
    if not any(part.strip() for part in text.parts()):
        raise ExperimentError("has no rows")
    separator = source.separator or _separator(text, place_of(source))
    header = next(csv.reader(_lines_of_csv(text), delimiter=separator))
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
    rows = arrow_csv.open_csv(
        text.utf8(),
        arrow_csv.ReadOptions(
            column_names=names,
            skip_rows_after_names=0 if source.column_names else 1,
            block_size=_LONGEST_ROW,
        ),
        arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=["", *source.missing],
            strings_can_be_null=True,
        ),
    )
    return _on_disk(rows, rows.schema)


def read_json(path: Path, source: Source) -> Split:
    """Read one JSON object per line, an array of objects, or one object with an array for each column.

    Objects are read some at a time, columns at once.

    Raises:
        ExperimentError: the file is not JSON, or none of these.
        RuntimeFailure: the disk of temporary files is full or fails.
    """
    text = TextFile(path, source)
    if begins_array(text.parts()):
        with contextlib.suppress(NoArrayOfObjects):
            return _from_objects(lambda: objects_of(text.parts()))
    elif _has_objects_on_lines(text):
        return _from_objects(lambda: _rows_of_lines(text))
    content = text.text()
    try:
        everything = json.loads(content)
    except json.JSONDecodeError:
        return _from_rows([*_rows_of_lines(text)])
    if isinstance(everything, dict):
        if everything and all(isinstance(column, list) for column in everything.values()):
            return datasets.Dataset.from_dict(everything)
        return _from_rows([everything])
    if not isinstance(everything, list) or not all(isinstance(row, dict) for row in everything):
        raise ExperimentError("cannot be read as json (it must hold objects, one for each sample)")
    return _from_rows(everything)


def _from_objects(read: Callable[[], Iterator[RawTable]]) -> Split:
    """Return the rows that each call reads from the start."""
    columns = _columns_of(read())
    return _from_rows([*read()]) if columns is None else _on_disk(_batches(read(), columns), columns)


def _from_rows(rows: list[RawTable], names: Iterable[str] | None = None) -> Split:
    """Return rows as a split of these columns, by default of all that any of them has."""
    named = dict.fromkeys(name for row in rows for name in row) if names is None else names
    return datasets.Dataset.from_dict({name: [row.get(name) for row in rows] for name in named})


def _has_objects_on_lines(text: TextFile) -> bool:
    """Whether there are several lines, of which the first is a whole object."""
    filled = (line for line in text.lines() if line.strip())
    first, second = next(filled, None), next(filled, None)
    if first is None:
        raise ExperimentError("has no rows")
    if second is None:
        return False
    try:
        return isinstance(json.loads(first), dict)
    except json.JSONDecodeError:
        return False


def _rows_of_lines(text: TextFile) -> Iterator[RawTable]:
    for number, line in enumerate(text.lines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ExperimentError(f"cannot be read as json (line {number}: {error})") from None
        if not isinstance(row, dict):
            raise ExperimentError(f"cannot be read as json (line {number} is not an object)")
        yield row


def _columns_of(read: Iterator[RawTable]) -> pa.Schema | None:
    """Return the columns of all rows with the types that they have at once.

    None if that is known only by reading them at once: nested values of several kinds, or an error.
    """
    found: dict[str, set[pa.DataType]] = {}
    for rows in _some(read):
        try:
            schema = _from_rows(rows).data.schema
        except pa.ArrowException:
            return None
        for field in schema:
            found.setdefault(field.name, set()).add(field.type)
    types = {name: _common(seen - {pa.null()}) for name, seen in found.items()}
    if any(kind is None for kind in types.values()):
        return None
    return pa.schema(list(types.items()))


def _common(types: set[pa.DataType]) -> pa.DataType | None:
    if types == {pa.int64(), pa.float64()}:
        return pa.float64()
    return None if len(types) > 1 else next(iter(types), pa.null())


def _batches(read: Iterator[RawTable], columns: pa.Schema) -> Iterator[pa.RecordBatch]:
    for rows in _some(read):
        table: pa.Table = _from_rows(rows, columns.names).data.table
        yield from table.cast(columns).to_batches()


def _some(rows: Iterator[RawTable]) -> Iterator[list[RawTable]]:
    while some := list(itertools.islice(rows, _BATCH)):
        yield some


def _on_disk(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Split:
    """Return rows as a split that is mapped into memory from a nameless file."""
    file = NamelessFile(None)
    file.write(_in_file(batches, schema))
    with pa.ipc.open_stream(pa.py_buffer(file.mapped().numpy())) as stream:
        table = stream.read_all()
    if table.num_rows == 0:
        raise ExperimentError("has no rows")
    # By default, it would be a digest of a copy of all rows.
    return datasets.Dataset(table, fingerprint=uuid.uuid4().hex[:16])


def _in_file(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[bytes]:
    """Yield batches in Arrow's format of streams."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            yield sink.getvalue()
            sink.seek(0)
            sink.truncate()
    yield sink.getvalue()


def _lines_of_csv(text: TextFile) -> io.TextIOWrapper:
    return io.TextIOWrapper(text.utf8(), encoding="utf-8", newline="")


def _separator(text: TextFile, place: str) -> str:
    """Find the separator that divides the first rows into the same number of fields, and into the most."""
    fields = {}
    for separator in SEPARATORS:
        rows = csv.reader(_lines_of_csv(text), delimiter=separator)
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

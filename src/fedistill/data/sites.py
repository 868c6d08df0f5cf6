"""Partitions that the user gives: by a column, by file or as lists of positions. Their clients have names."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedistill.config.partitions import Listed, Natural
from fedistill.data.table import FILE_COLUMN, Column, Loaded, Rows
from fedistill.data.task import AbsentSite
from fedistill.errors import ExperimentError, nearest

_FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class Sites:
    """The clients of a task.

    Attributes:
        names: of the clients; empty if the partition was drawn.
        parts: for each client the positions of its samples among the private ones, none of them empty.
        absent: the sites without a client.
    """

    names: tuple[str, ...]
    parts: list[Rows]
    absent: tuple[AbsentSite, ...]


def divide_by_site(kind: Natural | Listed, source: Loaded, private: Rows, clients: int | None) -> Sites:
    """Divide the private samples among the sites that they come from.

    Sites are numbered by size, the largest first; those of lists in the order of the lists. Samples of the
    test set and the public set, and those beyond ``task.limit``, have been taken from the sites before.

    Args:
        private: int64 (n,), the rows of the training data that are private.
        clients: how many sites take part, or None for all.

    Raises:
        ExperimentError: there is no such column or file, or there are fewer sites than clients.
    """
    if isinstance(kind, Listed):
        lists = _lists(kind, len(source.train))
        names = _names_by_row(lists, len(source.train))
    else:
        names = [str(value) for value in _column(kind, source)]
    before = Counter(name for name in names if name is not None)
    held: dict[str, list[int]] = {}
    for position, row in enumerate(private.tolist()):
        name = names[row]
        if name is not None:
            held.setdefault(name, []).append(position)
    if isinstance(kind, Listed):
        present = [name for name in lists if name in held]
    else:
        present = sorted(sorted(held), key=lambda name: len(held[name]), reverse=True)
    if not present or (clients is not None and clients > len(present)):
        where = "indices" if isinstance(kind, Listed) else f"column {kind.column or FILE_COLUMN!r}"
        fix = "lower task.public or task.test_share, or raise task.limit"
        if present:
            fix = f"set task.clients to at most {len(present)}, or leave it out"
        asked = "" if clients is None else f", but task.clients = {clients}"
        raise ExperimentError(
            f"task.partition: {where} has {len(present)} sites among the private samples{asked}: {fix}"
        )
    taken = present[:clients]
    others = [name for name in (*present, *sorted(set(before) - set(present))) if name not in taken]
    return Sites(
        names=tuple(taken),
        parts=[np.array(held[name], dtype=np.int64) for name in taken],
        absent=tuple(AbsentSite(name, before[name], len(held.get(name, []))) for name in others),
    )


def _column(kind: Natural, source: Loaded) -> Column:
    """Return the name of each training row's site."""
    if kind.file is not None:
        return _column_of(kind.file, str(kind.column), len(source.train))
    if kind.column is None and not source.by_file:
        raise ExperimentError(
            "task.partition: a natural partition needs the column that names each sample's client: set"
            " task.partition.column, or list one file for each client in task.train"
        )
    return source.train.column(kind.column or FILE_COLUMN)  # refuses missing values itself


def _column_of(file: str, column: str, rows: int) -> Column:
    """Return a column of a file of its own, one value for each row of the training data."""
    kind = _FORMATS.get(Path(file).suffix.lower())
    if kind is None:
        raise ExperimentError(f"task.partition.file = {file}: must end in one of {', '.join(_FORMATS)}")
    from fedistill.data.files import read_table  # imports more than other partitions need

    split = read_table(file, kind, "task.partition.file")
    if column not in split.column_names:
        raise ExperimentError(
            f"{file}: task.partition.column = {column!r} is not a column; there are"
            f" {', '.join(split.column_names)}.{nearest(column, split.column_names)}"
        )
    values = list(split[column])
    if len(values) != rows:
        raise ExperimentError(
            f"task.partition.file = {file} has {len(values)} rows, but the training data have {rows}: it"
            " needs one row for each training sample, in their order"
        )
    missing = [row for row, value in enumerate(values) if value is None]
    if missing:
        raise ExperimentError(
            f"{file}: {len(missing)} rows have no {column!r}, the first of them row {missing[0]} (counted"
            " from 0); fill them in"
        )
    return values


def _lists(kind: Listed, rows: int) -> dict[str, list[int]]:
    """Return the positions that each client lists, checked."""
    where = "task.partition.clients" if kind.file is None else f"task.partition.file = {kind.file}"
    given = kind.clients if kind.file is None else _read_lists(kind.file)
    assert given is not None
    lists = given if isinstance(given, dict) else {str(client): one for client, one in enumerate(given)}
    owner: dict[int, str] = {}
    for name, positions in lists.items():
        if not positions:
            raise ExperimentError(f"{where}: client {name!r} lists no samples; take it away")
        for position in positions:
            if position >= rows:
                raise ExperimentError(
                    f"{where}: client {name!r} lists position {position}, but the training data have {rows}"
                    f" samples, 0 to {rows - 1}"
                )
            if position in owner:
                raise ExperimentError(
                    f"{where}: position {position} is listed twice, for client {owner[position]!r} and for"
                    f" client {name!r}; a sample belongs to one client"
                )
            owner[position] = name
    return lists


def _names_by_row(lists: dict[str, list[int]], rows: int) -> list[str | None]:
    names: list[str | None] = [None] * rows
    for name, positions in lists.items():
        for position in positions:
            names[position] = name
    return names


def _read_lists(file: str) -> list[list[int]] | dict[str, list[int]] | None:
    try:
        content = json.loads(Path(file).read_bytes())
        return Listed(kind="indices", clients=content).clients
    except FileNotFoundError:
        raise ExperimentError(f"task.partition.file = {file}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise ExperimentError(
            f"task.partition.file = {file}: must be JSON with the positions of each client's samples, such as"
            f' [[0, 2], [1, 3]] or {{"a": [0, 2], "b": [1, 3]}} ({str(error).splitlines()[0]})'
        ) from None

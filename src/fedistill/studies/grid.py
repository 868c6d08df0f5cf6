"""The points of a sweep: every combination of the values that some settings are to have."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from fedistill.errors import ExperimentError

_EXAMPLE = "for example task.partition.alpha=0.1,0.3,1"
_BRACKETS = {"[": 1, "{": 1, "]": -1, "}": -1}


@dataclass(frozen=True)
class GridPoint:
    """One combination.

    Attributes:
        name: its settings in short, such as ``alpha=0.1, clients=10``.
        overrides: its settings as ``section.key=value``, in the order of the grid.
    """

    name: str
    overrides: tuple[str, ...]

    @property
    def folder(self) -> str:
        """A name for its folder."""
        return re.sub(r"[^\w.=+-]+", "_", self.name).strip("._")


def grid_points(grid: Sequence[str]) -> list[GridPoint]:
    """Return all combinations of a grid, the last setting changing first.

    Args:
        grid: each ``section.key=VALUE,VALUE,...``; a comma in brackets, braces or quotes is part of a value.

    Raises:
        ExperimentError: one of them is not of this form, or names a key or a value twice.
    """
    settings = [_read(text) for text in grid]
    keys = [key for key, _ in settings]
    for key in keys:
        if keys.count(key) > 1:
            raise ExperimentError(f"--grid {key}: is there twice; write all of its values in one")
    last = [key.rpartition(".")[2] for key in keys]
    short = last if len({*last}) == len(last) else keys
    points = [
        GridPoint(
            ", ".join(f"{name}={value}" for name, value in zip(short, values, strict=True)),
            tuple(f"{key}={value}" for key, value in zip(keys, values, strict=True)),
        )
        for values in product(*(values for _, values in settings))
    ]
    folders = [point.folder for point in points]
    for point in points:
        if folders.count(point.folder) > 1:
            raise ExperimentError(
                f"--grid: two combinations are called {point.folder}; leave out one of them"
            )
    return points


def _read(text: str) -> tuple[str, list[str]]:
    key, _, written = text.partition("=")
    values = [value.strip() for value in _split(written)]
    if not key.strip() or not all(values):
        raise ExperimentError(f"--grid {text}: write KEY=VALUE,VALUE, {_EXAMPLE}")
    return key.strip(), values


def _split(written: str) -> list[str]:
    """Split at commas outside brackets, braces and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in written:
        if letter in "\"'" and quote in ("", letter):
            quote = "" if quote else letter
        depth += 0 if quote else _BRACKETS.get(letter, 0)
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts

"""Rows are read a few at a time: the outcome is that of reading all at once."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fedistill.data import reading
from fedistill.data.reading import Images, read_parts
from fedistill.data.samples import Texts
from fedistill.data.table import Inputs, Rows, Table, no_columns
from fedistill.data.task import Task
from helpers.files import Files, Pixels

Make = Callable[..., Task]


def table(read: Callable[[Rows], Inputs], count: int) -> Table:
    return Table(np.zeros(count, dtype=np.int64), read, list, no_columns)


@pytest.fixture(params=[1, 3, 1000])
def at_a_time(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_ROWS", request.param)


@pytest.mark.usefixtures("at_a_time")
def test_each_part_has_its_own_images_in_their_order() -> None:
    pixels = np.arange(7 * 4, dtype=np.uint8).reshape(7, 1, 2, 2)
    rows = np.array([6, 0, 5, 2, 3])
    parts = [np.array([4, 0]), np.array([], dtype=np.int64), np.array([2])]
    found = read_parts(table(lambda some: pixels[some], 7), rows, parts, None)
    expected = [pixels[[3, 6]], pixels[[]], pixels[[5]]]
    assert all(torch.equal(a, torch.from_numpy(b)) for a, b in zip(found, expected, strict=True))


@pytest.mark.usefixtures("at_a_time")
def test_each_part_has_its_own_texts_in_their_order() -> None:
    texts = ["no", "é", "", "日本", "end"]
    rows, parts = np.array([4, 3, 2, 1]), [np.array([1, 3]), np.array([], dtype=np.int64), np.array([0, 2])]
    found = read_parts(table(lambda some: [texts[row] for row in some], 5), rows, parts, None)
    assert [list(one) for one in found if isinstance(one, Texts)] == [["日本", "é"], [], ["end", ""]]


@pytest.mark.usefixtures("at_a_time")
@pytest.mark.parametrize("coloured", [0, 2, 4])
def test_one_image_with_colours_gives_three_channels_to_all(coloured: int) -> None:
    """Also one that nobody holds, as the fifth here."""
    grey = np.arange(5 * 4, dtype=np.uint8).reshape(5, 1, 2, 2)
    colours = np.full((1, 3, 2, 2), [[[7]], [[8]], [[9]]], dtype=np.uint8)

    def read(rows: Rows) -> Images:
        if coloured not in rows:
            return grey[rows]
        return np.concatenate([colours if row == coloured else grey[[row]].repeat(3, 1) for row in rows])

    (found,) = read_parts(table(read, 5), np.arange(5), [np.arange(4)], None)
    assert torch.equal(found, torch.from_numpy(read(np.arange(5))[:4]))


def test_images_of_unlike_sizes_are_named_wherever_they_are(
    files: Files, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [*files.pixels(5), *files.pixels(1, height=9)]
    path = files.images("p.parquet", pictures, labels=["a", "b"] * 3)
    test = files.images("t.parquet", files.pixels(2), labels=["a", "b"])
    said = []
    for count in (1, 2, 1000):
        monkeypatch.setattr(reading, "_ROWS", count)
        said.append(refused(format="parquet", train=path, test=test))
    assert "images differ in size, 8x8 pixels and, in row 5, 9x8" in said[0]
    assert said[0] == said[1] == said[2]


def pictures(kind: str, files: Files) -> list[Pixels]:
    grey, coloured = files.pixels(24), files.pixels(24, channels=3, seed=1)
    alpha = files.pixels(24, channels=4, seed=2)
    return {
        "grey": grey,
        "coloured": coloured,
        "mixed": [*grey[:20], *coloured[20:]],
        "transparent": list(itertools.chain(grey[:12], alpha[12:])),
    }[kind]


@pytest.mark.parametrize("kind", ["grey", "coloured", "mixed", "transparent"])
@pytest.mark.parametrize("size", [None, [5, 7]])
def test_a_task_does_not_depend_on_how_many_are_read_at_a_time(
    files: Files, make: Make, monkeypatch: pytest.MonkeyPatch, kind: str, size: Any
) -> None:
    path = files.images("p.parquet", pictures(kind, files), labels=["a", "b"] * 12)
    keys = {"format": "parquet", "train": path, "public": 4, "own_test_share": 0.2}
    keys |= {} if size is None else {"image_size": size}
    prints = set()
    for count in (1, 5, 1000):
        monkeypatch.setattr(reading, "_ROWS", count)
        prints.add(make(**keys).fingerprint())
    assert len(prints) == 1

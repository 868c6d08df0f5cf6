"""The plots of the docs: curves lie where their numbers say."""

import importlib
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[1] / "docs"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def curves(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(DOCS))
    yield importlib.import_module("curves")
    sys.modules.pop("curves")


@pytest.fixture
def image(curves: ModuleType) -> ET.Element:
    points = {"low <&>": [(1000, 0.5), (2000, 0.72), (8000, 0.8)], "once": [(4000, 0.76)]}
    return ET.fromstring(curves.draw(points, 0.7))


def test_each_curve_has_a_colour_of_its_own(curves: ModuleType) -> None:
    shown = {str(place): [(1000 * place, 0.8)] for place in range(1, 10)}
    with pytest.raises(ValueError, match="is longer than"):
        curves.draw(shown, 0.7)
    del shown["9"]
    lines = ET.fromstring(curves.draw(shown, 0.7)).iter(f"{SVG}polyline")
    assert len({line.attrib["stroke"] for line in lines}) == 8


def test_bytes_are_logarithmic_and_accuracies_linear(image: ET.Element) -> None:
    first, once = (
        [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        for line in image.iter(f"{SVG}polyline")
    )
    assert len(first) == 2  # what lies below is not shown
    (x1, y1), (x2, y2) = first
    ((x3, y3),) = once
    assert x3 - x1 == pytest.approx(x2 - x3, abs=0.2)  # 4,000 is as far from 2,000 as 8,000 from it
    assert y1 - y3 == pytest.approx(y3 - y2, abs=0.2)  # 76 % lies between 72 and 80 %
    assert y2 < y1


def test_names_and_scales_are_written(image: ET.Element) -> None:
    texts = [text.text for text in image.iter(f"{SVG}text")]
    assert {"low <&>", "once", "70%", "80%", "2 kB", "5 kB"} <= set(texts)

"""Classes by name: what a scan of folders finds, and in which order."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedistill.aggregation.registry import AGGREGATIONS
from fedistill.communication.codecs.registry import CODECS
from fedistill.config.plugins import scan
from fedistill.methods.registry import METHODS

BASE = """
from abc import ABC, abstractmethod

class Base(ABC):
    @abstractmethod
    def act(self): ...
"""
MODULE = """
from toys.base import Base
from toys.zebra import Zebra

class Second(Base):
    name = "second"
    def act(self): ...

class First(Base):
    name = "first"
    def act(self): ...

class Abstract(Base):
    name = "abstract"

class Unnamed(Base):
    def act(self): ...

class Stranger:
    name = "stranger"
"""
ZEBRA = """
from toys.base import Base

class Zebra(Base):
    name = "zebra"
    def act(self): ...
"""


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "toys"
    for name in ("", "farm", "barn"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
    (folder / "base.py").write_text(BASE)
    (folder / "zebra.py").write_text(ZEBRA)
    (folder / "middle.py").write_text(MODULE)
    for name in ("farm", "barn"):
        (folder / name / "animals.py").write_text(ZEBRA.replace("zebra", name).replace("Zebra", name.title()))
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "toys"]:
        del sys.modules[name]


def found(*first: str) -> dict[str, type]:
    base = importlib.import_module("toys.base").Base
    return scan("toys", base, lambda kind: getattr(kind, "name", None), first)


@pytest.mark.usefixtures("toys")
def test_a_scan_finds_what_each_module_defines_in_a_fixed_order() -> None:
    assert list(found()) == ["barn", "farm", "second", "first", "zebra"]
    assert list(found("zebra", "farm", "missing")) == ["zebra", "farm", "barn", "second", "first"]
    assert found()["first"].__module__ == "toys.middle"


def test_two_classes_of_one_name_are_both_named(toys: Path) -> None:
    (toys / "farm" / "more.py").write_text(ZEBRA)
    said = r"^toys\.farm\.more\.Zebra and toys\.zebra\.Zebra are both named 'zebra'$"
    with pytest.raises(TypeError, match=said):
        found()


def test_ours_come_by_family_and_plain_codecs_first() -> None:
    families = [method.__module__.split(".")[2] for method in METHODS.values()]
    assert list(dict.fromkeys(families)) == [
        "controls",
        "weights",
        "classwise",
        "labels",
        "combined",
        "features",
        "sufficient_statistics",
    ]
    for family in set(families):
        names = [name for name, place in zip(METHODS, families, strict=True) if place == family]
        assert names == sorted(names)
    assert list(METHODS)[:2] == ["local", "server-alone"]
    assert list(CODECS)[:2] == ["fp32", "fp16"]
    assert list(AGGREGATIONS)[:3] == ["mean", "era", "enhanced-era"]

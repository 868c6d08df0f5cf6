"""Packages that are installed for one test: on the path, with the entry points of their metadata."""

import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

OUTSIDE = Path(__file__).parent / "outside_package"
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install modules, given as their texts, with entry points: ``{group: {name: "module:Class"}}``."""
    modules: set[str] = set()

    def put(
        name: str, points: Mapping[str, Mapping[str, str]], folder: Path | None = None, **texts: str
    ) -> None:
        place = tmp_path / "installed" / name
        metadata = place / f"{name.replace('-', '_')}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        groups = [
            "\n".join([f"[fedistill.{group}]", *(f"{key} = {value}" for key, value in entries.items())])
            for group, entries in points.items()
        ]
        (metadata / "entry_points.txt").write_text("\n".join(groups) + "\n")
        for module, text in texts.items():
            (place / f"{module}.py").write_text(text)
        for one in filter(None, (folder, place)):
            monkeypatch.syspath_prepend(one)
        modules.update(texts)

    yield put
    for module in [name for name in sys.modules if name.partition(".")[0] in modules]:
        del sys.modules[module]


@pytest.fixture
def outside(install: Install) -> None:
    """The package in outside_package/, with the entry points of its pyproject.toml."""
    project = tomllib.loads((OUTSIDE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    points = {group.partition(".")[2]: entries for group, entries in project["entry-points"].items()}
    install(project["name"], points, OUTSIDE)

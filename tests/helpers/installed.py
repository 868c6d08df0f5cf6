"""Packages that are installed for one test: on the path, with the entry points of their metadata."""

import importlib
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

OUTSIDE = Path(__file__).parents[1] / "plugins" / "outside_package"
"""The sources of a small package with a method, a codec and an aggregation."""


class Installer:
    """Puts packages on the path; `installed` takes them away."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self.modules: set[str] = set()

    def package(
        self,
        name: str,
        points: Mapping[str, Mapping[str, str]] | None = None,
        sources: Path | None = None,
        **texts: str,
    ) -> None:
        """Install a package of version 1.0.

        Args:
            points: its entry points, ``{"methods": {NAME: "module:Class"}}``.
            sources: the folder that its modules lie in.
            texts: modules by name, in place of those in a folder.
        """
        place = self._place / name
        metadata = place / f"{name.replace('-', '_')}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        groups = [
            "\n".join([f"[fedistill.{group}]", *(f"{key} = {value}" for key, value in entries.items())])
            for group, entries in (points or {}).items()
        ]
        (metadata / "entry_points.txt").write_text("\n".join(groups) + "\n")
        for module, text in texts.items():
            (place / f"{module}.py").write_text(text)
        sys.path[:0] = [str(folder) for folder in (sources, place) if folder is not None]
        importlib.invalidate_caches()
        self.modules |= texts.keys()

    def outside(self) -> None:
        """Install the package in `OUTSIDE`, with the entry points of its pyproject.toml."""
        project = tomllib.loads((OUTSIDE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        points = {group.partition(".")[2]: entries for group, entries in project["entry-points"].items()}
        self.package(project["name"], points, OUTSIDE)
        self.modules.add("fedistill_outside")


@contextmanager
def installed(place: Path) -> Iterator[Installer]:
    """Inside, packages may be installed in a folder; afterwards the path and the modules are as before."""
    path = list(sys.path)
    installer = Installer(place)
    try:
        yield installer
    finally:
        sys.path[:] = path
        for module in [name for name in sys.modules if name.partition(".")[0] in installer.modules]:
            del sys.modules[module]

"""Fixtures of packages that are installed for one test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.installed import Installer, installed


@pytest.fixture
def install(tmp_path: Path) -> Iterator[Installer]:
    with installed(tmp_path / "installed") as installer:
        yield installer


@pytest.fixture
def outside(install: Installer) -> None:
    install.outside()

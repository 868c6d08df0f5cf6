"""What is dear to make and the same for all workers of a test run."""

import fcntl
import json
import os
from collections.abc import Callable
from typing import Any

import pytest


def made_once(
    factory: pytest.TempPathFactory, name: str, make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Return what the first worker that asks for a name makes, as JSON; the others wait for it."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return _plain(json.dumps(make()))
    # All workers' folders of one run lie in one.
    place = factory.getbasetemp().parent / f"{name}.json"
    with place.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        made = file.read()
        if not made:
            made = json.dumps(make())
            file.write(made)
    return _plain(made)


def _plain(made: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(made)
    return found

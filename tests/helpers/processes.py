"""Processes of this machine, as tests wait for them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def processes_with(variable: str, value: Path) -> list[int]:
    """Processes in whose environment a variable has this value."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if f"{variable}={value}\0".encode() in environment:
            found.append(int(entry.name))
    return found


def wait_for(condition: Callable[[], Any], what: str, seconds: float) -> None:
    """Return once the condition holds; a test that waits for longer fails."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds} s for {what}"
        time.sleep(0.05)

"""Processes of this machine, as tests wait for them."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

_HOLD = """
import sys, time
from pathlib import Path
from fedistill.experiment import folder_lock
with getattr(folder_lock, sys.argv[1])(Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def another_in(folder: Path, how: Literal["alone_in", "network_in"]) -> Iterator[None]:
    """Have another process hold the folder of a run, as one that plays does; it is killed in the end."""
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, how, str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield
    finally:
        holder.kill()
        holder.communicate()


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

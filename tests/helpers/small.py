"""An experiment file of a second or two, and how a process that runs it is asked to end."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from helpers.processes import wait_for
from helpers.program import PATIENCE

_TABLES = """
[task]
name = "digits"
clients = 2
limit = 60
public = 20

[models]
clients = ["mlp-s"]
server = "mlp-s"
"""


def write_small(folder: Path, *arms: str, workers: int = 1, **settings: int | str) -> Path:
    """Write ``exp.toml``: two clients with 60 digits between them.

    Args:
        arms: each a method, or lines of TOML.
        workers: processes; one stands for the process of the run.
        settings: at the top, as TOML; without `rounds` there are 2.
    """
    before = "".join(f"{name} = {value}\n" for name, value in {"rounds": 2, **settings}.items())
    kind = 'kind = "serial"' if workers == 1 else f'kind = "processes"\nworkers = {workers}'
    lines = [arm if "=" in arm else f'method = "{arm}"' for arm in arms]
    path = folder / "exp.toml"
    path.write_text(
        before + _TABLES + f"\n[runtime]\n{kind}\n" + "".join(f"\n[[arms]]\n{arm}\n" for arm in lines)
    )
    return path


def stop_once(process: subprocess.Popen[str], asked: signal.Signals, begun: Callable[[], bool]) -> str:
    """Ask a process to end once something has begun; return what it has said on stderr by its end."""
    try:
        wait_for(begun, "the moment to stop", PATIENCE)
        process.send_signal(asked)
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    return said


def second_round_of(run: Path) -> bool:
    """Whether an arm of a run has played two rounds."""
    events = run / "events.jsonl"
    return events.exists() and '"round": 2' in events.read_text()

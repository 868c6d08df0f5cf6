"""A run whose processes are all killed at once: none can clean up, and yet no private data lie about."""

import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from helpers.processes import processes_with, wait_for
from helpers.program import PATIENCE, here, start

GATED = """
import os, pathlib, time
from torch import nn

class Net(nn.Module):
    def __init__(self, signature):
        super().__init__()
        self.head = nn.Linear(signature.shape[0], signature.classes)

    def forward(self, x):
        gate = pathlib.Path(os.environ.get("GATE", "nowhere"))
        events = gate / "run" / "events.jsonl"
        while self.training and events.exists() and '"event": "round"' in events.read_text():
            (gate / "waiting").touch()
            time.sleep(0.02)
        return self.head(x)
"""
EXPERIMENT = """
rounds = 2
task = { format = "csv", train = "people.csv", label = "class", table = { scaling = "sums" }, clients = 2 }
models = { clients = ["gated:Net"], server = "gated:Net" }
train = { optimizer = { lr = 0.05 } }
runtime = { kind = "processes", workers = 2 }
arms = [{ method = "fedavg" }]
"""


@pytest.fixture
def temporary() -> Iterator[Path]:
    """An empty folder with a short name, as names of sockets in it must be."""
    folder = Path(tempfile.mkdtemp(prefix="fd-"))
    yield folder
    shutil.rmtree(folder)


def names(folder: Path) -> set[str]:
    """Its files, without the numbers in their names, and without sockets, which have no data."""
    files = [path for path in folder.rglob("*") if not path.is_dir() and not path.is_socket()]
    return {re.sub(r"\d+", "N", str(path.relative_to(folder))) for path in files}


def test_nothing_is_left_of_the_data(tmp_path: Path, temporary: Path) -> None:
    """Neither among the temporary files of the system nor, once it was resumed, in the folder of the run."""
    rows = [f"{number},{number * number % 83},{'ab'[number % 2]}" for number in range(80)]
    (tmp_path / "people.csv").write_text("\n".join(["age,weight,class", *rows]))
    (tmp_path / "exp.toml").write_text(EXPERIMENT)
    (tmp_path / "gated.py").write_text(GATED)
    given, run = names(tmp_path), tmp_path / "run"
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["GATE"] = str(tmp_path)
    process = start("compare", "exp.toml", "--out", "run", cwd=tmp_path, env=environment)
    try:
        wait_for(lambda: (tmp_path / "waiting").exists() or process.poll() is not None, "round 2", PATIENCE)
        assert process.poll() is None, process.communicate()
        open_files = []
        for link in Path(f"/proc/{process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # it was closed meanwhile
                open_files.append(os.readlink(link))
        assert [name for name in open_files if name.startswith(str(tmp_path)) and name.endswith(" (deleted)")]
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(PATIENCE) == -signal.SIGKILL
        wait_for(lambda: not processes_with("GATE", tmp_path), "the workers to end", PATIENCE)
    finally:
        process.kill()
        process.communicate()
    assert names(temporary) == set()
    saved = {"checkpoint/fedavg/round-N.json", "checkpoint/fedavg/states-N.bin"}
    of_run = {".lock", "events.jsonl", "experiment.toml", *saved}
    assert names(tmp_path) == given | {"waiting"} | {f"run/{name}" for name in of_run}
    # As of a kill in the midst of writing states.
    (run / "checkpoint" / "fedavg" / "states-7.bin.part").write_bytes(bytes(1000))
    ended = here("resume", "run", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    models = {name for name in names(run) if name.startswith("models/")}
    assert names(run) == of_run | models | {"results.json", "report.html"}
